"""The one module that speaks with the hub, against a hub of ours: listings, refusals, waits, the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path
from threading import Event

import pytest

from infinitalk_cli.errors import InputError, InterruptedRunError, WeightsError
from infinitalk_cli.hub import Hub, NotOnHubError, Patience, RemoteFile, RevisionGoneError, UnreachableError
from infinitalk_cli.part_file import Digest, PartFile
from tests import hub_server
from tests.hub_server import HubServer, Trouble, commit_of
from tests.hub_tree import use_hub

NAME = "owner/model"
CONTENT = b"some weights" * 1000
QUICK = Patience(num_tries=3, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[HubServer, None, None]:
    """A hub with one repository of two branches."""
    server = HubServer()
    server.add(NAME, "a/model.safetensors", CONTENT)
    server.add(NAME, "config.json", b"{}")
    server.add(NAME, "a/model.safetensors", CONTENT[::-1], revision="refs/pr/1")
    use_hub(server, tmp_path / "cache", monkeypatch)
    with server.running():
        yield server


def fetch(hub: Hub, remote: RemoteFile, target: Path) -> bytes:
    with PartFile(target, remote.size, remote.digest) as part:
        hub.fetch(remote, part)
        assert part.is_right
        part.finish()
    return target.read_bytes()


def test_listing_gives_sizes_digests_and_the_commit(server: HubServer) -> None:
    files = Hub(patience=QUICK).list_files(NAME, "main")
    model, config = files["a/model.safetensors"], files["config.json"]
    assert (model.size, model.digest) == (len(CONTENT), Digest("sha256", hashlib.sha256(CONTENT).hexdigest()))
    assert (config.size, config.digest.kind) == (2, "git")
    assert model.commit == commit_of(NAME, "main")
    assert len(server.requests) == 1


def test_pull_request_is_a_revision_like_others(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(patience=QUICK)
    remote = hub.list_files(NAME, "refs/pr/1")["a/model.safetensors"]
    assert fetch(hub, remote, tmp_path / "model") == CONTENT[::-1]


def test_listing_without_digests_is_completed_by_asking_for_the_file(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hub_server.listing_of

    def poor(repository: str, revision: str, files: dict[str, bytes]) -> dict[str, object]:
        listing = whole(repository, revision, files)
        return {**listing, "siblings": [{"rfilename": item["rfilename"]} for item in listing["siblings"]]}

    monkeypatch.setattr(hub_server, "listing_of", poor)
    hub = Hub(patience=QUICK)
    listed = hub.list_files(NAME, "main")["a/model.safetensors"]
    assert listed.size == -1
    told = hub.describe(listed)
    assert (told.size, told.digest) == (len(CONTENT), Digest("sha256", hashlib.sha256(CONTENT).hexdigest()))
    assert hub.describe(told) == told


@pytest.mark.parametrize(
    ("repository", "revision", "error"),
    [(NAME, "nowhere", RevisionGoneError), ("owner/nothing", "main", NotOnHubError)],
)
def test_what_is_not_there_is_told_apart(
    server: HubServer, repository: str, revision: str, error: type[WeightsError]
) -> None:
    with pytest.raises(error):
        Hub(patience=QUICK).list_files(repository, revision)


def test_file_that_vanishes_between_listing_and_transfer_is_named(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(patience=QUICK)
    remote = hub.list_files(NAME, "main")["a/model.safetensors"]
    del server.repositories[NAME]["main"]["a/model.safetensors"]
    with pytest.raises(NotOnHubError, match=r"a/model.safetensors of owner/model"):
        fetch(hub, remote, tmp_path / "model")


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_say_how_to_log_in(server: HubServer, tmp_path: Path, status: int) -> None:
    hub = Hub(patience=QUICK)
    remote = hub.list_files(NAME, "main")["a/model.safetensors"]
    server.troubles.append(Trouble(status=status))
    with pytest.raises(WeightsError, match=str(status)) as caught:
        fetch(hub, remote, tmp_path / "model")
    assert "hf auth login" in caught.value.hint
    assert len([line for line in server.requests if line.startswith("GET /owner")]) == 1  # it did not insist


def test_answers_that_trying_again_does_not_mend_are_final(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(patience=QUICK)
    remote = hub.list_files(NAME, "main")["a/model.safetensors"]
    server.troubles.append(Trouble(status=451))
    with pytest.raises(WeightsError, match="refuses"):
        fetch(hub, remote, tmp_path / "model")


def test_silence_ends_the_patience(server: HubServer, tmp_path: Path) -> None:
    hub = Hub(patience=QUICK)
    remote = hub.list_files(NAME, "main")["a/model.safetensors"]
    server.troubles.append(Trouble(status=500))
    with pytest.raises(UnreachableError, match="500"):
        fetch(hub, remote, tmp_path / "model")


def test_unknown_host_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    with pytest.raises(UnreachableError, match="can't get owner/model at main"):
        Hub(patience=QUICK).list_files(NAME, "main")


def test_endpoint_that_is_no_address_is_the_users_matter_and_an_empty_one_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(InputError, match=r"HF_ENDPOINT is 'mirror\.example'"):
        Hub()
    monkeypatch.setenv("HF_ENDPOINT", "")
    Hub()


def test_part_longer_than_the_file_is_thrown_away(server: HubServer, tmp_path: Path) -> None:
    """The hub says 416: it has nothing from there on."""
    hub = Hub(patience=QUICK)
    remote = hub.list_files(NAME, "main")["a/model.safetensors"]
    longer = RemoteFile(NAME, "main", remote.commit, remote.path, remote.size + 5, remote.digest)
    with PartFile(tmp_path / "model", longer.size, longer.digest) as part:
        part.write(CONTENT)
        with pytest.raises(UnreachableError):
            hub.fetch(longer, part)


def test_stop_ends_waits(server: HubServer, tmp_path: Path) -> None:
    stop = Event()
    hub = Hub(patience=Patience(num_tries=3, first_wait_s=60), stop=stop)
    remote = hub.list_files(NAME, "main")["a/model.safetensors"]
    server.troubles.append(Trouble(times=2, status=500))
    stop.set()
    with PartFile(tmp_path / "model", remote.size, remote.digest, stopped=stop.is_set) as part:
        with pytest.raises(InterruptedRunError):
            hub.fetch(remote, part)


def test_cache_is_asked_by_content_then_by_revision(server: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(NAME, "a/model.safetensors", endpoint=server.url))
    hub, digest = Hub(), Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
    assert hub.cached(NAME, ("other",), "a/model.safetensors", digest) == path.resolve()
    assert hub.cached(NAME, ("other", "main"), "a/model.safetensors", None) == path.resolve()
    assert hub.cached(NAME, ("other",), "a/model.safetensors", None) is None
    assert hub.cached(NAME, ("main",), "config.json", None) is None
    assert hub.cached("owner/nothing", ("main",), "config.json", None) is None


def test_foreign_tag_is_never_taken_for_a_path(server: HubServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"not weights")
    tag = Digest("unknown", str(secret))
    assert Hub().cached(NAME, ("main",), "config.json", tag) is None
