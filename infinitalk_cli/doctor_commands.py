"""`talk doctor` and `talk env`: their options. What they do is imported when they run, so that help stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infinitalk_cli.console import errors_as_exit_codes
from infinitalk_cli.console_options import ConsoleOptions, taking
from infinitalk_cli.errors import EnvironmentUnfitError


@dataclass(frozen=True)
class DoctorOptions(ConsoleOptions):
    """Everything that `talk doctor` can be told."""

    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge this profile.", show_default="what suits the machine")
    ] = None
    gpu: Annotated[str | None, typer.Option(metavar="N", help="Judge this GPU.", show_default="the fittest")] = None
    speakers: Annotated[int, typer.Option(min=1, max=2, help="Judge a run with so many people who speak.")] = 1
    weights_dir: Annotated[
        Path | None, typer.Option(help="Folder of the weights.", show_default="as for talk generate")
    ] = None
    deep: Annotated[bool, typer.Option("--deep", help="Also try kernels and make a demo video: a minute.")] = False
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the hub of the weights answers.")] = False
    fix: Annotated[bool, typer.Option("--fix", help="Print a script of the fixes; nothing is run.")] = False


@taking(DoctorOptions)
def doctor(options: DoctorOptions) -> None:
    """Say whether the published weights run on this machine, with which profile, and what mends what is wrong.

    Exits 0 if they can run, 3 if a required check fails. With --profile demo it judges `talk demo`, which needs no GPU.

    \b
    Examples:
    talk doctor
    talk doctor --deep --json
    talk doctor --fix > fix.sh
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli import doctor_reports as reports

        wish = reports.Wish(options.profile, options.gpu, options.weights_dir, options.speakers)
        hardware, run, checks = reports.judge(wish)
        if options.online:
            from infinitalk_cli.doctor_online import check_hub

            checks.append(check_hub())
        if options.deep:
            from infinitalk_cli.doctor_deep import deep_checks

            for check in deep_checks(hardware, run.gpu):
                console.note(reports.check_line(check))
                checks.append(check)
        text = reports.fix_script(checks) if options.fix else reports.report(run, checks)
        console.result(text, reports.doctor_record(run, checks))
        if not reports.is_fit(checks):
            raise typer.Exit(EnvironmentUnfitError.exit_code)


@taking(ConsoleOptions)
def env(options: ConsoleOptions) -> None:
    """Print what a bug report needs: versions and hardware, no names, no paths, no secrets.

    \b
    Example:
    talk env
    """
    console = options.console()
    with errors_as_exit_codes(console):
        from infinitalk_cli.doctor_reports import env_block_here

        block = env_block_here()
        console.result(block, {"env": block.splitlines()})
