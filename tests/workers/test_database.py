"""The MongoDB that a checkout's programs share, and no one else's."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

from benchmarks.database import __file__ as script
from benchmarks.database import find_mongod


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen]]:
    """Two programs that run until they are ended."""
    started = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield started
    for program in started:
        program.kill()
        program.wait()


def ask(folder: Path, program: subprocess.Popen) -> str:
    return subprocess.check_output([sys.executable, script, str(folder), str(program.pid)], text=True).strip()


def has_photos(address: str, patience: int = 30_000) -> bool:
    with pymongo.MongoClient(address, serverSelectionTimeoutMS=patience) as client:
        return client.test.photos.count_documents({}) == 1


def has_ended(address: str) -> bool:
    try:
        has_photos(address, 1_000)
    except (ServerSelectionTimeoutError, AutoReconnect):
        return True
    return False


def test_one_server_for_all_programs_until_the_last_has_ended(tmp_path: Path, programs: list[subprocess.Popen]):
    try:
        find_mongod()
    except FileNotFoundError as error:  # where the tests run on a server of the user's own
        pytest.skip(str(error))
    first, second = programs
    address = ask(tmp_path, first)
    with pymongo.MongoClient(address) as client:
        client.test.photos.insert_one({"name": "astronaut"})
    assert ask(tmp_path, second) == address

    first.kill()
    first.wait()
    time.sleep(3)
    assert has_photos(address), "the second program still needs it"

    second.kill()
    second.wait()
    deadline = time.monotonic() + 60
    while not has_ended(address):
        assert time.monotonic() < deadline, "nobody needs it any more"
        time.sleep(0.2)

    third = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    programs.append(third)
    assert has_photos(ask(tmp_path, third)), "what was stored is there again"
