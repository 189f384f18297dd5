"""`talk profiles ls` and `talk profiles show`: what there is, and what a run would be made of, value by value."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from infinitalk_cli.console import errors_as_exit_codes
from infinitalk_cli.console_options import ConsoleOptions, taking
from infinitalk_cli.hardware import detect_hardware
from infinitalk_cli.profiles import AUTO, PRESETS, PROFILES, Profile
from infinitalk_cli.run_choice import Said, choose_run, values_of
from infinitalk_cli.run_reports import choice_line
from infinitalk_cli.settings_files import Setting, read_settings

profiles_app = typer.Typer(
    no_args_is_help=True,
    help="""Profiles: what runs on which card. Presets: how long it may take.

    \b
    Examples:
    talk profiles ls
    talk profiles show auto
    talk profiles show rtx-4090 --preset fast
    """,
)


@dataclass(frozen=True)
class ShowOptions(ConsoleOptions):
    """Everything that `talk profiles show` can be told."""

    name: Annotated[str, typer.Argument(help="A profile, or auto: what suits this machine.")] = AUTO
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="quality, balanced or fast.")] = None
    gpu: Annotated[str | None, typer.Option(metavar="N", help="Number or UUID of the GPU.")] = None


@profiles_app.command("ls")
@taking(ConsoleOptions)
def list_profiles(options: ConsoleOptions) -> None:
    """List every profile and preset.

    \b
    Example:
    talk profiles ls --json
    """
    console = options.console()
    with errors_as_exit_codes(console):
        rows = [(profile.name, *_columns(profile), profile.description) for profile in PROFILES]
        rows += [(f"--preset {preset.name}", "", "", preset.description) for preset in PRESETS]
        record = {"profiles": [asdict(p) for p in PROFILES], "presets": [asdict(p) for p in PRESETS]}
        console.result(_table([("profile", "weights", "stay on the GPU", "what for"), *rows]), record)


@profiles_app.command("show")
@taking(ShowOptions)
def show_profile(options: ShowOptions) -> None:
    """Show every value of a profile as a run here would have it, and where it comes from.

    \b
    Example:
    talk profiles show auto
    """
    console = options.console()
    with errors_as_exit_codes(console):
        settings = read_settings(os.environ, Path.cwd())
        settings["profile"] = Setting(options.name, "the command line")
        for key, value in (("preset", options.preset), ("gpu", options.gpu)):
            if value is not None:
                settings[key] = Setting(value, f"--{key}")
        run = choose_run(Said(settings), detect_hardware())
        values = values_of(run)
        head = choice_line(run)
        short = f"\ndoes not fit: it {run.choice.shortfall}; {run.choice.remedy}" if run.choice.shortfall else ""
        table = _table([(field, _text(value), origin) for field, value, origin in values])
        record = {
            "profile": run.base.name,
            "reasons": list(run.choice.reasons),
            "fits": run.choice.fits,
            "values": {field: {"value": value, "origin": origin} for field, value, origin in values},
        }
        console.result(f"{head}{short}\n{table}", record)


def _columns(profile: Profile) -> tuple[str, str]:
    persistent = profile.num_persistent_param_in_dit
    if profile.demo_weights:
        return "demo", "-"
    stays = "what fits" if persistent is None else f"{persistent / 1e9:g}e9" if persistent else "0"
    return ("bf16" if profile.quant == "none" else profile.quant), stays


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "as fits" if value is None else "none" if value == "" else str(value)


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns side by side, each as wide as its longest entry."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
