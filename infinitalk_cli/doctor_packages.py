"""Checks of the installed packages: present, in the tested range, built for this GPU. By metadata, nothing is imported.

Ranges are those of the package's own requirements. No resolver knows which transformers works on an older torch, and
none knows a torch that was built without CUDA from one that was; both are told here.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping

from infinitalk_cli.doctor_machine import Check
from infinitalk_cli.hardware import Gpu, Hardware
from infinitalk_cli.profile_table import Attention

Version = tuple[int, ...]

FLOORS: dict[str, str] = {
    "av": "15",
    "einops": "0.8",
    "ftfy": "6",
    "huggingface_hub": "0.26",
    "librosa": "0.10.2",
    "numpy": "1.26",
    "pillow": "10",
    "platformdirs": "4",
    "psutil": "5.9",
    "pydantic": "2.7",
    "pyloudnorm": "0.1.1",
    "rich": "13.8",
    "safetensors": "0.4.3",
    "soxr": "0.3.2",
    "tokenizers": "0.21",
    "torch": "2.4",
    "transformers": "4.49",
    "typer": "0.16",
}
"""The oldest version of each package that a run works with."""

CEILINGS: dict[str, str] = {"transformers": "6", "huggingface_hub": "3", "pydantic": "3"}
"""The first version that was not tested."""

NEWEST_TRANSFORMERS: dict[Version, str] = {(2, 4): "5.8", (2, 5): "5.18"}
"""On these torch releases: the first transformers that fails."""

BAD_TORCH = {
    "2.8.0": "leaks RAM whenever a network is swapped for another",
    "2.9.0": "takes many times the memory for 3-D convolutions, so the video VAE does not fit",
}
"""Releases of torch that users report as bad."""

TRITON = "triton-windows" if platform.system() == "Windows" else "triton"
"""The distribution of Triton; torch brings it along on Linux."""

PACKAGE_OF_KERNEL: dict[Attention, tuple[str, str]] = {
    "sage": ("sageattention", '"infinitalk-cli[sage]"'),
    "fp8": ("nvidia-cudnn-frontend", '"infinitalk-cli[cudnn]"'),
    "int8": (TRITON, TRITON),
}
"""The package behind an attention kernel, and what to install for it."""

CUDA_OF_CAPABILITY: dict[int, tuple[int, int]] = {8: (11, 0), 9: (11, 8), 10: (12, 8), 11: (13, 0), 12: (12, 8)}
"""The oldest CUDA that builds for each generation of cards."""

FIRST_CUDA_WITHOUT: dict[int, tuple[int, int]] = {5: (13, 0), 6: (13, 0), 7: (13, 0)}
"""Generations that builds of this CUDA and newer leave out; of 7, Turing (7.5) stays."""

ONLY_FOR_TESTS = ("librosa",)
"""What the package asks for and no run imports: absent, it is worth a note."""

INSTALL_TORCH = "python -m pip install uv && uv pip install --upgrade --torch-backend=auto torch"


def package_checks(
    versions: Mapping[str, str | None],
    torch_cuda: tuple[int, int] | None,
    encoders: frozenset[str],
    hardware: Hardware,
    gpu: Gpu | None,
    attention: Attention = "auto",
) -> Iterator[Check]:
    """Every check of a package, torch first. `attention`: the kernel that the profile asks for."""
    yield _check_torch(versions.get("torch"))
    if versions.get("torch") is not None and hardware.gpus:
        yield _check_build(torch_cuda, hardware, gpu)
    yield _check_transformers(versions.get("transformers"), versions.get("torch"))
    yield _check_others(versions)
    yield _check_encoders(encoders)
    yield _check_attention(versions, attention)
    yield _check_extras(versions)


def parse_version(text: str) -> Version:
    """The numbers of a version: "2.13.0+cpu" is (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def range_problem(name: str, version: str | None) -> str:
    """What is wrong with a version, "" if nothing."""
    if version is None:
        return f"{name} is not installed"
    if parse_version(version) < parse_version(FLOORS[name]):
        return f"{name} {version} is older than {FLOORS[name]}"
    if name in CEILINGS and parse_version(version) >= parse_version(CEILINGS[name]):
        return f"{name} {version} is newer than what was tested (below {CEILINGS[name]})"
    return ""


def _check_torch(version: str | None) -> Check:
    if problem := range_problem("torch", version):
        return Check("torch", False, True, problem, INSTALL_TORCH)
    for bad, why in BAD_TORCH.items():
        if parse_version(version or "") == parse_version(bad):
            return Check("torch", False, True, f"{bad} {why}", INSTALL_TORCH)
    return Check("torch", True, True, version or "")


def _check_build(torch_cuda: tuple[int, int] | None, hardware: Hardware, gpu: Gpu | None) -> Check:
    """Whether this build of torch can use this driver and this card."""
    name = "torch build"
    if torch_cuda is None:
        return Check(name, False, True, "your torch has no CUDA, so the GPU stays idle", INSTALL_TORCH)
    built = f"for CUDA {_dotted(torch_cuda)}"
    newest = hardware.driver.cuda_version
    if newest is not None and newest[0] < torch_cuda[0]:
        detail = f"{built}, but the driver runs CUDA up to {_dotted(newest)}"
        return Check(name, False, True, detail, f"update the NVIDIA driver, or: {INSTALL_TORCH}")
    capability = gpu.capability if gpu else None
    if capability is None:
        return Check(name, True, True, built)
    problem = _capability_problem(capability, torch_cuda)
    return Check(name, not problem, True, f"{built}{problem}", INSTALL_TORCH if problem else "")


def _capability_problem(capability: tuple[int, int], torch_cuda: tuple[int, int]) -> str:
    least = CUDA_OF_CAPABILITY.get(capability[0])
    if least is not None and torch_cuda < least:
        return f", but compute capability {_dotted(capability)} needs a build for CUDA {_dotted(least)} or newer"
    gone = FIRST_CUDA_WITHOUT.get(capability[0])
    if gone is not None and capability != (7, 5) and torch_cuda >= gone:
        return f", which no longer serves compute capability {_dotted(capability)}"
    return ""


def _check_transformers(version: str | None, torch: str | None) -> Check:
    fix = 'python -m pip install "transformers>=4.49,!=5.0.*,!=5.1.*,!=5.2.*,<6"'
    if problem := range_problem("transformers", version):
        return Check("transformers", False, True, problem, fix)
    found = parse_version(version or "")
    if (5, 0) <= found < (5, 3):
        return Check("transformers", False, True, f"{version} loads UMT5 with wrong embeddings", fix)
    newest = NEWEST_TRANSFORMERS.get(parse_version(torch or "")[:2])
    if newest is not None and found >= parse_version(newest):
        detail = f"{version} does not work on torch {torch}"
        return Check("transformers", False, True, detail, f'python -m pip install "transformers<{newest}"')
    return Check("transformers", True, True, version or "")


def _check_others(versions: Mapping[str, str | None]) -> Check:
    """The rest of what a run needs, in one line."""
    names = [name for name in FLOORS if name not in ("torch", "transformers")]
    wrong = {name: problem for name in names if (problem := range_problem(name, versions.get(name)))}
    if wrong:
        required = any(name not in ONLY_FOR_TESTS for name in wrong)
        wanted = " ".join(f'"{name}>={FLOORS[name]}{_below(name)}"' for name in wrong)
        unneeded = "" if required else "; no run needs it"
        detail = "; ".join(wrong.values()) + unneeded
        return Check("packages", False, required, detail, f"python -m pip install {wanted}")
    hub = versions.get("huggingface_hub")
    return Check("packages", True, True, f"{len(names)} in their tested ranges, huggingface_hub {hub}")


def _below(name: str) -> str:
    return f",<{CEILINGS[name]}" if name in CEILINGS else ""


def _check_encoders(encoders: frozenset[str]) -> Check:
    missing = [name for name in ("libx264", "aac") if name not in encoders]
    if missing:
        fix = "python -m pip install --force-reinstall --only-binary av av"
        return Check("video", False, True, f"PyAV has no encoder {' and no '.join(missing)}", fix)
    return Check("video", True, True, "PyAV encodes H.264 and AAC")


def _check_attention(versions: Mapping[str, str | None], wish: Attention) -> Check:
    """The optional kernels; torch's own serve otherwise."""
    package, wanted = PACKAGE_OF_KERNEL.get(wish, ("", ""))
    if package and not versions.get(package):
        detail = (
            f"the profile asks for {wish}, and {package} is not installed: the fastest exact kernel is used instead"
        )
        return Check("attention", False, False, detail, f"python -m pip install {wanted}")
    there = [f"{name} {versions[name]}" for name in ("flash-attn", "sageattention") if versions.get(name)]
    if there:
        return Check("attention", True, False, f"{', '.join(there)}; --deep tries their kernels")
    own = "; --attention 8bit is faster and less exact" if versions.get(TRITON) else ""
    return Check("attention", True, False, f"torch's own kernels{own}")


def _check_extras(versions: Mapping[str, str | None]) -> Check:
    """What some jobs need and most don't."""
    extras = {"kokoro": ("speech from text", "tts"), "scenedetect": ("scene cuts", "dub")}
    told = [
        f"{what} by {name} {versions[name]}"
        if versions.get(name)
        else f'no {what} (pip install "infinitalk-cli[{extra}]")'
        for name, (what, extra) in extras.items()
    ]
    return Check("extras", True, False, "; ".join(told))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
