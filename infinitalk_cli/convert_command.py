"""`talk weights convert`: compact weights out of the published ones.

Imported for `talk --help`, so what the command does is imported when it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli.console import Console, errors_as_exit_codes
from infinitalk_cli.console_options import ProgressOptions, WeightsDir
from infinitalk_cli.errors import WeightsError
from infinitalk_cli.options_values import Engine
from infinitalk_cli.request import parse_lora
from infinitalk_cli.weights import choose_engine, find_weights_dir

if TYPE_CHECKING:
    from infinitalk_cli.convert import Conversion, Recipe
    from infinitalk_cli.weights_record import Record


class CompactForm(str, Enum):
    """Forms of the compact transformer and text encoder."""

    bf16 = "bf16"
    fp8 = "fp8"
    int8 = "int8"


@dataclass(frozen=True)
class ConvertOptions(ProgressOptions):
    """Everything that `talk weights convert` can be told."""

    quant: Annotated[CompactForm, typer.Option(help="Form of the transformer and the text encoder.")] = CompactForm.bf16
    speakers: Annotated[int, typer.Option(min=1, max=2, help="For a run with so many speakers.")] = 1
    engine: Annotated[Engine | None, typer.Option(help="Which model.", show_default="the one that is there")] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]", help="Add a LoRA to the transformer, a file or a name of ours; several are summed."
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and make nothing.")] = False
    weights_dir: WeightsDir = None


def convert_weights(options: ConvertOptions) -> None:
    """Make compact files that load faster and let their sources go.

    Base and adapter become one file, the text encoder and the part of CLIP that is used one each. A conversion that was
    stopped goes on where it was. Runs take compact files by themselves, until a source changes.

    \b
    Examples:
    talk weights convert --quant fp8
    talk weights convert --speakers 2 --dry-run
    talk weights convert --quant fp8 --lora lightx2v.safetensors:0.8
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli.convert import is_done, refuse_full_disk
        from infinitalk_cli.weights_record import Record, locked

        folder = find_weights_dir(options.weights_dir)
        record = Record(folder)
        planned = plan(options, folder, record)
        to_make = [conversion for conversion in planned if not is_done(conversion, folder)]
        if not options.dry_run and to_make:
            with locked(folder, console.note):
                to_make = [conversion for conversion in to_make if not is_done(conversion, folder)]
                refuse_full_disk(to_make)
                make(to_make, folder, record, console)
        outcome = "need" if options.dry_run else "made"
        states = [outcome if conversion in to_make else "have" for conversion in planned]
        console.result(outcome_table(planned, states, folder), outcome_record(planned, states, folder))


def plan(options: ConvertOptions, folder: Path, record: "Record") -> list["Conversion"]:
    """What can be made of the files that are there. Raises: WeightsError: nothing, or not what was asked for."""
    from infinitalk_cli.convert import plan_image_encoder, plan_text_encoder, plan_transformer
    from infinitalk_cli.convert_when_it_pays import known_digest

    recipe = read_recipe(options, folder)
    sha256_of = known_digest(folder, record)
    transformer = plan_transformer(recipe, sha256_of)
    if transformer is None and recipe.loras:
        raise WeightsError(
            f"a LoRA is added to the plain transformer, and its files are not all in {folder}",
            hint=f"`talk download --speakers {options.speakers}` fetches them",
        )
    found = [transformer, plan_text_encoder(recipe, sha256_of), plan_image_encoder(recipe, sha256_of)]
    planned = [conversion for conversion in found if conversion is not None]
    if not planned:
        raise WeightsError(
            f"nothing to convert in {folder}: no plain transformer, text encoder or CLIP file is there",
            hint="`talk weights ls` shows what is there; published 8-bit files need no conversion",
        )
    return planned


def read_recipe(options: ConvertOptions, folder: Path) -> "Recipe":
    """The options as the engine wants them."""
    from infinitalk_cli.convert import Recipe
    from infinitalk_cli.memory.lora import read_lora
    from infinitalk_cli.run_loras import named_lora

    loras = [parse_lora(text, named_lora(folder)) for text in options.lora or ()]
    return Recipe(
        folder,
        options.quant.value,
        options.speakers,
        options.engine.value if options.engine else choose_engine(folder, num_speakers=options.speakers),
        [read_lora(lora.path, lora.scale) for lora in loras],
    )


def make(to_make: Sequence["Conversion"], folder: Path, record: "Record", console: Console) -> None:
    """Make the files, after a word on what their LoRAs do."""
    from infinitalk_cli.convert_when_it_pays import make_files

    for report in (report for conversion in to_make for report in conversion.reports):
        skipped = f", {len(report.skipped)} had no place" if report.skipped else ""
        console.note(f"LoRA {report.path.name}: {report.num_matched} tensors added{skipped}")
        for tensor in report.skipped:
            console.note(f"  without effect: {tensor.name}: {tensor.reason}")
    with console.progress() as on_progress:
        make_files(to_make, folder, record, on_progress)


def outcome_table(planned: Sequence["Conversion"], states: Sequence[str], folder: Path) -> str:
    """What was or would be made, for people."""
    from infinitalk_cli.weights_reports import gigabytes, table

    rows = [
        (conversion.path.relative_to(folder).as_posix(), gigabytes(conversion.num_bytes), state)
        for conversion, state in zip(planned, states, strict=True)
    ]
    freed = sum(source.size for conversion in planned for source in conversion.sources)
    told = f"made of {gigabytes(freed)}, which `talk weights rm FILE` may now delete; runs no longer read them"
    return table([("file", "size", "state"), *rows]) + ("" if "need" in states else f"\n{told}")


def outcome_record(planned: Sequence["Conversion"], states: Sequence[str], folder: Path) -> dict[str, object]:
    """The same for programs."""
    return {
        "weights_dir": str(folder),
        "files": [
            {
                "file": conversion.path.relative_to(folder).as_posix(),
                "bytes": conversion.num_bytes,
                "state": state,
                "sources": [source.place for source in conversion.sources],
                "loras": [
                    {
                        "file": str(report.path),
                        "matched": report.num_matched,
                        "skipped": [{"tensor": tensor.name, "reason": tensor.reason} for tensor in report.skipped],
                    }
                    for report in conversion.reports
                ],
            }
            for conversion, state in zip(planned, states, strict=True)
        ],
    }
