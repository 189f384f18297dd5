"""What the hub has of the repositories that files come from, each asked once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from infinitalk_cli.hub import Hub, NotOnHubError, RemoteFile, RevisionGoneError
from infinitalk_cli.manifest import HubFile
from infinitalk_cli.progress import OnNote


class Listings:
    """What the hub has, each repository asked once; a revision that is gone is replaced by the next one.

    `commits`: of a repository at a revision, to be taken while the hub has it, wherever the revision is now.
    """

    def __init__(self, hub: Hub, on_note: OnNote, commits: Mapping[tuple[str, str], str] | None = None) -> None:
        self._hub, self._on_note, self._commits = hub, on_note, commits or {}
        self._found: dict[tuple[str, tuple[str, ...]], dict[str, RemoteFile]] = {}

    def of(self, file: HubFile) -> dict[str, RemoteFile]:
        """The files of this file's repository, at the first of its revisions that exists."""
        key = (file.repository, file.revisions)
        if key not in self._found:
            try:
                self._found[key] = self._list(*key)
            except NotOnHubError:
                self._found[key] = {}
        return self._found[key]

    def _list(self, repository: str, revisions: tuple[str, ...]) -> dict[str, RemoteFile]:
        for revision in revisions[:-1]:
            try:
                return self._list_at(repository, revision)
            except (RevisionGoneError, NotOnHubError):  # not every mirror says which of the two is missing
                self._on_note(f"note: {repository} has no revision {revision} any more; taking {revisions[-1]}")
        return self._list_at(repository, revisions[-1])

    def _list_at(self, repository: str, revision: str) -> dict[str, RemoteFile]:
        """A revision where this folder has it from, else where it is now."""
        commit = self._commits.get((repository, revision), revision)
        if commit != revision:
            try:
                listed = self._hub.list_files(repository, commit)
                return {path: replace(file, revision=revision) for path, file in listed.items()}
            except (RevisionGoneError, NotOnHubError):
                self._on_note(
                    f"note: {repository} has no commit {commit[:12]} any more; taking {revision} as it is now"
                )
        return self._hub.list_files(repository, revision)
