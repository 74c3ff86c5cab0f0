"""Downloads from a server that does what servers do: breaks off, stalls, lies, sends something else."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference import fetching
from inference.fetching import FetchError, fetch

if TYPE_CHECKING:
    from .conftest import Server

DATA = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
PART = 1_000_000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    monkeypatch.setattr(fetching, "TIMEOUT", (10.0, 2.0))


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server(DATA)


def run(server: Server, path: Path, sha256: str = SHA256) -> list[fetching.Received]:
    return list(fetch([server.address], path, sha256))


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], ""])
def test_a_file_comes_whole_and_says_how_far_it_is(server: Server, tmp_path: Path, sha256: str) -> None:
    steps = run(server, tmp_path / "weights.pth", sha256)
    assert (tmp_path / "weights.pth").read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.pth"]
    counts = [step.count for step in steps]
    assert counts == sorted(counts)
    assert {step.total for step in steps} == {len(DATA)}
    assert steps[-1].count == len(DATA)


@pytest.mark.parametrize("sha256", [SHA256, ""])
@pytest.mark.parametrize("kind", ["break", "stall"])
def test_a_broken_download_goes_on_where_it_was(server: Server, tmp_path: Path, kind: str, sha256: str) -> None:
    server.script = [kind, kind, "503", "whole"]
    run(server, tmp_path / "weights.pth", sha256)
    assert (tmp_path / "weights.pth").read_bytes() == DATA
    assert server.requests == [0, PART, 2 * PART, 2 * PART]


def test_a_later_call_goes_on_where_an_earlier_one_was_given_up(server: Server, tmp_path: Path) -> None:
    server.script = ["break", "503"]
    with pytest.raises(FetchError, match=r"127.*503 Service Unavailable.* 1 MB are kept"):
        run(server, tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()
    server.requests, server.script = [], ["whole"]
    run(server, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == DATA
    assert server.requests == [PART]


def test_a_file_that_changed_on_the_server_is_not_mixed_with_the_old_one(server: Server, tmp_path: Path) -> None:
    server.script = ["break", "whole"]
    steps = fetch([server.address], tmp_path / "weights.pth")
    next(steps)
    server.etag = '"two"'
    list(steps)
    assert server.requests == [0, 0]
    assert (tmp_path / "weights.pth").read_bytes() == DATA


def test_what_an_earlier_download_left_is_dropped_where_nothing_tells_what_it_is(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "weights.pth.partial").write_bytes(bytes(PART))
    run(server, tmp_path / "weights.pth", sha256="")
    assert (tmp_path / "weights.pth").read_bytes() == DATA


@pytest.mark.parametrize("left", [DATA[:PART][::-1], DATA + b"more", DATA])
def test_a_wrong_beginning_is_noticed_and_fetched_again(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "weights.pth.partial").write_bytes(left)
    run(server, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == DATA


def test_a_length_that_is_too_long_does_no_harm(server: Server, tmp_path: Path) -> None:
    server.script = ["long"]
    run(server, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == DATA


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(server: Server, tmp_path: Path) -> None:
    server.script = ["deaf"]
    with pytest.raises(FetchError, match="broke off"):
        run(server, tmp_path / "weights.pth")
    assert len(server.requests) <= 1 + fetching.ATTEMPTS


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", "another file than the one that was published: its SHA-256 is"),
        ("other", "another file than the one that was published: its SHA-256 is"),
        ("html", "a web page instead of the file"),
        ("page", "a web page instead of the file"),
        ("404", "it answers 404 Not Found"),
        ("403", "it answers 403 Forbidden"),
    ],
)
def test_what_is_not_the_file_is_refused_and_not_kept(server: Server, tmp_path: Path, kind: str, message: str) -> None:
    server.script = [kind]
    with pytest.raises(FetchError, match=f"{re.escape(server.address)}: .*{message}"):
        run(server, tmp_path / "weights.pth")
    assert list(tmp_path.iterdir()) == []


def test_what_no_hash_tells_the_caller_checks(server: Server, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == DATA
        raise ValueError("not what I need")

    with pytest.raises(FetchError, match="not what I need"):
        list(fetch([server.address], tmp_path / "weights.pth", check=refuse))
    assert list(tmp_path.iterdir()) == []


def test_the_next_address_is_tried(server: Server, make_server: Callable[..., Server], tmp_path: Path) -> None:
    bad = make_server(DATA, ["other"])
    list(fetch(["http://127.0.0.1:9/nobody", bad.address, server.address], tmp_path / "weights.pth", SHA256))
    assert (tmp_path / "weights.pth").read_bytes() == DATA
    assert len(bad.requests) == 1


def test_an_address_that_cannot_be_reached_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"http://127\.0\.0\.1:9/w: it cannot be reached"):
        list(fetch(["http://127.0.0.1:9/w"], tmp_path / "weights.pth"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["whole", "stall", "html", "404"])
def test_google_drive_goes_through_fiftyones_own_utilities(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import eta.core.web as etaw

    monkeypatch.setattr(etaw.GoogleDriveSession, "BASE_URL", server.address)
    server.script = [kind]
    steps = fetch([fetching.GOOGLE_DRIVE + "an-id"], tmp_path / "weights.pth", SHA256)
    if kind == "whole":
        list(steps)
        assert (tmp_path / "weights.pth").read_bytes() == DATA
        return
    message = {"stall": "did not send anything", "html": "a web page", "404": "does not give the file"}[kind]
    with pytest.raises(FetchError, match=message):
        list(steps)
    assert not (tmp_path / "weights.pth").exists()


def test_one_of_several_that_ask_at_once_downloads(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    def ask(_: int) -> bytes:
        with fetching.lock(path) as waiting:
            for _ in waiting:
                pass
            if not path.exists():
                run(server, path)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(ask, range(4))) == {DATA}
    assert server.requests == [0]


def test_the_lock_is_released_when_a_download_is_given_up(server: Server, tmp_path: Path) -> None:
    def steps() -> Iterator[fetching.Received]:
        with fetching.lock(tmp_path / "weights.pth") as waiting:
            for _ in waiting:
                yield fetching.Received()
            yield from fetch([server.address], tmp_path / "weights.pth", SHA256)

    given_up = steps()
    next(given_up)
    given_up.close()
    list(steps())
    assert (tmp_path / "weights.pth").read_bytes() == DATA
