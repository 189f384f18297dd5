"""A small hub on 127.0.0.1, to be met by the real `huggingface_hub` client.

It answers what the client asks for: the listing of a repository at a revision (sizes and digests), and HEAD and GET of
files, with entity tags, byte ranges and the redirect of large files to another address. Every repository has a main
branch and its commits; others, such as refs/pr/1, can be added. Troubles are ordered by `Trouble`s: cut connections,
slow or wrong bytes, refusals, waits. What was sent is counted, so that a test can say what was fetched twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

SEND_BYTES = 64 * 1024
LONGEST_ANSWER_S = 10.0
LARGE = (".safetensors", ".pth", ".pt", ".bin", ".model", "tokenizer.json")
"""Files that a hub keeps apart and names by their SHA-256; the others are git's."""


@dataclass
class Trouble:
    """What goes wrong with a file, or with every file if it has no `path`.

    `times`: how often, -1 for always. `cut_after`: bytes of an answer after which the connection is closed.
    `status`: this answer instead, with `headers`. `wrong`: the last byte is changed. `seconds_per_send`: wait between
    portions of 64 KiB. `ignore_range`: send the file from its beginning. `listing`: it befalls the listing instead.
    """

    path: str = ""
    times: int = -1
    cut_after: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    wrong: bool = False
    seconds_per_send: float = 0.0
    ignore_range: bool = False
    listing: bool = False


@dataclass(frozen=True)
class Sent:
    """One answer to a GET: the first byte that it sent, and how many."""

    path: str
    start: int
    num_bytes: int


class HubServer:
    """The repositories, their troubles, and the record of what was asked and sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.moves: dict[tuple[str, str], int] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[str] = []
        self.sent: list[Sent] = []
        self.tokens: set[str] = set()
        self.num_sending = 0
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True

    @property
    def store_url(self) -> str:
        """Where large files are: to the client another host, so that it hands on neither token nor question."""
        return f"http://localhost:{self._server.server_address[1]}/store"

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repository: str, path: str, content: bytes, *, revision: str = "main") -> None:
        """Put a file into a repository."""
        self.repositories.setdefault(repository, {}).setdefault(revision, {})[path] = content

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """What a revision holds; a commit of a revision holds the same."""
        branches = self.repositories.get(repository, {})
        return next(
            (files for name, files in branches.items() if revision in (name, self.commit_of(repository, name))), None
        )

    def commit_of(self, repository: str, revision: str) -> str:
        """Where a branch stands now."""
        moves = self.moves.get((repository, revision), 0)
        return commit_of(repository, f"{revision}+{moves}" if moves else revision)

    def move_branch(self, repository: str, branch: str, *, forget: bool = False) -> None:
        """Begin a new commit of a branch with the same files; the old one stays to be asked for, or is forgotten."""
        branches, old = self.repositories[repository], self.commit_of(repository, branch)
        if not forget:
            branches[old] = dict(branches[branch])
        self.moves[repository, branch] = self.moves.get((repository, branch), 0) + 1

    def bytes_sent(self, path: str) -> int:
        """Of all answers that gave this file or a part of it."""
        return sum(sent.num_bytes for sent in self.sent if sent.path == path)

    def take_trouble(self, path: str, *, listing: bool) -> Trouble:
        """The first trouble that befalls this request; counts it."""
        with self._lock:
            for trouble in self.troubles:
                if trouble.listing == listing and trouble.path in ("", path) and trouble.times:
                    trouble.times -= 1
                    return trouble
        return Trouble(times=0)

    def note_request(self, line: str) -> None:
        """Keep what was asked."""
        with self._lock:
            self.requests.append(line)

    def begin_sending(self) -> None:
        """Count an answer that is under way."""
        with self._lock:
            self.num_sending += 1

    def note_sent(self, sent: Sent) -> None:
        """Keep what was sent, in whole or until the other side was gone."""
        with self._lock:
            self.sent.append(sent)
            self.num_sending -= 1

    def forget(self) -> None:
        """Begin the records anew, once every answer under way is among them."""
        end_s = time.monotonic() + LONGEST_ANSWER_S
        while self.num_sending and time.monotonic() < end_s:
            time.sleep(0.005)
        self.requests.clear()
        self.sent.clear()

    @contextmanager
    def running(self) -> Generator[HubServer, None, None]:
        """Serve until the block ends."""
        thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def commit_of(repository: str, revision: str) -> str:
    """The commit that a branch of ours stands at if nobody moved it; of a commit itself."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return hashlib.sha1(f"{repository}@{revision}".encode(), usedforsecurity=False).hexdigest()


def tag_of(path: str, content: bytes) -> str:
    """The entity tag of a file: SHA-256 for a large one, else git's object name."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def listing_of(repository: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The answer to a question for a repository."""
    siblings: list[dict[str, Any]] = []
    for path, content in files.items():
        item: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": tag_of("", content)}
        if path.endswith(LARGE):
            item["lfs"] = {"sha256": tag_of(path, content), "size": len(content), "pointerSize": 130}
        siblings.append(item)
    common = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    return {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, **common}


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)  # answers all requests of the connection

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
        del format, args

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.note_request(f"{self.command} {path}")
        try:
            if path.startswith("/api/models/"):
                self._answer_listing(path.removeprefix("/api/models/"))
            elif path.startswith("/store/"):
                self._answer_store(*_split_store(path))
            else:
                self._answer_file(path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer_listing(self, rest: str) -> None:
        repository, _, revision = rest.partition("/revision/")
        if self._refused(self.hub.take_trouble(repository, listing=True)):
            return
        if repository not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
            return
        files = self.hub.files(repository, revision or "main")
        if files is None:
            self._refuse(404, "RevisionNotFound")
            return
        branches = self.hub.repositories[repository]
        branch = next(name for name, content in branches.items() if content is files)
        body = json.dumps(listing_of(repository, self.hub.commit_of(repository, branch), files)).encode()
        self._send_headers(200, {"Content-Length": str(len(body)), "Content-Type": "application/json"})
        self.wfile.write(body)

    def _answer_file(self, path: str) -> None:
        """A small file itself, a large one's address."""
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        found = _find(self.hub, repository, rest)
        if found is None:
            self._refuse(404, "EntryNotFound")
            return
        revision, name, content = found
        trouble = self.hub.take_trouble(name, listing=False)
        if self._refused(trouble):
            return
        headers = {"X-Repo-Commit": self.hub.commit_of(repository, revision), "Accept-Ranges": "bytes"}
        tag = f'"{tag_of(name, content)}"'
        if name.endswith(LARGE):
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": tag}
            location = {"Location": f"{self.hub.store_url}/{repository}/{revision}//{name}", "Content-Length": "0"}
            if trouble != Trouble(times=0):
                trouble.times += 1  # it befalls the bytes, not their address
            self._send_headers(302, {**headers, **linked, **location, "ETag": tag})
            return
        self._send_content(name, content, {**headers, "ETag": tag}, trouble)

    def _answer_store(self, repository: str, revision: str, name: str) -> None:
        content = self.hub.repositories[repository][revision][name]
        trouble = self.hub.take_trouble(name, listing=False)
        if not self._is_troubled(trouble):  # who has the address needs no token
            tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'  # a store has tags of its own
            self._send_content(name, content, {"Accept-Ranges": "bytes", "ETag": tag}, trouble)

    def _send_content(self, name: str, content: bytes, headers: dict[str, str], trouble: Trouble) -> None:
        """The file, or what the client lacks of it."""
        start = 0 if trouble.ignore_range else self._wanted_start()
        if start >= len(content) > 0:
            self._send_headers(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        if trouble.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {**headers, "Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send_headers(206 if start else 200, headers)
        if self.command != "HEAD":
            self._send_body(name, content, start, trouble)

    def _wanted_start(self) -> int:
        """The first byte that is asked for."""
        return int(self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-") or 0)

    def _send_body(self, name: str, content: bytes, start: int, trouble: Trouble) -> None:
        """The bytes from `start` on, as far as the trouble lets them through."""
        body, num_sent = memoryview(content)[start:], 0
        self.hub.begin_sending()
        try:
            for portion in _portions(body, trouble.cut_after):
                self.wfile.write(portion)
                num_sent += len(portion)
                if trouble.seconds_per_send:
                    time.sleep(trouble.seconds_per_send)
        finally:
            self.hub.note_sent(Sent(name, start, num_sent))
        if num_sent < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _refused(self, trouble: Trouble) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.hub.tokens and token not in self.hub.tokens:
            self._refuse(401, "GatedRepo")
            return True
        return self._is_troubled(trouble)

    def _is_troubled(self, trouble: Trouble) -> bool:
        if trouble.status is not None:
            self._send_headers(trouble.status, {**trouble.headers, "Content-Length": "0"})
            return True
        return False

    def _refuse(self, status: int, code: str) -> None:
        self._send_headers(status, {"X-Error-Code": code, "Content-Length": "0"})

    def _send_headers(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _split_store(path: str) -> tuple[str, str, str]:
    """Repository, revision and file out of the address of a large file."""
    where, _, name = path.removeprefix("/store/").partition("//")
    owner, repository, revision = where.split("/", 2)
    return f"{owner}/{repository}", revision, name


def _find(hub: HubServer, repository: str, rest: str) -> tuple[str, str, bytes] | None:
    """Branch, path and content out of REVISION/PATH, where both may have slashes."""
    for branch, files in hub.repositories.get(repository, {}).items():
        for revision in (branch, hub.commit_of(repository, branch)):
            name = rest.removeprefix(f"{revision}/")
            if name != rest and name in files:
                return branch, name, files[name]
    return None


def _portions(body: memoryview, cut_after: int | None) -> Iterator[memoryview]:
    body = body if cut_after is None else body[:cut_after]
    for start in range(0, len(body), SEND_BYTES):
        yield body[start : start + SEND_BYTES]
