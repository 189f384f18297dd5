"""Which LoRAs a run adds to its transformer: those that the user names, else the preset's.

None is added twice: some files of the transformer hold LoRAs already, and one on top of itself is as if it were applied
at twice its strength. A compact file names the LoRAs that were merged into it; they are compared by their samples, so
that a renamed copy is found too. Of the published merged files only the kind is known, a speed LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import prod
from pathlib import Path

from infinitalk_cli.compact import FOLDER, recorded_loras, recorded_sources, sample_digest
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.file_headers import DamagedHeaderError, read_safetensors_header
from infinitalk_cli.manifest import LORAS
from infinitalk_cli.profiles import Profile
from infinitalk_cli.request import LoraFile
from infinitalk_cli.weights import WeightFiles

LOW_RANK = re.compile(r"\.lora_(down|up|A|B)\b")
"""In the names of a LoRA's two matrices."""

MERGED = ("_lora", "_FusionX")
"""How the names of files end that have LoRAs in them."""


def loras_of_run(
    named: tuple[LoraFile, ...], profile: Profile, files: WeightFiles, weights_dir: Path
) -> tuple[LoraFile, ...]:
    """The LoRAs that the user named, else the preset's.

    Raises: InputError: for one that is in the weights already. WeightsError: if the preset's is not there.
    """
    transformer = files.dit_shards[0]
    for lora in named:
        if holds(transformer, lora.path):
            raise _twice(transformer, lora.path)
    if named or not profile.lora:
        return named
    path = weights_dir / LORAS[profile.lora].place
    if holds(transformer, path):
        return ()
    if not path.is_file():
        raise WeightsError(
            f"the preset's LoRA is missing: {path}",
            hint=f"talk download --quant {files.quant} --lora {profile.lora} fetches it",
        )
    return (LoraFile(path, profile.lora_scale),)


def named_lora(weights_dir: Path | None) -> Callable[[str], Path]:
    """What a name on the command line means: a file, or else the LoRA that `talk download` fetches by that name.

    The answer raises: WeightsError: if the folder lacks that one.
    """

    def find(name: str) -> Path:
        path = Path(name)
        if weights_dir is None or name not in LORAS or path.is_file():
            return path
        fetched = weights_dir / LORAS[name].place
        if not fetched.is_file():
            raise WeightsError(
                f"the LoRA {name} is not there: {fetched}", hint=f"talk download --only lora --lora {name} fetches it"
            )
        return fetched

    return find


def parameters_beside(loras: Iterable[LoraFile]) -> int:
    """Numbers in the low-rank matrices of LoRA files, by their headers; of a file without one, all that it may hold.

    A file that can't be read counts nothing: loading it will tell.
    """
    found = 0
    for lora in loras:
        with suppress(OSError, DamagedHeaderError):
            if lora.path.suffix == ".safetensors":
                shapes = read_safetensors_header(lora.path).items()
                found += sum(prod(shape) for name, (_, shape) in shapes if LOW_RANK.search(name))
            else:
                found += lora.path.stat().st_size // 2
    return found


def holds(transformer: Path, lora: Path) -> bool:
    """Whether a file of the transformer has this LoRA in it, or a published one another speed LoRA."""
    if not transformer.stem.endswith(MERGED):
        return False
    if transformer.parent.name != FOLDER:
        return lora.name in {file.place for file in LORAS.values()}
    if not lora.is_file():
        return lora.name in {Path(name).name for name in recorded_loras(transformer)}
    return sample_digest(lora) in {source.samples for source in recorded_sources(transformer) or ()}


def _twice(transformer: Path, lora: Path) -> InputError:
    if transformer.parent.name == FOLDER:
        return InputError(
            f"{lora} is in {transformer} already and would be applied twice",
            hint=f"leave --lora out, or `talk weights rm {FOLDER}/{transformer.name}` to add LoRAs at each run",
        )
    return InputError(
        f"{transformer} has a speed LoRA in it already; {lora.name} would be a second one",
        hint="leave --lora out, or fetch the weights without one (`talk download`)",
    )
