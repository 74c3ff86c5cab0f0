"""Writers of map files whose target is in the way, whose disk is full, or who are two at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from inference.map_files import MapWriter

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "6b0000000000000000000001"
SAMPLE, OTHER = "6a00000000000000000000ab", "6a00000000000000000000cd"


def maps(seed: int, side: int = 40) -> dict[str, NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    return {name: random.integers(1, 256, (side, side), dtype=np.uint8) for name in ("max", "nose", "left_eye")}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("blocked", ["ab", f"ab/{SAMPLE}"])
def test_a_file_in_the_way_of_a_folder_costs_that_sample_only(blocked: str, tmp_path: Path) -> None:
    way = tmp_path / RUN / blocked
    way.parent.mkdir(parents=True)
    way.write_text("somebody's")
    with MapWriter(tmp_path, RUN) as writer:
        with pytest.raises(OSError, match=RUN):
            writer.write(SAMPLE, maps(0))
        assert {name for name in files(tmp_path) if name.endswith(".png")} == set()
        writer.write(OTHER, maps(0))
    assert files(tmp_path) == {f"{RUN}/{blocked}", *(f"{RUN}/cd/{OTHER}/{name}.png" for name in maps(0))}
    assert way.read_text() == "somebody's"


def test_a_map_that_cannot_be_written_takes_the_others_of_its_sample_with_it(tmp_path: Path) -> None:
    with MapWriter(tmp_path, RUN) as writer:
        with pytest.raises(OSError, match="too long"):
            writer.write(SAMPLE, {**maps(0), "x" * 300: maps(0)["max"]})
        assert {name for name in files(tmp_path) if name.endswith(".png")} == set()
    assert files(tmp_path) == set()


def test_a_root_that_is_a_file_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("somebody's")
    with pytest.raises(OSError, match="maps"), MapWriter(tmp_path / "maps", RUN):
        pass
    assert files(tmp_path) == {"maps"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the file size")
def test_a_file_that_ends_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """A real limit of the file size: the operating system takes the first part of a map and refuses the rest."""
    code = f"""
import resource, sys
import numpy as np
from inference.map_files import MapWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
small, large = np.ones((9, 9), np.uint8), np.random.default_rng(0).integers(1, 256, (90, 90), dtype=np.uint8)
with MapWriter(sys.argv[1], {RUN!r}) as writer:
    writer.write({OTHER!r}, {{"max": small}})
    try:
        writer.write({SAMPLE!r}, {{"max": small, "nose": large}})
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert files(tmp_path) == {f"{RUN}/cd/{OTHER}/max.png"}


def test_two_writers_of_one_sample_leave_whole_maps(tmp_path: Path) -> None:
    """Every file is one of theirs, also while both write; nobody gets an error and no leftovers stay."""
    count, again = 8, 6
    theirs = [maps(1, 250), maps(2, 250)]
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []

    def write(own: dict[str, NDArray[np.uint8]]) -> None:
        try:
            with MapWriter(tmp_path, RUN) as writer:
                for index in range(count * again):
                    barrier.wait(30)
                    for name, path in writer.write(f"{index % count:024x}", own).items():
                        seen = cv2.imread(path, cv2.IMREAD_UNCHANGED)
                        assert any(np.array_equal(seen, each[name]) for each in theirs), f"{path} is corrupt"
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=write, args=(own,)) for own in theirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert files(tmp_path) == {f"{RUN}/{i:02x}/{i:024x}/{n}.png" for i in range(count) for n in theirs[0]}
    assert not (tmp_path / RUN / ".partial").exists()


def test_a_sample_can_be_removed_and_written_again(tmp_path: Path) -> None:
    with MapWriter(tmp_path, RUN) as writer:
        writer.write(SAMPLE, maps(0))
        writer.write(OTHER, maps(0))
        writer.remove(SAMPLE)
        writer.remove(SAMPLE)  # there are none now
        assert not (tmp_path / RUN / "ab" / SAMPLE).exists()
        assert (tmp_path / RUN / "cd" / OTHER / "max.png").exists()
        paths = writer.write(SAMPLE, maps(3))
    np.testing.assert_array_equal(cv2.imread(paths["nose"], cv2.IMREAD_UNCHANGED), maps(3)["nose"])
