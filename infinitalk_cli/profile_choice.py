"""Which profile suits a machine, and why: a pure function of what the machine has and what the user wishes.

The row of the card is the start; then memory that is *free now* has its say, on the card and beside it:

1. The card's own row, else one by its memory. A card that does not compute in fp8 takes 8-bit integers instead.
2. Too little free on the GPU: fewer blocks stay there, then 8-bit weights in place of bfloat16.
3. Too little RAM to stream from: as many blocks stay on the GPU as it holds; then those that RAM has no room for are
   read from the disk in every pass, if their files hold them as they are computed with.
4. What still doesn't fit is said in numbers (`shortfall`), with the nearest wishes that would fit.

The arithmetic is `footprint`'s, so the choice and the figures printed before a run can't disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infinitalk_cli.estimate import find_card
from infinitalk_cli.footprint import PUBLISHED, JobShape, num_read, persistent_parameters, ram_bytes, vram_bytes
from infinitalk_cli.hardware import BF16_CAPABILITY, Gpu, Hardware, choose_gpu, usable_ram_bytes
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profile_table import PROFILE_OF_MEMORY, Preset, Profile, Quant, Size
from infinitalk_cli.profiles import Wishes, find_profile, settle
from infinitalk_cli.rungs import first_rung

GIB = 1 << 30
PUBLISHED_BLOCKS = 40

OLDEST_CAPABILITY = (7, 0)
"""Volta: what current torch builds still compute on."""

FP8_CAPABILITY = (8, 9)
"""Ada: the first compute capability that multiplies in fp8."""

LARGEST_SHAPE: dict[Size, tuple[int, int]] = {"480": (640, 640), "720": (960, 960), "demo": (64, 64)}
"""(width, height) of the picture with the most pixels of each set, or near it."""


@dataclass(frozen=True)
class Choice:
    """A profile for a machine. `profile`: settled. `reasons`: why, one sentence each, in order.

    `gpu`: None to run on the CPU. `shortfall`: what it lacks, "" if it fits; `remedy`: what would fit then.
    """

    profile: Profile
    gpu: Gpu | None
    reasons: tuple[str, ...]
    shortfall: str = ""
    remedy: str = ""

    @property
    def fits(self) -> bool:
        """Whether the run can start."""
        return not self.shortfall


def choose_profile(
    hardware: Hardware,
    wishes: Wishes | None = None,
    *,
    gpu_wish: str | None = None,
    preset: Preset | None = None,
    shape: JobShape | None = None,
) -> Choice:
    """The profile for this machine. `shape`: of the job, None for the largest picture of the wished size.

    Raises: InputError, EnvironmentUnfitError: for a `gpu_wish` that names no usable device.
    """
    wishes, gpu = wishes or Wishes(), choose_gpu(hardware, gpu_wish)
    if gpu is None:
        return _without_gpu(why_no_gpu(hardware))
    if gpu.capability is not None and gpu.capability < OLDEST_CAPABILITY:
        return _without_gpu(f"{gpu.name} has compute capability {_dotted(gpu.capability)}; torch needs 7.0 or newer")
    base, reasons = _row(gpu)
    return fit(base, hardware, gpu, wishes, preset=preset, shape=shape, reasons=reasons)


def fit(
    base: Profile,
    hardware: Hardware,
    gpu: Gpu,
    wishes: Wishes,
    *,
    preset: Preset | None = None,
    shape: JobShape | None = None,
    reasons: Sequence[str] = (),
) -> Choice:
    """`base` with what the memory asks for: first as it is, then with less. A wish is never overruled."""
    told = list(reasons)
    for fitting in (_fitted, _fitted_with_disk):
        for profile, why in _rungs(base, wishes, gpu):
            found = fitting(settle(profile, wishes, "infinitetalk", preset), wishes, hardware, gpu, shape)
            if found is not None:
                fitted, reason = found
                return Choice(fitted, gpu, tuple(text for text in (*told, why, reason) if text))
    last = settle(list(_rungs(base, wishes, gpu))[-1][0], wishes, "infinitetalk", preset)
    shortfall = memory_shortfall(last, hardware, gpu, shape)
    return Choice(last, gpu, tuple(told), shortfall, remedy(last, hardware, gpu))


def memory_shortfall(
    profile: Profile,
    hardware: Hardware,
    gpu: Gpu | None,
    shape: JobShape | None = None,
    sizes: DiTConfig | None = None,
) -> str:
    """What a settled profile lacks on this machine, with the number needed; "" if it fits."""
    shape = shape or shape_of(profile)
    sizes = sizes or PUBLISHED
    lacks: list[str] = []
    resident = 0
    if gpu is not None and gpu.free_bytes is not None:
        rung = first_rung(profile, shape, gpu.free_bytes, sizes)
        resident, need = rung.num_resident, vram_bytes(shape, profile, rung, sizes)
        if need > gpu.free_bytes:
            lacks.append(f"needs {_gb(need)} of GPU memory, {_gb(gpu.free_bytes)} of {gpu.name} are free")
    usable = usable_ram_bytes(hardware)
    read = num_read(profile, resident, usable, sizes) if gpu else 0
    need = ram_bytes(profile, resident, sizes, on_gpu=gpu is not None, num_read=read)
    if need > usable:
        where = "" if gpu else " to compute on the CPU"
        lacks.append(f"needs {_gb(need)} of RAM{where}, {_gb(usable)} are free{_limit(hardware)}")
    return " and ".join(lacks)


def shape_of(profile: Profile) -> JobShape:
    """A job of one chunk at the largest picture of the profile's size."""
    width, height = LARGEST_SHAPE[profile.size]
    return JobShape(width, height, profile.chunk_frames)


def _without_gpu(reason: str) -> Choice:
    return Choice(find_profile("demo"), None, (reason, "the demo profile runs on a CPU, with small weights of its own"))


def why_no_gpu(hardware: Hardware) -> str:
    """Why CUDA has no GPU to offer, in words."""
    if hardware.driver.problem not in ("", "no_library", "not_loaded", "no_package"):
        return hardware.driver.told
    if hardware.gpus and hardware.cuda_visible_devices is not None:
        return f"CUDA_VISIBLE_DEVICES={hardware.cuda_visible_devices!r} hides every GPU"
    if hardware.gpus:
        return "no GPU answers"
    return "this machine shows no NVIDIA GPU"


def _row(gpu: Gpu) -> tuple[Profile, list[str]]:
    """The row of a card and why it is this one."""
    card = find_card(gpu)
    if card is not None:
        profile, why = find_profile(card.profile), f"{gpu.name} has a row of its own"
    else:
        gib = (gpu.total_bytes or 0) / GIB
        profile = find_profile(next(name for least, name in PROFILE_OF_MEMORY if gib >= least))
        why = f"{gpu.name} has no row of its own; by its {gib:.0f} GiB"
    reasons = [why]
    if profile.quant == "fp8" and gpu.capability is not None and gpu.capability < FP8_CAPABILITY:
        profile = replace(profile, quant="int8")
        reasons.append(f"compute capability {_dotted(gpu.capability)} has no fp8 arithmetic: 8-bit integers")
    if gpu.capability is not None and gpu.capability < BF16_CAPABILITY:
        reasons.append(f"compute capability {_dotted(gpu.capability)} emulates bfloat16: expect it to be slow")
    return profile, reasons


def _rungs(base: Profile, wishes: Wishes, gpu: Gpu) -> Iterator[tuple[Profile, str]]:
    """What to try in turn, with why a rung was needed."""
    quant = base.quant if base.quant != "none" or wishes.quant is not None else eight_bits(gpu)
    yield base, ""
    if base.num_persistent_param_in_dit != 0:
        yield replace(base, num_persistent_param_in_dit=None), ""
    if base.quant == "none" and wishes.quant is None:
        smaller = replace(base, quant=quant, num_persistent_param_in_dit=None)
        yield smaller, "bfloat16 weights do not fit: 8-bit ones"
    if base.num_persistent_param_in_dit != 0:
        yield replace(base, quant=quant, num_persistent_param_in_dit=0), "every block is streamed"


def _fitted(
    profile: Profile, wishes: Wishes, hardware: Hardware, gpu: Gpu, shape: JobShape | None
) -> tuple[Profile, str] | None:
    """The profile if it fits, on the GPU as far as it holds it if RAM is too short to stream from; and why."""
    in_memory = replace(profile, blocks_from_disk=False)
    if not memory_shortfall(in_memory, hardware, gpu, shape):
        return counted(profile, gpu, shape)
    whole = replace(in_memory, num_persistent_param_in_dit=None)
    if wishes.num_persistent_param_in_dit is not None or memory_shortfall(whole, hardware, gpu, shape):
        return None
    return _whole(profile, gpu, shape), "RAM is too short to stream all: as many blocks as fit stay on the GPU"


def _fitted_with_disk(
    profile: Profile, wishes: Wishes, hardware: Hardware, gpu: Gpu, shape: JobShape | None
) -> tuple[Profile, str] | None:
    """The profile if it fits when blocks are read from the disk in every pass, as few of them as can be; and why."""
    fewest = profile if wishes.num_persistent_param_in_dit is not None else _whole(profile, gpu, shape)
    if memory_shortfall(fewest, hardware, gpu, shape):
        return None
    return fewest, "RAM is too short to stream all: blocks that find no room in it are read from the disk in every pass"


def _whole(profile: Profile, gpu: Gpu, shape: JobShape | None) -> Profile:
    """With as many blocks on the GPU as it holds."""
    return counted(replace(profile, num_persistent_param_in_dit=None), gpu, shape)[0]


def counted(profile: Profile, gpu: Gpu, shape: JobShape | None = None) -> tuple[Profile, str]:
    """With the number of parameters that stay, where the profile leaves it open and it is not all of them; and why."""
    if profile.num_persistent_param_in_dit is not None or gpu.free_bytes is None:
        return profile, ""
    num_resident = first_rung(profile, shape or shape_of(profile), gpu.free_bytes).num_resident
    if num_resident == PUBLISHED_BLOCKS:
        return profile, ""
    counted = replace(profile, num_persistent_param_in_dit=persistent_parameters(num_resident))
    return counted, f"its free memory holds {num_resident} of {PUBLISHED_BLOCKS} blocks, the others are streamed"


def remedy(profile: Profile, hardware: Hardware, gpu: Gpu) -> str:
    """The nearest thing that fits: weights of 8 bits, then the smaller size, else the demo."""
    tries = [(replace(profile, num_persistent_param_in_dit=0), "--num-persistent-param-in-dit 0")]
    if profile.quant == "none":
        quant = eight_bits(gpu)
        tries.append((replace(tries[0][0], quant=quant, blocks_from_disk=None), f"--quant {quant}"))
    if profile.size == "720":
        tries.append((replace(tries[-1][0], size="480"), f"{tries[-1][1]} --size 480"))
    for smaller, words in tries:
        if not memory_shortfall(smaller, hardware, gpu):
            return f"this fits: {words}"
    held = (gpu.total_bytes or 0) - (gpu.free_bytes or 0)
    shape, free_bytes = shape_of(profile), gpu.free_bytes or 0
    if held > GIB and vram_bytes(shape, profile, first_rung(profile, shape, free_bytes)) > free_bytes:
        return f"other programs hold {_gb(held)} of GPU memory, `talk doctor` names them; --profile demo fits"
    return "--profile demo fits: small weights of its own"


def eight_bits(gpu: Gpu) -> Quant:
    """The 8-bit form that a card computes in; one that does not tell is taken for a new one."""
    return "int8" if gpu.capability is not None and gpu.capability < FP8_CAPABILITY else "fp8"


def _limit(hardware: Hardware) -> str:
    """Who limits the RAM, if it is not the machine itself."""
    if hardware.ram.cgroup is not None and hardware.ram.cgroup.room_bytes <= hardware.ram.available_bytes:
        return f" under the limit of the control group {hardware.ram.cgroup.folder}"
    if hardware.system.wsl is not None:
        return " in WSL: `memory` in .wslconfig sets it"
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
