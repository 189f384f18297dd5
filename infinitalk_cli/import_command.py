"""`talk weights import`: weights that another program keeps on this machine, taken over.

Imported for `talk --help`, so what the command does is imported when it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli.console import Console, errors_as_exit_codes
from infinitalk_cli.console_options import ProgressOptions, WeightsDir
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.weights import find_weights_dir

if TYPE_CHECKING:
    from infinitalk_cli.hub import RemoteFile
    from infinitalk_cli.manifest import HubFile
    from infinitalk_cli.weights_import import Imported, Match, Wanted


@dataclass(frozen=True)
class ImportOptions(ProgressOptions):
    """Everything that `talk weights import` can be told."""

    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where another program keeps its weights.")]
    weights_dir: WeightsDir = None
    symlink: Annotated[bool, typer.Option("--symlink", help="From another disk, link by name instead of copying.")] = (
        False
    )
    offline: Annotated[
        bool, typer.Option("--offline", help="Recognise by known sums and names; don't ask the hub.")
    ] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be taken, and take nothing.")] = False


def import_weights(options: ImportOptions) -> None:
    """Take over weights that are on this machine already, without a second copy on the same disk.

    \b
    Examples:
    talk weights import weights
    talk weights import ComfyUI/models --dry-run
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli.weights_import import wanted_places
        from infinitalk_cli.weights_record import locked
        from infinitalk_cli.weights_reports import import_record, import_table

        folder = options.folder
        if not folder.is_dir():
            raise InputError(f"no such folder: {folder}")
        target = find_weights_dir(options.weights_dir)
        wanted = wanted_places(target, remote_files(offline=options.offline, console=console))
        matches = compare_all(wanted, folder, target, console)
        if options.dry_run:
            console.result(import_table(matches, []), import_record(matches, []))
            return
        with locked(target, console.note):
            done = bring_all(matches, target, console, symlink=options.symlink)
        console.result(import_table(matches, done), import_record(matches, done))


def compare_all(wanted: Sequence["Wanted"], folder: Path, target: Path, console: Console) -> list["Match"]:
    """What of the folder belongs into the tree, with progress, for large files take their time to read."""
    from infinitalk_cli.download import Meter
    from infinitalk_cli.weights_import import (
        Sources,
        choose_other_forms,
        damaged_files,
        find_matches,
        match_other_form,
    )

    console.note(f"comparing the files of {folder}")
    meter = Meter(0, stage="compare")
    with console.progress() as on_progress:
        sources = Sources(folder, meter.telling(on_progress))
        meter.total_bytes = sources.bytes_to_compare(wanted)
        matches = list(find_matches(wanted, sources))
        others = choose_other_forms(target, matches, sources)
        meter.total_bytes += sum(path.stat().st_size for path in others)
        matches += [match_other_form(path, sources) for path in others]
    for path, problem in damaged_files(sources):
        console.note(f"note: {path} is not taken, it is damaged: {problem}")
    return matches


def bring_all(matches: Sequence["Match"], target: Path, console: Console, *, symlink: bool) -> list["Imported"]:
    """Put the matched files into the tree."""
    from infinitalk_cli.download import Meter
    from infinitalk_cli.weights_import import bring
    from infinitalk_cli.weights_record import Record

    meter, record = Meter(sum(match.size for match in matches), stage="import"), Record(target)
    with console.progress() as on_progress:
        count = meter.telling(on_progress)
        return [bring(match, target, record, symlink=symlink, on_bytes=count) for match in matches]


def remote_files(*, offline: bool, console: Console) -> Callable[["HubFile"], "RemoteFile | None"]:
    """What the hub says of each file, asked when it is first wanted.

    Nothing of a repository that it refuses, and nothing at all once it can't be reached.
    """
    from infinitalk_cli.hub import Hub, UnreachableError
    from infinitalk_cli.hub_listings import Listings

    hub = None if offline else Hub(on_note=console.note)
    if hub is None or hub.is_offline:
        return lambda file: None
    listings, silent = Listings(hub, console.note), set[str]()
    everything = ""

    def remote_of(file: "HubFile") -> "RemoteFile | None":
        if silent & {everything, file.repository}:
            return None
        try:
            return listings.of(file).get(file.path)
        except UnreachableError as error:
            silent.add(everything)
            console.note(f"note: going by known sums and names alone: {error.message}")
        except WeightsError as error:
            silent.add(file.repository)
            console.note(f"note: going by known sums and names for files of {file.repository}: {error.message}")
        return None

    return remote_of
