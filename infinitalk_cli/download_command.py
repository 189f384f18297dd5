"""`talk download`: its options, its way from a wish to a filled folder, and what it says.

Imported for `talk --help`, so what the command does is imported when it runs, and the hub's library later still: only
when the record of the folder can't answer alone.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinitalk_cli.console import Console, errors_as_exit_codes
from infinitalk_cli.console_options import WEIGHTS_DIR_DEFAULT, ProgressOptions, taking
from infinitalk_cli.errors import InputError, WeightsError
from infinitalk_cli.hardware import detect_hardware
from infinitalk_cli.options_values import Engine, PresetName, Quant
from infinitalk_cli.profiles import AUTO, find_preset, find_profile
from infinitalk_cli.run_choice import Said, choose_run
from infinitalk_cli.settings_files import Setting, read_settings
from infinitalk_cli.weights import find_weights_dir, locate

if TYPE_CHECKING:
    from infinitalk_cli import weights
    from infinitalk_cli.download import Outcome
    from infinitalk_cli.download_plan import Plan
    from infinitalk_cli.hub import Hub
    from infinitalk_cli.manifest import HubFile, Need

what_option = partial(typer.Option, rich_help_panel="What")
how_option = partial(typer.Option, rich_help_panel="How")


@dataclass(frozen=True)
class DownloadOptions(ProgressOptions):
    """Everything that `talk download` can be told."""

    profile: Annotated[
        str | None,
        what_option(
            help="The profile that will run, such as rtx-4090.", show_default="the one that suits this machine"
        ),
    ] = None
    preset: Annotated[PresetName | None, what_option(help="Also the LoRA of this preset.")] = None
    speakers: Annotated[int, what_option(min=1, max=2, help="People who speak.")] = 1
    quant: Annotated[Quant | None, what_option(help="Form of the weights.", show_default="the profile's")] = None
    engine: Annotated[Engine, what_option(help="Whose model.")] = Engine.infinitetalk
    lora: Annotated[
        list[str] | None,
        what_option(
            metavar="NAME",
            help="Also a speed LoRA: lightx2v (4 steps), lightx2v-rank32, lightx2v-t2v or fusionx (8 steps). "
            "May be repeated.",
        ),
    ] = None
    merged_lora: Annotated[
        bool, what_option("--merged-lora", help="The 8-bit file with a speed LoRA in it already.")
    ] = False
    tts: Annotated[bool, what_option("--tts", help="Also the speech synthesis.")] = False
    voice: Annotated[
        list[str] | None,
        what_option(
            metavar="NAME",
            help="A voice of the speech synthesis, or all; implies --tts. May be repeated.",
            show_default="af_heart, am_adam, am_michael",
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        what_option(
            metavar="PART",
            help="Only this part: transformer, adapter, text, tokenizer, image, vae, audio, lora, tts, or a path with "
            "wildcards. May be repeated.",
        ),
    ] = None
    revision: Annotated[
        list[str] | None,
        what_option(
            metavar="[REPOSITORY=]REVISION",
            help="Another version than the one that this program was tested with. May be repeated.",
        ),
    ] = None
    weights_dir: Annotated[Path | None, how_option(help="Folder to fill.", show_default=WEIGHTS_DIR_DEFAULT)] = None
    dry_run: Annotated[bool, how_option("--dry-run", help="Say what would be fetched, and fetch nothing.")] = False
    offline: Annotated[bool, how_option("--offline", help="Use only what is on this machine.")] = False
    token: Annotated[str | None, how_option(help="Access token.", show_default="$HF_TOKEN or the saved one")] = None
    no_convert: Annotated[bool, how_option("--no-convert", help="Make no compact files of what was fetched.")] = False
    parallel: Annotated[int, how_option(min=1, max=16, help="Files fetched at the same time.")] = 4


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
    console = options.console()
    with errors_as_exit_codes(console):
        weights_dir = find_weights_dir(options.weights_dir)
        need = wanted_need(options, console)
        files = wanted_files(options, need, weights_dir, console)
        if options.dry_run:
            show_plan(options, files, weights_dir, console)
        else:
            record = fill(options, files, weights_dir, console)
            if not (options.no_convert or options.only):
                convert(need, weights_dir, console)
            console.result(str(weights_dir), record)


def wanted_files(options: DownloadOptions, need: "Need", weights_dir: Path, console: Console) -> "Sequence[HubFile]":
    """The published files that the options ask for, but for those that other files here have replaced."""
    from infinitalk_cli.manifest import at_revisions, only_files, plan_files
    from infinitalk_cli.replaced_files import repackaged_parts, without_replaced

    files = plan_files(need)
    if options.only:
        return at_revisions(only_files(files, options.only), options.revision or ())
    for purpose, path in repackaged_parts(need, weights_dir).items():
        place = path.relative_to(weights_dir).as_posix()
        console.note(f"note: {place} serves as {purpose}; --only {purpose} fetches the published files")
    return at_revisions(without_replaced(files, need, weights_dir), options.revision or ())


def wanted_need(options: DownloadOptions, console: Console) -> "Need":
    """What options, environment and files ask for. Raises: InputError: if they name no weights to fetch."""
    from infinitalk_cli.manifest import Need
    from infinitalk_cli.voices import DEFAULT_VOICES, VOICES

    said = download_said(options)
    preset = None if options.merged_lora else said.value("preset")
    preset_lora = find_preset(preset).lora if preset else ""
    voices = tuple(options.voice or (DEFAULT_VOICES if options.tts else ()))
    return Need(
        num_speakers=options.speakers,
        quant=said.value("quant") or suitable_quant(said, console, only_parts=bool(options.only)),
        engine=options.engine.value,
        merged_lora=options.merged_lora,
        loras=tuple(dict.fromkeys(name for name in (*(options.lora or ()), preset_lora) if name)),
        voices=VOICES if "all" in voices else voices,
    )


def download_said(options: DownloadOptions) -> Said:
    """What options, environment and files say of the run that the weights are for."""
    wishes = {"profile": options.profile, "preset": options.preset, "quant": options.quant}
    settings = read_settings(os.environ, Path.cwd())
    for key, value in wishes.items():
        if value is not None:
            settings[key] = Setting(value.value if isinstance(value, Enum) else value, f"--{key}")
    return Said(settings)


def suitable_quant(said: Said, console: Console, *, only_parts: bool) -> "weights.Quant":
    """The form of the weights that the named profile runs on, or the one that suits this machine.

    Args: only_parts: not everything is wanted; most parts have one form, so that the machine need not have a say.
    Raises: InputError: for the demo, and for a machine that no profile suits.
    """
    run = choose_run(said, detect_hardware())
    if not run.base.demo_weights:
        profile = run.profile("infinitetalk")
        console.note(f"{profile.name} profile, {'bf16' if profile.quant == 'none' else profile.quant} weights")
        return profile.quant
    if said.value("profile", AUTO) != AUTO:
        raise InputError(f"the {run.base.name} profile makes its own weights: there is nothing to fetch")
    if only_parts:
        return "none"
    raise InputError(
        f"{run.choice.reasons[0]}, so it can't tell which weights will be used",
        hint="name the card that will run them, as in --profile rtx-4090 (`talk profiles ls` has all), or the form, "
        "as in --quant fp8. Without a card, `talk demo` runs as it is",
    )


def profile_quant(name: str) -> "weights.Quant":
    """The form of the weights that a profile runs on. Raises: InputError: for one that needs no files."""
    profile = find_profile(name)
    if profile.demo_weights:
        raise InputError(f"the {name} profile makes its own weights: it needs none of these")
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


def show_plan(options: DownloadOptions, files: Sequence["HubFile"], weights_dir: Path, console: Console) -> None:
    """Print what would be done, also where the hub does not answer, as far as it is known without.

    Raises: WeightsError: after printing, if the download itself would fail now.
    """
    from infinitalk_cli.download_plan import plan_unasked, refuse_lacking
    from infinitalk_cli.hub import Hub, UnreachableError
    from infinitalk_cli.weights_record import Record
    from infinitalk_cli.weights_reports import plan_record, plan_table

    hub, failure = Hub(token=options.token, on_note=console.note), None
    if options.offline or hub.is_offline:
        plan = plan_unasked(files, weights_dir, Record(weights_dir), hub)
    else:
        try:
            plan = make_plan(options, files, weights_dir, console, hub)
        except UnreachableError as error:
            plan, failure = plan_unasked(files, weights_dir, Record(weights_dir), hub), error
    console.result(plan_table(plan), plan_record(plan))
    if failure is not None:
        raise failure
    if options.offline or hub.is_offline:
        refuse_lacking(plan)


def fill(
    options: DownloadOptions, files: Sequence["HubFile"], weights_dir: Path, console: Console
) -> dict[str, object]:
    """Fetch what is missing, and say what was done; the same for programs."""
    from infinitalk_cli.download_plan import plan_from_record
    from infinitalk_cli.weights_record import Record
    from infinitalk_cli.weights_reports import closing_note, done_note, plan_record

    plan = None if options.revision else plan_from_record(files, weights_dir, Record(weights_dir))
    if plan is not None:
        console.note(done_note(plan))
        return plan_record(plan)
    plan, outcome = fetch_missing(options, files, weights_dir, console)
    for path in outcome.set_aside:
        console.note(f"note: other weights were in the way; they are kept as {path}")
    console.note(closing_note(plan, outcome))
    return {**plan_record(plan), **asdict(outcome)}


def convert(need: "Need", weights_dir: Path, console: Console) -> None:
    """Make the compact files that pay for this run, if all of its files are there."""
    from infinitalk_cli.convert_when_it_pays import convert_what_pays

    try:
        files = locate(weights_dir, num_speakers=need.num_speakers, quant=need.quant, engine=need.engine)
    except WeightsError as error:
        console.note(f"note: the weights are not converted: {error.message}")
        return
    with console.progress() as on_progress:
        convert_what_pays(
            weights_dir, files, num_speakers=need.num_speakers, on_note=console.note, on_progress=on_progress
        )


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
                plan, Record(weights_dir), hub, stop=stop, on_progress=on_progress, num_parallel=options.parallel
            )
    return plan, outcome
