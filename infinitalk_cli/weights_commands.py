"""`talk weights ...`: what is on this machine, whether it is right and what could go.

Imported for `talk --help`, so what a command does is imported when it runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli.console import Console, errors_as_exit_codes
from infinitalk_cli.console_options import ConsoleOptions, ProgressOptions, WeightsDir, taking
from infinitalk_cli.convert_command import ConvertOptions, convert_weights
from infinitalk_cli.download_command import profile_quant
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.import_command import ImportOptions, import_weights
from infinitalk_cli.options_values import Engine, Quant
from infinitalk_cli.weights import find_weights_dir

if TYPE_CHECKING:
    from infinitalk_cli import weights
    from infinitalk_cli.manifest import Need
    from infinitalk_cli.weights_tree import TreeFile


@dataclass(frozen=True)
class ListOptions(ConsoleOptions):
    """Everything that `talk weights ls` can be told."""

    weights_dir: WeightsDir = None


@dataclass(frozen=True)
class PathOptions(ConsoleOptions):
    """Everything that `talk weights path` can be told."""

    file: Annotated[str | None, typer.Argument(help="A file as `ls` names it.", show_default="the folder")] = None
    weights_dir: WeightsDir = None


@dataclass(frozen=True)
class VerifyOptions(ProgressOptions):
    """Everything that `talk weights verify` can be told."""

    files: Annotated[list[str] | None, typer.Argument(help="Files or folders, with wildcards.", show_default="all")] = (
        None
    )
    full: Annotated[bool, typer.Option("--full", help="Read every byte and compare digests.")] = False
    weights_dir: WeightsDir = None


@dataclass(frozen=True)
class RemoveOptions(ConsoleOptions):
    """Everything that `talk weights rm` can be told."""

    files: Annotated[
        list[str] | None, typer.Argument(help="Files or folders to delete, with wildcards.", show_default="none")
    ] = None
    profile: Annotated[str | None, typer.Option(help="Keep what this profile needs, delete the rest.")] = None
    quant: Annotated[Quant | None, typer.Option(help="Keep this form, delete the rest.")] = None
    speakers: Annotated[
        int | None, typer.Option(min=1, max=2, help="Keep what so many speakers need.", show_default="1 and 2")
    ] = None
    engine: Annotated[Engine, typer.Option(help="Keep this model.")] = Engine.infinitetalk
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False
    weights_dir: WeightsDir = None


weights_app = typer.Typer(
    no_args_is_help=True,
    help="""The weights on this machine: what is there, whether it is right, what could go.

    \b
    Examples:
    talk weights ls
    talk weights verify --full
    talk weights import ComfyUI/models
    talk weights convert --quant fp8
    talk weights rm --quant fp8 --dry-run
    """,
)
weights_app.command("convert")(taking(ConvertOptions)(convert_weights))


@weights_app.command("ls")
@taking(ListOptions)
def list_weights(options: ListOptions) -> None:
    """Show what is there, and which runs it suffices for.

    \b
    Example:
    talk weights ls
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli.weights_record import Record
        from infinitalk_cli.weights_reports import tree_record, tree_table
        from infinitalk_cli.weights_tree import list_tree, sufficiencies

        folder = find_weights_dir(options.weights_dir)
        files, runs = list_tree(folder, Record(folder)), sufficiencies(folder)
        console.result(tree_table(folder, files, runs), tree_record(folder, files, runs))


@weights_app.command("path")
@taking(PathOptions)
def print_path(options: PathOptions) -> None:
    """Print the weights folder, or where one of its files is.

    \b
    Example:
    talk weights path Wan2.1-I2V-14B-480P/Wan2.1_VAE.pth
    """
    console = options.console()
    with errors_as_exit_codes(console):
        path = find_weights_dir(options.weights_dir) / (options.file or "")
        if options.file and (".." in Path(options.file).parts or not path.is_file()):
            raise WeightsError(f"there is no {path}", hint="`talk weights ls` shows what there is")
        console.result(str(path), {"path": str(path)})


@weights_app.command("verify")
@taking(VerifyOptions)
def verify_weights(options: VerifyOptions) -> None:
    """Check that the weights are whole: lengths and headers, or every byte with --full.

    \b
    Examples:
    talk weights verify
    talk weights verify --full InfiniteTalk
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli.download import Meter
        from infinitalk_cli.weights_record import Record
        from infinitalk_cli.weights_reports import findings_record, findings_table, verified_note
        from infinitalk_cli.weights_tree import check_tree, list_tree, matching

        folder = find_weights_dir(options.weights_dir)
        record = Record(folder)
        tree = list_tree(folder, record)
        tree = matching(tree, options.files) if options.files else tree
        meter = Meter(sum(file.size for file in tree), stage="verify")
        with console.progress() as on_progress:
            findings = list(check_tree(tree, record, full=options.full, on_bytes=meter.telling(on_progress)))
        damaged = [finding for finding in findings if finding.problem]
        if findings or options.as_json:
            console.result(findings_table(findings), findings_record(findings, tree))
        if not findings:
            raise no_weights(folder)
        if damaged:
            raise WeightsError(
                f"{len(damaged)} of {len(findings)} files are damaged",
                hint=f"delete them (`talk weights rm {damaged[0].place}`), then `talk download` fetches them again",
            )
        console.note(verified_note(findings, full=options.full))


def no_weights(folder: Path) -> WeightsError:
    """There is nothing where the weights should be."""
    return WeightsError(
        f"no weights are in {folder}" + ("" if folder.is_dir() else ", which is not there"),
        hint="`talk download` fetches them; if you have them, name their folder with --weights-dir or "
        "TALK_WEIGHTS_DIR, or take them over with `talk weights import DIR`",
    )


weights_app.command("import", no_args_is_help=True)(taking(ImportOptions)(import_weights))


@weights_app.command("rm", no_args_is_help=True)
@taking(RemoveOptions)
def remove_weights(options: RemoveOptions) -> None:
    """Delete what a profile does not need, or named files, and say which and how much room that made.

    Only files that `talk download` can fetch again are deleted unless they are named. LoRAs and voices stay.

    \b
    Examples:
    talk weights rm --profile rtx-4090 --dry-run
    talk weights rm --quant fp8 --speakers 1 --yes
    talk weights rm InfiniteTalk/multi
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli.weights_record import Record, locked
        from infinitalk_cli.weights_reports import removal_record, removal_table, removed_text
        from infinitalk_cli.weights_tree import remove_files

        folder = find_weights_dir(options.weights_dir)
        chosen = chosen_files(options, folder)
        if options.dry_run or not chosen:
            console.result(removal_table(chosen), removal_record(chosen, freed_bytes=0))
            return
        if not options.yes:
            confirm(removal_table(chosen), console)
        with locked(folder, console.note):
            freed = remove_files(folder, chosen, Record(folder))
        console.result(removed_text(chosen, freed), removal_record(chosen, freed_bytes=freed))


def chosen_files(options: RemoveOptions, folder: Path) -> Sequence["TreeFile"]:
    """What the options want to be deleted: the files that they name, or those that nothing they keep needs."""
    from infinitalk_cli.weights_record import Record
    from infinitalk_cli.weights_tree import list_tree, matching, unneeded

    if bool(options.files) == bool(options.profile or options.quant):
        raise InputError("either name files, or say what to keep with --profile or --quant")
    tree = list_tree(folder, Record(folder))
    if options.files:
        return matching(tree, options.files)
    quant = options.quant.value if options.quant else profile_quant(options.profile or "default")
    return unneeded(folder, tree, kept_needs(quant, options.speakers, options.engine.value))


def kept_needs(quant: "weights.Quant", speakers: int | None, engine: "weights.Engine") -> list["Need"]:
    """The runs whose files stay. LoRAs and voices are small and were asked for by name: all of them stay."""
    from infinitalk_cli.manifest import LORAS, Need
    from infinitalk_cli.voices import VOICES

    return [
        Need(number, quant, engine, loras=tuple(LORAS), voices=VOICES)
        for number in ((speakers,) if speakers else (1, 2))
    ]


def confirm(question: str, console: Console) -> None:
    """Ask on a terminal. Raises: InputError: elsewhere, where nobody can answer."""
    if not sys.stdin.isatty():
        raise InputError("nothing was deleted: off a terminal, --yes has to be said")
    console.note(question)
    typer.confirm("delete them?", abort=True, err=True)
