"""What the commands about weights print: tables for people, records for `--json`. Values in, text or data out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from infinitalk_cli.console import duration

NUM_COMMIT_DIGITS = 12
"""Shown of a commit; `--json` has all."""

SHA1_HEX_DIGITS = 40

if TYPE_CHECKING:
    from infinitalk_cli.download import Outcome
    from infinitalk_cli.download_plan import Plan, PlannedFile
    from infinitalk_cli.weights_import import Imported, Match
    from infinitalk_cli.weights_tree import Finding, Sufficiency, TreeFile


def gigabytes(num_bytes: int) -> str:
    """A size for people: 31.9 GB, 12.3 MB, 250 B."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


def counted(number: int) -> str:
    """1 file, 14 files."""
    return "1 file" if number == 1 else f"{number} files"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, their columns under one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def plan_table(plan: Plan) -> str:
    """A plan as `--dry-run` prints it."""
    rows = [
        ("file", "size", "state"),
        *((file.file.place, size_text(file.size), state_text(file)) for file in plan.files),
    ]
    return f"{table(rows)}\n\n{origins_text(plan)}\n\n{plan_note(plan)}"


def size_text(num_bytes: int | None) -> str:
    """A size for people, if anybody knows it."""
    return "?" if num_bytes is None else gigabytes(num_bytes)


def origins_text(plan: Plan) -> str:
    """Each repository of a plan with the commit that is taken, or that was when the files came."""
    origins = dict.fromkeys((file.file.repository, file.revision, file.commit) for file in plan.files)
    rows = [(repository, version_text(revision, commit)) for repository, revision, commit in origins]
    return table([("from", "version"), *rows])


def version_text(revision: str, commit: str) -> str:
    """A commit, and the branch that it was found by."""
    if not commit or commit == revision:
        return revision[:NUM_COMMIT_DIGITS] if len(revision) == SHA1_HEX_DIGITS else revision
    return f"{commit[:NUM_COMMIT_DIGITS]} ({revision})"


def state_text(file: PlannedFile) -> str:
    """What a file's state means."""
    if file.state == "need" and file.part_bytes:
        return f"need ({gigabytes(file.part_bytes)} of it are here)"
    told = {"check": "have, to be checked", "link": "have, in the hub's cache"}
    return told.get(file.state, file.state)


def plan_note(plan: Plan) -> str:
    """The sums of a plan."""
    free = "unknown" if plan.free_bytes is None else gigabytes(plan.free_bytes)
    num_needed = sum(file.state == "need" for file in plan.files)
    more = f" and {counted(plan.num_unknown)} of unknown size" if plan.num_unknown else ""
    return (
        f"{counted(len(plan.files))}, {gigabytes(plan.total_bytes)}{more}; to fetch: {counted(num_needed)}, "
        f"{gigabytes(plan.need_bytes)}{more}; free in {plan.weights_dir}: {free}"
    )


def plan_record(plan: Plan) -> dict[str, object]:
    """A plan as `--json` prints it."""
    return {
        "weights_dir": str(plan.weights_dir),
        "files": [
            {
                "place": file.file.place,
                "purpose": file.file.purpose,
                "repository": file.file.repository,
                "revision": file.revision,
                "commit": file.commit,
                "path": file.file.path,
                "size": file.size,
                "state": file.state,
                "need_bytes": None if file.size is None else file.need_bytes,
            }
            for file in plan.files
        ],
        "total_bytes": None if plan.num_unknown else plan.total_bytes,
        "need_bytes": None if plan.num_unknown else plan.need_bytes,
        "free_bytes": plan.free_bytes,
    }


def closing_note(plan: Plan, outcome: Outcome) -> str:
    """What was done, and the next command."""
    linked = f", {gigabytes(outcome.linked_bytes)} linked from the hub's cache" if outcome.linked_bytes else ""
    return (
        f"{gigabytes(outcome.fetched_bytes)} fetched{linked} in {duration(outcome.elapsed_s)}; "
        f"{len(plan.files)} files are there and verified\nnext: talk generate --image face.png --audio speech.wav"
    )


def done_note(plan: Plan) -> str:
    """Nothing was to be done."""
    return f"all {len(plan.files)} files are there and verified ({gigabytes(plan.total_bytes)})"


def tree_table(folder: Path, files: Sequence[TreeFile], runs: Sequence[Sufficiency]) -> str:
    """The tree as `ls` prints it."""
    if not files:
        return f"{folder} holds no weights; `talk download --dry-run` says what a run needs"
    rows = [("file", "size", "state"), *((file.place, gigabytes(file.size), file.state) for file in files)]
    total = sum(file.size for file in files)
    needs = [(run.name, f"{counted(len(run.missing))} missing" if run.missing else "complete") for run in runs]
    return (
        f"{table(rows)}\n{counted(len(files))}, {gigabytes(total)} in {folder}\n\n{table([('run', 'weights'), *needs])}"
    )


def tree_record(folder: Path, files: Sequence[TreeFile], runs: Sequence[Sufficiency]) -> dict[str, object]:
    """The tree as `--json` prints it."""
    return {
        "weights_dir": str(folder),
        "files": [{**asdict(file), "path": str(file.path)} for file in files],
        "runs": [{"name": run.name, "complete": not run.missing, "missing": run.missing} for run in runs],
        "total_bytes": sum(file.size for file in files),
    }


def findings_record(findings: Sequence[Finding], files: Sequence[TreeFile]) -> dict[str, object]:
    """The outcome of a check as `--json` prints it. Args: files: those that were checked, in the same order."""
    return {
        "ok": bool(findings) and not any(finding.problem for finding in findings),
        "files": [{**asdict(finding), "origin": file.origin} for finding, file in zip(findings, files, strict=True)],
    }


def findings_table(findings: Sequence[Finding]) -> str:
    """The outcome of a check."""
    rows = [
        (
            finding.place,
            gigabytes(finding.size),
            f"DAMAGED: {finding.problem}" if finding.problem else "ok",
            finding.note,
        )
        for finding in findings
    ]
    return table([("file", "size", "state", "note"), *rows])


def verified_note(findings: Sequence[Finding], *, full: bool) -> str:
    """That a check found nothing, and what it looked at."""
    whole = f"nothing is wrong with {counted(len(findings))}"
    return f"{whole}: every byte was read" if full else f"{whole} by length and header; --full reads every byte"


def import_table(matches: Sequence[Match], done: Sequence[Imported]) -> str:
    """What was found, and what was done with it."""
    if not matches:
        return "nothing there that is missing here"
    ways = {item.match.wanted.place: item.way for item in done}
    rows = [
        (
            match.wanted.place,
            gigabytes(match.size),
            "by its digest" if match.verified else "by its form" if is_other_form(match) else "by its name",
            f"{ways.get(match.wanted.place, '')} from {match.source}".strip(),
        )
        for match in matches
    ]
    return table([("file", "size", "recognised", "source"), *rows])


def is_other_form(match: Match) -> bool:
    """Whether it was recognised by names and shapes of tensors."""
    return match.wanted.size is None and match.wanted.file is None


def import_record(matches: Sequence[Match], done: Sequence[Imported]) -> dict[str, object]:
    """The same as `--json` prints it; `way` is empty for what was only found."""
    ways = {item.match.wanted.place: item.way for item in done}
    return {
        "files": [
            {
                "place": match.wanted.place,
                "source": str(match.source),
                "size": match.size,
                "sha256": match.sha256,
                "verified": match.verified,
                "way": ways.get(match.wanted.place, ""),
            }
            for match in matches
        ]
    }


def removal_table(files: Sequence[TreeFile]) -> str:
    """What would go."""
    if not files:
        return "nothing to delete"
    rows = [(file.place, gigabytes(file.size), "" if file.own_bytes else "shared: frees nothing") for file in files]
    freed = sum(file.own_bytes for file in files)
    return f"{table([('file', 'size', 'note'), *rows])}\n{counted(len(files))}, {gigabytes(freed)} would be free"


def removed_text(files: Sequence[TreeFile], freed_bytes: int) -> str:
    """What has gone, file by file."""
    rows = [("deleted", file.place, gigabytes(file.size)) for file in files]
    return f"{table(rows)}\n{counted(len(files))}, {gigabytes(freed_bytes)} freed"


def removal_record(files: Sequence[TreeFile], *, freed_bytes: int) -> dict[str, object]:
    """A removal as `--json` prints it."""
    return {
        "files": [{"place": file.place, "size": file.size, "own_bytes": file.own_bytes} for file in files],
        "freed_bytes": freed_bytes,
    }
