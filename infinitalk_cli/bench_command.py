"""`talk bench`: its options. The engine is imported when it runs, so that help stays quick."""

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from infinitalk_cli.bench_store import store_bench
from infinitalk_cli.console import errors_as_exit_codes
from infinitalk_cli.console_options import ProgressOptions, taking
from infinitalk_cli.errors import InputError


@dataclass(frozen=True)
class BenchOptions(ProgressOptions):
    """Everything that `talk bench` can be told."""

    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WHAT]...",
            help="A stage: first-pass, load, text, image, audio, vae, color, attention, ceilings. Or a way to "
            "run the transformer: bf16, fp8, int8, each with any of -streamed, -plain, -two-speakers, and one of the "
            "8-bit attentions: -attention8 (cuDNN), -qk8 or -qkv8 (int8 scores; fp8 values too).",
            show_default="ceilings bf16 fp8",
        ),
    ] = None
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Of the real size; times don't depend on their values.")
    ] = False
    size: Annotated[str, typer.Option(metavar="HxW", help="Height and width in pixels.")] = "448x896"
    repeats: Annotated[int, typer.Option(help="Times to measure each.", min=1)] = 5
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cuda"
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks, to try the command.")] = False


@taking(BenchOptions)
def bench(options: BenchOptions) -> None:
    """Time the networks on this machine: a table, then one line of JSON.

    \b
    Examples:
    talk bench --random-weights
    talk bench --random-weights fp8 fp8-streamed --size 704x1280
    talk bench --random-weights --tiny --device cpu bf16
    """
    console = options.console()
    with errors_as_exit_codes(console):
        if not options.random_weights:
            raise InputError("bench measures with random weights only", hint="add --random-weights")
        height, width = read_size(options.size)
        from infinitalk_cli.bench import BenchWishes, Measured, result_line, result_table, run_bench  # torch loads here

        chosen = tuple(options.names or ("ceilings", "bf16", "fp8"))
        wishes = BenchWishes(chosen, height, width, options.repeats, options.device, is_tiny=options.tiny)
        figures: list[Measured] = []

        def tell(found: Measured) -> None:
            figures.append(found)
            console.note(result_line(found))

        with console.progress() as on_progress:
            record = run_bench(wishes, tell, on_progress)
        console.note(result_table(figures))
        if not options.tiny and (path := store_bench(record)):
            console.note(f"kept in {path} for the estimates of talk generate")
        console.result(json.dumps(record), record)


def read_size(text: str) -> tuple[int, int]:
    """Height and width. Raises: InputError: if they are no multiples of 16."""
    height, _, width = text.partition("x")
    sides = [int(side) if side.isascii() and side.isdecimal() else 0 for side in (height, width)]
    if any(side == 0 or side % 16 for side in sides):
        raise InputError(f"--size must be height x width, multiples of 16 such as 448x896, not {text!r}")
    return sides[0], sides[1]
