"""`talk download`: its options, its way from a wish to a filled folder, and what it says.

Imported for `talk --help`, so what the command does is imported when it runs, and the hub's library later still: only
when the record of the folder can't answer alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli.console import Console, errors_as_exit_codes
from infinitalk_cli.errors import InputError
from infinitalk_cli.options import Engine, Quant, taking
from infinitalk_cli.profiles import PROFILES, find_profile
from infinitalk_cli.weights import find_weights_dir

if TYPE_CHECKING:
    from infinitalk_cli import weights
    from infinitalk_cli.download import Outcome
    from infinitalk_cli.download_plan import Plan
    from infinitalk_cli.hub import Hub
    from infinitalk_cli.manifest import HubFile, Need

WHAT, HOW, OUTPUT = "What", "How", "Output"

QUANT_OF_CARD: dict[str, "weights.Quant"] = {"rtx-4090": "fp8", "rtx-3090": "int8"}
"""Forms for cards that have no profile of their own: Ada computes in fp8, Ampere doesn't."""


@dataclass(frozen=True)
class DownloadOptions:
    """Everything that `talk download` can be told."""

    profile: Annotated[
        str, typer.Option(help="The profile that will run, such as default or rtx-4090.", rich_help_panel=WHAT)
    ] = "default"
    speakers: Annotated[int, typer.Option(min=1, max=2, help="People who speak.", rich_help_panel=WHAT)] = 1
    quant: Annotated[
        Quant | None,
        typer.Option(help="Form of the weights.", show_default="the profile's", rich_help_panel=WHAT),
    ] = None
    engine: Annotated[Engine, typer.Option(help="Whose model.", rich_help_panel=WHAT)] = Engine.infinitetalk
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also a speed LoRA: lightx2v (4 steps), lightx2v-rank32, lightx2v-t2v or fusionx (8 steps). "
            "May be repeated.",
            rich_help_panel=WHAT,
        ),
    ] = None
    merged_lora: Annotated[
        bool,
        typer.Option("--merged-lora", help="The 8-bit file with a speed LoRA in it already.", rich_help_panel=WHAT),
    ] = False
    tts: Annotated[bool, typer.Option("--tts", help="Also the speech synthesis.", rich_help_panel=WHAT)] = False
    voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A voice of the speech synthesis, or all; implies --tts. May be repeated.",
            show_default="af_heart, am_adam, am_michael",
            rich_help_panel=WHAT,
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Only this part: transformer, adapter, text, tokenizer, image, vae, audio, lora, tts, or a path with "
            "wildcards. May be repeated.",
            rich_help_panel=WHAT,
        ),
    ] = None
    revision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[REPOSITORY=]REVISION",
            help="Another version than the one that this program was tested with. May be repeated.",
            rich_help_panel=WHAT,
        ),
    ] = None
    weights_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to fill.",
            show_default="$TALK_WEIGHTS_DIR, ./weights or the user's data folder",
            rich_help_panel=HOW,
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.", rich_help_panel=HOW)
    ] = False
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only what is on this machine.", rich_help_panel=HOW)
    ] = False
    token: Annotated[
        str | None, typer.Option(help="Access token.", show_default="$HF_TOKEN or the saved one", rich_help_panel=HOW)
    ] = None
    parallel: Annotated[
        int, typer.Option(min=1, max=16, help="Files fetched at the same time.", rich_help_panel=HOW)
    ] = 4
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the folder alone.", rich_help_panel=OUTPUT)] = (
        False
    )
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False


@taking(DownloadOptions)
def download(options: DownloadOptions) -> None:
    """Fetch the weights that a run needs, and only those.

    \b
    Examples:
    talk download --profile rtx-4090 --dry-run
    talk download --profile rtx-4090
    talk download --quant int8 --speakers 2 --lora lightx2v
    talk download --only vae
    """
    console = Console(quiet=options.quiet, as_json=options.as_json)
    with errors_as_exit_codes(console):
        from infinitalk_cli.manifest import at_revisions, only_files, plan_files

        files = plan_files(wanted_need(options))
        files = at_revisions(only_files(files, options.only) if options.only else files, options.revision or ())
        weights_dir = find_weights_dir(options.weights_dir)
        if options.dry_run:
            from infinitalk_cli.weights_reports import plan_record, plan_table

            plan = make_plan(options, files, weights_dir, console)
            console.result(plan_table(plan), plan_record(plan))
        else:
            fill(options, files, weights_dir, console)


def wanted_need(options: DownloadOptions) -> "Need":
    """What the options ask for. Raises: InputError: for a profile that has nothing to fetch or is not known."""
    from infinitalk_cli.manifest import DEFAULT_VOICES, VOICES, Need

    voices = tuple(options.voice or (DEFAULT_VOICES if options.tts else ()))
    return Need(
        num_speakers=options.speakers,
        quant=options.quant.value if options.quant else profile_quant(options.profile),
        engine=options.engine.value,
        merged_lora=options.merged_lora,
        loras=tuple(options.lora or ()),
        voices=VOICES if "all" in voices else voices,
    )


def profile_quant(name: str) -> "weights.Quant":
    """The form of the weights that a profile runs on."""
    if name in QUANT_OF_CARD and name not in {profile.name for profile in PROFILES}:
        return QUANT_OF_CARD[name]
    profile = find_profile(name)
    if profile.demo_weights:
        raise InputError(f"the {name} profile makes its own weights: there is nothing to fetch")
    return profile.quant


def make_plan(
    options: DownloadOptions, files: Sequence["HubFile"], weights_dir: Path, console: Console, hub: "Hub | None" = None
) -> "Plan":
    """What has to be done; from the record alone if that suffices."""
    from infinitalk_cli.download_plan import plan_download, plan_from_record, plan_offline
    from infinitalk_cli.hub import Hub
    from infinitalk_cli.weights_record import Record

    record = Record(weights_dir)
    known = None if options.revision else plan_from_record(files, weights_dir, record)
    if known is not None:
        return known
    hub = hub or Hub(token=options.token, on_note=console.note)
    if options.offline or hub.is_offline:
        return plan_offline(files, weights_dir, record, hub)
    console.note("asking the hub what there is")
    return plan_download(files, weights_dir, record, hub, ask_again=bool(options.revision), on_note=console.note)


def fill(options: DownloadOptions, files: Sequence["HubFile"], weights_dir: Path, console: Console) -> None:
    """Fetch what is missing, and say where it is."""
    from infinitalk_cli.download_plan import plan_from_record
    from infinitalk_cli.weights_record import Record
    from infinitalk_cli.weights_reports import closing_note, done_note, plan_record

    plan = None if options.revision else plan_from_record(files, weights_dir, Record(weights_dir))
    if plan is not None:
        console.note(done_note(plan))
        console.result(str(weights_dir), plan_record(plan))
        return
    plan, outcome = fetch_missing(options, files, weights_dir, console)
    console.note(closing_note(plan, outcome))
    console.result(str(weights_dir), {**plan_record(plan), **asdict(outcome)})


def fetch_missing(
    options: DownloadOptions, files: Sequence["HubFile"], weights_dir: Path, console: Console
) -> tuple["Plan", "Outcome"]:
    """Plan and download while no other command changes the folder."""
    from threading import Event

    from infinitalk_cli.download import run_plan
    from infinitalk_cli.download_plan import check_room
    from infinitalk_cli.hub import Hub
    from infinitalk_cli.weights_record import Record, locked
    from infinitalk_cli.weights_reports import plan_note

    stop = Event()
    with locked(weights_dir, console.note):
        hub = Hub(token=options.token, stop=stop, on_note=console.note)
        plan = make_plan(options, files, weights_dir, console, hub)
        check_room(plan)
        console.note(plan_note(plan))
        with console.progress() as on_progress:
            outcome = run_plan(
                plan,
                Record(weights_dir),
                hub,
                stop=stop,
                on_progress=on_progress,
                num_parallel=options.parallel,
            )
    return plan, outcome
