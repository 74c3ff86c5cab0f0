"""Where map files live, and how they get there: all maps of a sample at once, or none.

    <maps_dir>/<run id>/<last two hex digits of the sample id>/<sample id>/<name>.png

A writer fills a folder of its own below `<maps_dir>/<run id>/.partial/` and moves it into place when it is complete. It
holds a lock on that folder as long as it lives, so that a later run on the same machine can tell a killed writer's
leftovers from the work of a writer beside it. Those of other machines it leaves alone: many network file systems grant
a lock that another machine holds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import uuid
from collections.abc import Container, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows has no fcntl: leftovers of killed writers stay until the run is deleted
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
HOST = socket.gethostname()
ATTEMPTS = 10  # to find the folder of writers while others come and go


def run_folder(maps_dir: str | Path, run_id: str) -> Path:
    return Path(maps_dir) / run_id


def sample_folder(maps_dir: str | Path, run_id: str, sample_id: str) -> Path:
    """At most 256 folders side by side, then one per sample: no directory has a million entries."""
    return run_folder(maps_dir, run_id) / sample_id[-2:] / sample_id


def check_writable(folder: str | Path) -> str | None:
    """A sentence that says why nothing can be written below a folder, or None. Creates nothing."""
    nearest = Path(folder).expanduser().absolute()
    while not os.path.exists(nearest):  # Path.exists() raises where it may not look
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"Maps cannot be written to {folder}, because {nearest} is a file. Choose another folder."
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"Maps cannot be written to {folder}: no permission to write in {nearest}. Choose another folder."
    return None


def delete_maps(folder: Path, names: Container[str]) -> Iterator[Path]:
    """Delete the maps of a run one by one, and the folders that become empty. Anything else in them stays.

    Args:
        folder: a run's
        names: of its maps
    """
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    for sample in folder.glob("[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 24):
        for path in sample.glob("*.png"):
            if path.stem in names:
                path.unlink(missing_ok=True)
                yield path
        with contextlib.suppress(OSError):
            sample.rmdir()
            sample.parent.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()


class MapWriter:
    """Writes the maps of one run; use as a context manager.

    Args:
        maps_dir: root of all map files
        run_id: the run's

    Raises:
        OSError: on entering, if the folder cannot be made
    """

    def __init__(self, maps_dir: str | Path, run_id: str):
        self.maps_dir = Path(maps_dir)
        self.run_id = run_id
        self._partial = run_folder(maps_dir, run_id) / PARTIAL
        self._count = itertools.count()
        self._parents: set[Path] = set()  # made already, at most 256
        self._own: Path
        self._lock: IO[bytes]

    def __enter__(self) -> MapWriter:
        self._own = self._partial / f"{HOST}-{uuid.uuid4().hex}"
        for attempts_left in reversed(range(ATTEMPTS)):
            self._partial.mkdir(parents=True, exist_ok=True)
            try:
                _sweep(self._partial)
                self._lock = _lock_path(self._own).open("wb")
                break
            except FileNotFoundError:  # another writer, the last one, has just ended and removed the folder
                if not attempts_left:
                    raise
        _try_lock(self._lock)  # before the folder is made: one without a lock is nobody's to sweep
        self._own.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._own, ignore_errors=True)
        self._lock.close()
        with contextlib.suppress(OSError):
            _lock_path(self._own).unlink()
            self._partial.rmdir()  # stays while others write

    def write(self, sample_id: str, maps: dict[str, NDArray[np.uint8]]) -> dict[str, str]:
        """Write all maps of a sample. Thread-safe.

        Args:
            sample_id: 24 hex digits
            maps: (h, w) uint8 by name

        Returns:
            the absolute path of each map

        Raises:
            OSError: if the disk is full or the folder not writable; nothing of the sample is left behind
        """
        folder = sample_folder(self.maps_dir, self.run_id, sample_id)
        made = self._own / str(next(self._count))
        made.mkdir()
        try:
            for name, values in maps.items():
                _write_file(f"{made}{os.sep}{name}.png", _png(values))
            if folder.parent not in self._parents:
                folder.parent.mkdir(exist_ok=True)
                self._parents.add(folder.parent)
            _move_into_place(made, folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return {name: f"{folder}{os.sep}{name}.png" for name in maps}

    def remove(self, sample_id: str) -> None:
        """Delete the maps of a sample, if there are any."""
        shutil.rmtree(sample_folder(self.maps_dir, self.run_id, sample_id), ignore_errors=True)


def _write_file(path: str, data: bytes) -> None:
    # Path.write_bytes makes twice as many system calls, which shows where every sample has 18 files.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def _move_into_place(made: Path, folder: Path) -> None:
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Left by a killed run, written by a writer beside this one, or made again on purpose: replace file by file,
        # since readers may have them open.
        for path in made.iterdir():
            path.replace(folder / path.name)
        made.rmdir()


def _png(values: NDArray[np.uint8]) -> bytes:
    # Most maps of most photos are all zero.
    return encode_png(np.ascontiguousarray(values)) if values.any() else _blank_png(values.shape)


def encode_png(values: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey PNG of a map (h, w)."""
    encoded, data = cv2.imencode(".png", values)
    if not encoded:
        raise ValueError(f"A map of {values.shape[1]} x {values.shape[0]} pixels could not be written as PNG.")
    return data.tobytes()


@lru_cache(maxsize=64)
def _blank_png(shape: tuple[int, int]) -> bytes:
    return encode_png(np.zeros(shape, np.uint8))


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _try_lock(file: IO[bytes]) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sweep(partial: Path) -> None:
    """Remove what killed writers of this machine left: locks that nobody holds, and their folders."""
    for lock in (path for path in partial.glob("*.lock") if path.stem.rpartition("-")[0] == HOST):
        with contextlib.suppress(OSError), lock.open("rb+") as file:
            if _try_lock(file):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()
