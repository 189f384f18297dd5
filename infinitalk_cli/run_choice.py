"""From all that was said - options, environment, files - and from the machine to the profile of one run.

`choose_run` settles which profile, preset and GPU; it keeps what was said apart from what follows from it, so that
`talk profiles show` can name the origin of every value. `estimate_run` predicts that run; `find_misfit` says
before anything is loaded that it can't succeed.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from infinitalk_cli.bench_store import MeasuredStages, measured_flops_per_s, measured_stages
from infinitalk_cli.errors import DoesNotFitError, EnvironmentUnfitError, InputError, WeightsError
from infinitalk_cli.estimate import Estimate, Rate, estimate, rate_of
from infinitalk_cli.footprint import PUBLISHED, JobShape
from infinitalk_cli.hardware import Gpu, Hardware, choose_gpu, choose_gpus, too_few_gpus, usable_ram_bytes
from infinitalk_cli.models.config import DiTConfig
from infinitalk_cli.profile_choice import Choice, choose_profile, counted, fit, memory_shortfall, remedy
from infinitalk_cli.profiles import (
    AUTO,
    Engine,
    Preset,
    Profile,
    Quant,
    Wishes,
    find_preset,
    find_profile,
    settle,
    settled_origins,
)
from infinitalk_cli.settings_files import Setting
from infinitalk_cli.weights import BASE, locate

FIELD_OF_KEY = {
    "size": "size",
    "quant": "quant",
    "num_persistent_param_in_dit": "num_persistent_param_in_dit",
    "frames": "chunk_frames",
    "motion_frames": "motion_frames",
    "steps": "num_steps",
    "shift": "shift",
    "text_guidance": "text_guidance_scale",
    "audio_guidance": "audio_guidance_scale",
    "attention": "attention",
    "vae_dtype": "vae_dtype",
    "vae_tiling": "vae_tiling",
    "text_encoder": "text_encoder",
    "lora_mode": "lora_mode",
}
"""Settings that are wishes, by the profile's field."""


@dataclass(frozen=True)
class Said:
    """What the user said in all places, the nearest of each. `device`: the option, which chooses no profile."""

    settings: Mapping[str, Setting]
    device: str = AUTO

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        return self.settings[key].value if key in self.settings else default

    @property
    def wishes(self) -> Wishes:
        """What is wished of the profile."""
        return Wishes(**{field: self.value(key) for key, field in FIELD_OF_KEY.items()})

    def only_options(self) -> Said:
        """Without what stands in files and variables, save for the profile itself."""
        kept = {key: said for key, said in self.settings.items() if key == "profile" or said.origin.startswith("--")}
        return replace(self, settings=kept)


@dataclass(frozen=True)
class RunChoice:
    """The profile of a run before the engine is known. `base`: its row; `choice`: with the machine's say."""

    said: Said
    hardware: Hardware
    choice: Choice
    base: Profile
    preset: Preset | None

    @property
    def gpu(self) -> Gpu | None:
        """The GPU of the run, None for the CPU."""
        return self.choice.gpu

    def profile(self, engine: Engine) -> Profile:
        """The settled profile."""
        chosen = replace(
            self.base,
            quant=self.choice.profile.quant,
            num_persistent_param_in_dit=self.choice.profile.num_persistent_param_in_dit,
        )
        return settle(chosen, self.said.wishes, engine, self.preset)

    def origins(self) -> dict[str, str]:
        """Where each value of the settled profile comes from, in words."""
        told = {
            field: self.said.settings[key].origin for key, field in FIELD_OF_KEY.items() if key in self.said.settings
        }
        found = settled_origins(self.base, self.said.wishes, self.preset, told)
        settled = self.profile("infinitetalk")
        for name in ("quant", "num_persistent_param_in_dit"):
            if name not in told and getattr(settled, name) != getattr(self.base, name):
                found[name] = "this machine"
        return found


def choose_run(said: Said, hardware: Hardware) -> RunChoice:
    """The profile for what was said on this machine.

    Raises: InputError: for an unknown name, or a preset for the demo. EnvironmentUnfitError: for a GPU that is not
    there.
    """
    name = said.value("profile", AUTO)
    base = None if name == AUTO else find_profile(name)
    if base is not None and base.demo_weights:
        return _demo(said, hardware, base)
    preset = find_preset(said.value("preset")) if said.value("preset") else None
    gpu_wish = _gpu_wish(said, hardware)
    if base is None and said.device != "cpu":
        with _gpu_by_origin(said):
            choice = choose_profile(hardware, said.wishes, gpu_wish=gpu_wish, preset=preset)
        return RunChoice(said, hardware, choice, find_profile(choice.profile.name), preset)
    base = base or find_profile("default")
    with _gpu_by_origin(said):
        gpu = None if said.device == "cpu" else choose_gpu(hardware, gpu_wish)
    settled = settle(base, said.wishes, "infinitetalk", preset)
    why = (
        f"asked for by {said.settings['profile'].origin}" if name != AUTO else "--device cpu: the models' own settings"
    )
    settled, reason = (settled, "") if gpu is None else counted(settled, gpu)
    return RunChoice(said, hardware, Choice(settled, gpu, (why, reason) if reason else (why,)), base, preset)


def with_quant(run: RunChoice, quant: Quant) -> RunChoice:
    """The run with another form of the weights, which is there while the preferred one is not."""
    gpu = run.gpu
    if gpu is None:
        return run
    wishes = replace(run.said.wishes, quant=quant)
    choice = fit(run.base, run.hardware, gpu, wishes, preset=run.preset, reasons=run.choice.reasons)
    form = "bfloat16" if quant == "none" else quant
    return replace(run, choice=replace(choice, reasons=(*choice.reasons, f"{form} weights are there, others are not")))


def with_weights_there(run: RunChoice, weights_dir: Path | None, *, num_speakers: int) -> RunChoice:
    """Of the forms of the weights that fit, the one that is there, if the preferred one is not."""
    preferred = run.profile("infinitetalk").quant
    if weights_dir is None or run.gpu is None or run.base.demo_weights or "quant" in run.said.settings:
        return run
    if "profile" in run.said.settings and run.said.value("profile") != AUTO:
        return run
    forms: tuple[Quant, ...] = (preferred, *(form for form in ("fp8", "int8", "none") if form != preferred))
    for form in forms:
        try:
            locate(weights_dir, num_speakers=num_speakers, quant=form)
        except WeightsError:
            continue
        other = run if form == preferred else with_quant(run, form)
        return other if other.choice.fits or form == preferred else run
    return run


def refuse_gpuless(run: RunChoice) -> None:
    """Refuse a run that would silently become a demo. Raises: EnvironmentUnfitError: with what does run."""
    if run.base.demo_weights and run.said.value("profile", AUTO) == AUTO:
        raise EnvironmentUnfitError(
            f"{run.choice.reasons[0]}, and the published weights need one",
            hint="--profile demo runs here, on small weights that know drawn people alone; "
            "`talk doctor` says what is missing",
        )


def gpus_of(run: RunChoice, number: int) -> tuple[Gpu, ...]:
    """The GPUs that are to share a run, the profile's first; none for the CPU, or where torch alone knows them.

    Raises: EnvironmentUnfitError: if there are fewer.
    """
    if run.gpu is not None:
        return choose_gpus(run.hardware, run.gpu, number)
    if number > 1 and run.said.device != "cuda":
        raise too_few_gpus(number, 0)
    return ()


def find_misfit(run: RunChoice, profile: Profile, shape: JobShape, sizes: DiTConfig) -> DoesNotFitError | None:
    """Why a run can't fit, with the number needed and what would fit; None if it does."""
    shortfall = memory_shortfall(profile, run.hardware, run.gpu, shape, sizes)
    if not shortfall:
        return None
    hint = remedy(profile, run.hardware, run.gpu) if run.gpu else "--profile demo fits: small weights of its own"
    if profile.demo_weights:
        hint = "without --weights-dir the demo runs on small weights of its own, which fit"
    return DoesNotFitError(f"the {profile.name} profile {shortfall}", hint=hint)


def estimate_run(
    run: RunChoice, profile: Profile, shape: JobShape, sizes: DiTConfig = PUBLISHED, *, num_gpus: int = 1
) -> Estimate:
    """Predict the run of a settled profile."""
    free_bytes = run.gpu.free_bytes if run.gpu else None
    free_ram_bytes = usable_ram_bytes(run.hardware)
    measured = measured_flops_per_s(run.gpu.name, profile.quant) if run.gpu else None
    rate = rate_of(run.gpu, measured)
    if run.gpu is not None:
        rate = with_stages(rate, measured_stages(run.gpu.name), profile)
    return estimate(
        shape, profile, rate, free_bytes=free_bytes, free_ram_bytes=free_ram_bytes, sizes=sizes, num_gpus=num_gpus
    )


def with_stages(rate: Rate, measured: MeasuredStages, profile: Profile) -> Rate:
    """The rate with what was measured of reading and of the VAE."""
    exact = profile.vae_dtype == "float32"
    vae = measured.vae_s_per_pixel_exact if exact else measured.vae_s_per_pixel_fast
    read = measured.read_bytes_per_s
    return replace(rate, vae_s_per_pixel=vae, **({} if read is None else {"read_bytes_per_s": read}))


def read_sizes(weights_dir: Path) -> DiTConfig | None:
    """The transformer's sizes from its config.json; None where that can't be read, which loading then tells."""
    try:
        stored = json.loads((weights_dir / BASE / "config.json").read_text(encoding="utf-8"))
        sizes = DiTConfig.from_json(stored)
    except (OSError, ValueError, TypeError):
        return None
    same = ("dim", "ffn_dim", "num_layers")
    return PUBLISHED if all(getattr(sizes, name) == getattr(PUBLISHED, name) for name in same) else sizes


def values_of(run: RunChoice) -> list[tuple[str, Any, str]]:
    """Every field of the settled profile with its value and origin."""
    settled, origins = run.profile("infinitetalk"), run.origins()
    hidden = ("name", "description", "lora_parameters", "blocks_from_disk", "demo_weights")
    return [(f.name, getattr(settled, f.name), origins[f.name]) for f in fields(Profile) if f.name not in hidden]


def _demo(said: Said, hardware: Hardware, base: Profile) -> RunChoice:
    """The demo heeds options alone: what files say is meant for the published weights."""
    said = said.only_options()
    if "preset" in said.settings:
        raise InputError("--preset has no effect on the demo profile", hint="--steps sets its steps")
    settled = settle(base, said.wishes, "infinitetalk")
    gpu = None if said.device == "cpu" else choose_gpu(hardware, _gpu_wish(said, hardware))
    return RunChoice(said, hardware, Choice(settled, gpu, ("small weights of its own",)), base, None)


@contextmanager
def _gpu_by_origin(said: Said) -> Generator[None]:
    """Name the file or variable that asks for a GPU which can't be had; an option is named already."""
    try:
        yield
    except (InputError, EnvironmentUnfitError) as error:
        setting = said.settings.get("gpu")
        if setting is None or setting.origin.startswith("--"):
            raise
        raise type(error)(f"{setting.origin}: {error.message}", hint=error.hint) from error


def _gpu_wish(said: Said, hardware: Hardware) -> str | None:
    """The wish of `--gpu`, or the card that `--device cuda:N` means: torch's numbers are CUDA's order."""
    wish = said.value("gpu")
    if wish is not None:
        return str(wish)
    number = said.device.removeprefix("cuda:")
    if number.isdigit() and int(number) < len(hardware.visible_gpus):
        return hardware.visible_gpus[int(number)].label
    return None
