"""Files from the web: resumed after a break, verified, renamed into place, by one process at a time.

Knows addresses and bytes, nothing of models or weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter

CHUNK = 256 * 1024
TIMEOUT = (10.0, 30.0)  # seconds to connect, and without a byte
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
GOOGLE_DRIVE = "https://drive.google.com/uc?id="
WEB_PAGE = "it sent a web page instead of the file: a login, a quota notice, or a proxy's answer."


class FetchError(ValueError):
    """A file that could not be fetched; the message says why."""


@dataclass(frozen=True)
class Received:
    """How far a download is.

    Attributes:
        count: bytes on disk; 0 while another process downloads the file
        total: bytes of the whole file, if the server said so
    """

    count: int = 0
    total: int | None = None


def fetch(
    addresses: Sequence[str], path: Path, sha256: str = "", check: Callable[[Path], object] = lambda path: None
) -> Iterator[Received]:
    """Download a file to ``path`` from the first address that gives it; the caller holds its :func:`lock`.

    Args:
        addresses: http(s), or :data:`GOOGLE_DRIVE` with a file's id, which FiftyOne's own utilities download
        path: is only there once it is complete and has passed the checks
        sha256: the file's, or its beginning; empty where none was published
        check: of the complete file where there is no hash; raises ValueError

    Yields:
        how far it is, several times a second while something happens

    Raises:
        FetchError: if no address gives the file; one sentence for each
        OSError: if it cannot be written
    """
    reasons = []
    partial = path.with_name(f"{path.name}.partial")
    for address in addresses:
        while True:
            inherited = _size(partial)  # from an earlier call, or another address
            try:
                if address.startswith(GOOGLE_DRIVE):
                    yield from _from_google_drive(address.removeprefix(GOOGLE_DRIVE), partial)
                else:
                    yield from _from_web(address, partial, sha256)
                _verify(partial, sha256, check)
                partial.replace(path)
                return
            except ValueError as error:
                reason = str(error)
            if not inherited or _size(partial):  # else the beginning was not this file's
                break
        reasons.append(f"{address}: {reason}")
    raise FetchError(" ".join(reasons))


@contextlib.contextmanager
def lock(path: Path) -> Iterator[Iterator[None]]:
    """Hold a file's lock, so that only one process makes it; waits for the others.

    Yields:
        an iterator that has to run out before the lock is held; it steps once a second
    """
    # Not bound to a thread: FiftyOne may take each step of a generator in another one.
    held = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)

    def waiting() -> Iterator[None]:
        while True:
            try:
                held.acquire(timeout=1)
                return
            except Timeout:
                yield

    try:
        yield waiting()
    finally:
        held.release()


def _from_web(address: str, partial: Path, sha256: str) -> Iterator[Received]:
    """Download to ``partial``, going on with what it holds already."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges count the bytes that are sent
    version = ""  # what the server calls the file whose beginning is here
    best, in_vain, reached, reason = 0, 0, False, ""
    while in_vain < ATTEMPTS:
        if in_vain:
            time.sleep(PAUSE * 2 ** (in_vain - 1))
        # Without a hash only the server can say whether what is here belongs to the file that it has now.
        begin = _size(partial) if sha256 or version else 0
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        if begin and version:
            headers["If-Range"] = version
        try:
            with session.get(address, headers=headers, stream=True, timeout=TIMEOUT) as response:
                reached = True
                reason = _refusal(response, begin)
                if response.status_code == requests.codes.range_not_satisfiable:
                    if _has_hash(partial, sha256):
                        return
                    partial.unlink()
                if not reason:
                    version = response.headers.get("ETag", "")
                    yield from _write(response, partial, begin)
                    return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _reason(error)
            if not reached:
                break
        in_vain = 0 if _size(partial) > best else in_vain + 1
        best = max(best, _size(partial))
    if not _has_hash(partial, sha256):  # else only the length was wrong
        kept = f" {best / 1e6:.0f} MB are kept, and the next attempt goes on from there." if sha256 and best else ""
        raise FetchError(f"{reason}.{kept}")


def _refusal(response: requests.Response, begin: int) -> str:
    """Why a response does not bring the file, but may do so later; empty if it brings it.

    Raises:
        FetchError: if it never will
    """
    code = response.status_code
    if code == requests.codes.range_not_satisfiable and begin:
        return "it has no more bytes than were fetched, and these are not the file"
    if code in (408, 425, 429) or code >= 500:
        return f"it answers {code} {response.reason}"
    if code not in (requests.codes.ok, requests.codes.partial_content):
        raise FetchError(f"it answers {code} {response.reason}.")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise FetchError(WEB_PAGE)
    if code == requests.codes.partial_content and _first_byte(response) != begin:
        raise FetchError("it sends another part of the file than it was asked for.")
    return ""


def _write(response: requests.Response, partial: Path, begin: int) -> Iterator[Received]:
    """Append a response to what is here, or write it anew where the server sends all of it."""
    resumed = response.status_code == requests.codes.partial_content
    count = begin if resumed else 0
    length = response.headers.get("Content-Length", "")
    total = count + int(length) if length.isdecimal() else None
    with partial.open("ab" if resumed else "wb") as file:
        yield Received(count, total)
        while chunk := response.raw.read1(CHUNK):  # iter_content() would lose what came just before a break
            file.write(chunk)
            count += len(chunk)
            yield Received(count, total)


def _first_byte(response: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _reason(error: Exception) -> str:
    if "timed out" in str(error):
        return f"it did not send anything for {TIMEOUT[1]:.0f} s"
    return "it cannot be reached, or the connection broke off"


def _from_google_drive(file_id: str, partial: Path) -> Iterator[Received]:
    import eta.core.web as etaw

    class Patient(HTTPAdapter):
        """FiftyOne's utilities would wait for a silent server for ever."""

        def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:  # type: ignore[override]
            return super().send(request, **{**settings, "timeout": TIMEOUT})

    session = etaw.GoogleDriveSession(quiet=True)
    for scheme in ("https://", "http://"):
        session.sess.mount(scheme, Patient())
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(session.write, str(partial), file_id)
        while not writing.done():
            yield Received(_size(partial))
            wait([writing], timeout=0.5)
        try:
            writing.result()
        except etaw.WebSessionError as error:
            raise FetchError("Google Drive does not give the file; it may want a person to log in.") from error
        except requests.RequestException as error:
            raise FetchError(f"{_reason(error)}.") from error


def _verify(partial: Path, sha256: str, check: Callable[[Path], object]) -> None:
    """Delete what is not the file.

    Raises:
        ValueError: why not
    """
    try:
        with partial.open("rb") as file:
            beginning = file.read(256).lstrip().lower()
        if beginning.startswith((b"<!doctype", b"<html")):
            raise FetchError(WEB_PAGE)
        if not sha256:
            check(partial)
        elif not _has_hash(partial, sha256):
            raise FetchError(
                f"it sent another file than the one that was published: its SHA-256 is {_sha256(partial)}, "
                f"expected {sha256}."
            )
    except ValueError:
        partial.unlink(missing_ok=True)
        raise


def _has_hash(path: Path, sha256: str) -> bool:
    return bool(sha256) and path.is_file() and _sha256(path).startswith(sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
