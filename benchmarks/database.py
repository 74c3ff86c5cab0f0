"""This checkout's own MongoDB: started for the first program that needs it, stopped after the last one.

FiftyOne starts a MongoDB by itself, but shares it between all programs of a user, whatever their FIFTYONE_DATABASE_DIR:
with your own FiftyOne open, the demo would land in your database. So `.fiftyone/env` asks here for a server instead:

    python benchmarks/database.py FOLDER PID

prints its address. The server runs until the process PID, and all others that have asked, have ended.
"""

import contextlib
import fcntl
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil


def find_mongod() -> Path:
    """The server that comes with FiftyOne.

    Raises:
        FileNotFoundError: if there is none
    """
    package = importlib.util.find_spec("fiftyone")  # found, not imported: that would start a database
    if package is None or package.origin is None:
        raise FileNotFoundError("FiftyOne is not installed in this Python: run `make install`.")
    executable = Path(package.origin).parent / "db" / "bin" / "mongod"
    if not executable.exists():
        raise FileNotFoundError(
            f"MongoDB is missing ({executable}): run `make install`, or set FIFTYONE_DATABASE_URI to a server of yours."
        )
    return executable


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_mongod(folder: Path, port: int | None = None) -> tuple[subprocess.Popen, int]:
    """Start a server that only this machine can reach, with its data in a folder; returns it and its port.

    Args:
        folder: of the data
        port: None = one that is free

    Raises:
        RuntimeError: if it does not answer
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log = port or free_port(), folder / "mongod.log"
    command = [str(find_mongod()), "--dbpath", str(folder), "--bind_ip", "127.0.0.1", "--port", str(port)]
    with open(log, "w") as output:
        mongod = subprocess.Popen(
            [*command, "--nounixsocket"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the program: it may still have to clean up its datasets
        )
    deadline = time.monotonic() + 60
    while not _answers(port):
        if mongod.poll() is not None or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    else:
        if mongod.poll() is None:  # else the answer came from another program, which took the port first
            return mongod, port
    mongod.kill()
    raise RuntimeError(f"MongoDB did not start; see {log}.")


def connect(folder: Path, pid: int) -> int:
    """The port of the folder's server, which is kept for as long as the process lives; starts it where none runs."""
    clients = folder / "clients"
    clients.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        (clients / str(pid)).write_text(str(psutil.Process(pid).create_time()))
        port = _running(folder)
        if port is None:
            with open(folder / "keeper.log", "w") as log:
                keeper = subprocess.Popen(
                    [sys.executable, __file__, str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            while (port := _running(folder)) is None:
                if keeper.poll() is not None:
                    sys.exit((folder / "keeper.log").read_text().strip().splitlines()[-1])
                time.sleep(0.1)
    return port


def keep(folder: Path) -> None:
    """Run the folder's server until its last client has ended."""
    (folder / "port").unlink(missing_ok=True)
    mongod, port = start_mongod(folder / "data")
    try:
        (folder / "port").write_text(str(port))
        while mongod.poll() is None:
            time.sleep(1)
            with _locked(folder):  # nobody is promised a server that is about to stop
                if not any([_lives(client) for client in (folder / "clients").iterdir()]):
                    (folder / "port").unlink()
                    mongod.terminate()
                    mongod.wait()
    except FileNotFoundError:
        pass  # the whole folder was deleted
    finally:
        mongod.terminate()
        mongod.wait()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _running(folder: Path) -> int | None:
    try:
        port = int((folder / "port").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return port if _answers(port) else None


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _lives(client: Path) -> bool:
    """Whether the process that a client's file is named after still runs; removes the file if not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if str(psutil.Process(int(client.name)).create_time()) == client.read_text():  # or its number was given again
            return True
    client.unlink()
    return False


if __name__ == "__main__":
    os.umask(0o077)
    if len(sys.argv) == 2:
        keep(Path(sys.argv[1]))
    else:
        try:
            print(f"mongodb://127.0.0.1:{connect(Path(sys.argv[1]), int(sys.argv[2]))}")
        except (FileNotFoundError, RuntimeError) as error:
            sys.exit(str(error))
