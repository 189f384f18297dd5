"""The hub: what its repositories hold, what of it lies in the local cache, and the transfer of one file.

The only module that knows `huggingface_hub`, which is imported when a `Hub` is made. The library's own download starts
at the first byte again after a kill, so only its parts are used: the listing of a repository at a revision (sizes and
digests in one request), the address of a file, the session with its proxies, tokens and redirects, and `http_get`,
which appends to a file from a given byte on. Retrying is ours: it ends when nothing new arrives, not after a number of
cuts. The library's versions raise the errors of three HTTP packages; they are told apart by where they come from.

`HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere else: the library reads
them, most of them when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar, cast

from infinitalk_cli.errors import InputError, TalkError, WeightsError
from infinitalk_cli.part_file import Digest, PartFile, TooManyBytesError, read_digest

RECEIVE_BYTES = 2**18
"""Taken from the connection at a time, and lost at most when the process is killed. The library's own 10 MiB would be
ten seconds of a slow line."""

LISTING_TIMEOUT_S = 30.0
HTTP_PACKAGES = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "http", "ssl", "socket"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub has it. `revision`: as asked for; `commit`: what that is now."""

    repository: str
    revision: str
    commit: str
    path: str
    size: int
    digest: Digest

    @property
    def origin(self) -> dict[str, str]:
        """Where it comes from, as a record of the weights keeps it."""
        return {"repository": self.repository, "revision": self.revision, "commit": self.commit, "path": self.path}


@dataclass(frozen=True)
class Patience:
    """How long to try. `num_tries`: in a row without a new byte; waits double from `first_wait_s` on."""

    num_tries: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 120.0


class RevisionGoneError(WeightsError):
    """The hub has the repository, but not this revision."""


class NotOnHubError(WeightsError):
    """The hub has no such file, or no longer."""


class UnreachableError(WeightsError):
    """The hub does not answer, or not to the point: other files would fare no better."""


class Hub:
    """The hub as this machine is set up for it.

    Args: token: instead of the saved one. stop: set by another thread to end transfers and waits.
        on_note: told of waits that the hub asks for.
    Raises: InputError: if HF_ENDPOINT is no address.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        patience: Patience | None = None,
        stop: Event | None = None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        from huggingface_hub import HfApi, constants

        _quiet_library()
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        if not self._endpoint.startswith(("http://", "https://")):
            raise InputError(
                f"HF_ENDPOINT is {self._endpoint!r}, which is no address", hint="as in HF_ENDPOINT=https://HOST"
            )
        self._cache_dir = Path(constants.HF_HUB_CACHE)
        self._api = HfApi(endpoint=self._endpoint, token=token)
        self._token = token
        self._patience, self._stop, self._on_note = patience or Patience(), stop or Event(), on_note
        self.is_offline = bool(constants.HF_HUB_OFFLINE)

    def list_files(self, repository: str, revision: str) -> dict[str, RemoteFile]:
        """Every file of a repository, by its path.

        Raises: RevisionGoneError: no such revision. WeightsError: the hub can't be reached or refuses.
        """
        what = f"{repository} at {revision}"
        info = self._patiently(
            what,
            lambda: self._api.model_info(repository, revision=revision, files_metadata=True, timeout=LISTING_TIMEOUT_S),
        )
        commit = info.sha or revision
        siblings: list[Any] = list(info.siblings or ())
        return {item.rfilename: self._remote_file(repository, revision, commit, item) for item in siblings}

    def cached(self, repository: str, revisions: tuple[str, ...], path: str, digest: Digest | None) -> Path | None:
        """The file in the hub's own cache on this machine: of this content, or else of one of these revisions."""
        from huggingface_hub import try_to_load_from_cache

        if digest is not None and digest.kind != "unknown":  # a foreign tag could be any path
            blob = self._cache_dir / f"models--{repository.replace('/', '--')}" / "blobs" / digest.value
            if blob.is_file():
                return blob
        for revision in revisions:
            found = try_to_load_from_cache(repository, path, cache_dir=self._cache_dir, revision=revision)
            if isinstance(found, str):
                return Path(found).resolve()
        return None

    def fetch(self, remote: RemoteFile, part: PartFile) -> None:
        """Receive what the part file lacks, over as many connections as it takes.

        Raises: NotOnHubError, WeightsError: the hub refuses, or nothing arrives any more; the part file stays.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(remote.repository, remote.path, revision=remote.commit, endpoint=self._endpoint)
        headers = build_hf_headers(token=self._token)
        headers["Accept-Encoding"] = "identity"  # a compressed answer can't be continued in the middle
        what = f"{remote.path} of {remote.repository}"

        def receive() -> None:
            before = part.have_bytes
            try:
                http_get(
                    url,
                    cast("Any", part),
                    resume_size=before,
                    headers=headers,
                    expected_size=remote.size,
                    displayed_filename=remote.path,
                )
            except TooManyBytesError:  # it ignored where to begin
                part.restart()
                raise
            except Exception as error:
                if _status(error) == 416:  # our part is longer than its file
                    part.restart()
                raise

        while part.have_bytes < remote.size:
            self._patiently(what, receive, progress=lambda: part.have_bytes)

    def _remote_file(self, repository: str, revision: str, commit: str, item: Any) -> RemoteFile:
        """A file out of a listing; a mirror that lists no sizes or digests is asked for this file alone."""
        large = item.lfs
        tag = (large.sha256 if large else item.blob_id) or ""
        if item.size is None or not tag:
            return RemoteFile(repository, revision, commit, item.rfilename, -1, Digest("unknown", ""))
        return RemoteFile(repository, revision, commit, item.rfilename, int(item.size), read_digest(tag))

    def describe(self, remote: RemoteFile) -> RemoteFile:
        """The same file with size and digest, which not every mirror puts into its listings."""
        if remote.size >= 0:
            return remote
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(remote.repository, remote.path, revision=remote.commit, endpoint=self._endpoint)
        what = f"{remote.path} of {remote.repository}"
        found = self._patiently(what, lambda: get_hf_file_metadata(url, token=self._token))
        if found.size is None or not found.etag:
            raise WeightsError(f"the hub does not say how long {what} is", hint="another HF_ENDPOINT may")
        return RemoteFile(
            remote.repository, remote.revision, remote.commit, remote.path, found.size, read_digest(found.etag)
        )

    def _patiently(self, what: str, call: Callable[[], Result], *, progress: Callable[[], int] | None = None) -> Result:
        """Call again after passing troubles, until too many tries in a row brought nothing new."""
        failures, before = 0, progress() if progress else 0
        while True:
            try:
                return call()
            except TalkError:
                raise
            except Exception as error:
                _refuse_lasting(error, what)
                now = progress() if progress else 0
                failures = 1 if now > before else failures + 1
                before = max(before, now)
                tries = self._patience.num_tries if progress or _status(error) else 2
                if failures >= tries:
                    raise _unreachable(error, what, is_kept=progress is not None) from error
                self._wait(error, failures, what)

    def _wait(self, error: Exception, failures: int, what: str) -> None:
        wait_s = min(self._patience.first_wait_s * 2 ** (failures - 1), self._patience.longest_wait_s)
        asked_s = _retry_after_s(error)
        if asked_s is not None:
            wait_s = min(max(asked_s, wait_s), self._patience.longest_wait_s)
            self._on_note(f"the hub asks to wait {wait_s:.0f} s ({what})")
        self._stop.wait(wait_s)


def _quiet_library() -> None:
    """Progress and retries are ours to show; its other downloader writes to a file by itself and can't continue one."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    settings = {"DOWNLOAD_CHUNK_SIZE": RECEIVE_BYTES, "HF_HUB_ENABLE_HF_TRANSFER": False}
    for name, value in settings.items():
        if hasattr(constants, name):
            setattr(constants, name, value)


def _refuse_lasting(error: Exception, what: str) -> None:
    """Raise what trying again won't mend; return for what may pass."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        raise WeightsError(f"offline: {what} is not on this machine", hint="unset HF_HUB_OFFLINE") from error
    if isinstance(error, RevisionNotFoundError):
        raise RevisionGoneError(f"the hub has no {what}", hint="--revision names another one") from error
    if isinstance(error, GatedRepoError) or status in (401, 403):
        hint = "log in with `hf auth login`, or set HF_TOKEN, and accept the model's terms on its page if it has any"
        raise WeightsError(f"the hub does not let you have {what} ({status or 'gated'})", hint=hint) from error
    if isinstance(error, RepositoryNotFoundError) or status in (404, 410):
        raise NotOnHubError(f"the hub has no {what}, or no longer", hint="`talk download --dry-run`") from error
    if isinstance(error, HFValidationError):
        raise WeightsError(f"not a name that the hub can have: {what}") from error
    if status is not None and 400 <= status < 500 and status not in (408, 416, 425, 429):
        raise WeightsError(f"the hub refuses {what}: {_first_line(error)}") from error
    if not _may_pass(error):
        raise error


def _may_pass(error: Exception) -> bool:
    """Whether it is a trouble of the connection or of the other side."""
    origins = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, (OSError, TooManyBytesError)) or bool(origins & HTTP_PACKAGES)


def _unreachable(error: Exception, what: str, *, is_kept: bool) -> UnreachableError:
    """Args: is_kept: what was fetched of it is still there."""
    status = _status(error)
    reason = f"it answers {status}" if status else f"{type(error).__name__}: {_first_line(error)}"
    hint = "check the network; HF_ENDPOINT names a mirror, --offline takes what is on this machine"
    if is_kept:
        hint = "what was fetched is kept; the same command goes on from there. HF_ENDPOINT names a mirror"
    return UnreachableError(f"can't get {what} from the hub: {reason}", hint=hint)


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _retry_after_s(error: Exception) -> float | None:
    """The seconds of a Retry-After header; its other form, a date, is left to our own waits."""
    response = getattr(error, "response", None)
    headers = cast("Mapping[str, str]", getattr(response, "headers", None) or {})
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
