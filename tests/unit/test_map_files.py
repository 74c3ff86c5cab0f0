"""Map files: all of a sample or none, and what a killed writer leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference import map_files
from inference.map_files import MapWriter, check_writable, run_folder

SAMPLE, OTHER = "6a00000000000000000000ab", "6a00000000000000000000cd"
RUN = "6b0000000000000000000001"
MAPS = {"max": np.arange(600, dtype=np.uint8).reshape(20, 30), "nose": np.zeros((20, 30), np.uint8)}

# A writer in a process of its own: it has one file of a sample written and waits, in the middle of the work.
WRITER = f"""
import sys, time
import numpy as np
from inference import map_files
write = map_files._write_file
def slow(path, data):
    write(path, data)
    print("writing", flush=True)
    time.sleep(600)
map_files._write_file = slow
with map_files.MapWriter(sys.argv[1], {RUN!r}) as writer:
    writer.write({SAMPLE!r}, {{"max": np.ones((9, 9), np.uint8), "nose": np.ones((9, 9), np.uint8)}})
"""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def busy_writer(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()


def test_maps_are_png_files_with_the_same_values(tmp_path: Path):
    with MapWriter(tmp_path, RUN) as writer:
        paths = writer.write(SAMPLE, MAPS)
    assert set(paths) == set(MAPS)
    for name, path in paths.items():
        assert path == str(tmp_path / RUN / "ab" / SAMPLE / f"{name}.png")
        np.testing.assert_array_equal(cv2.imread(path, cv2.IMREAD_UNCHANGED), MAPS[name])
    assert files(tmp_path) == {f"{RUN}/ab/{SAMPLE}/{name}.png" for name in MAPS}, "nothing else stays behind"


def test_maps_written_again_replace_the_old_ones(tmp_path: Path):
    with MapWriter(tmp_path, RUN) as writer:
        writer.write(SAMPLE, MAPS)
        paths = writer.write(SAMPLE, {"max": MAPS["max"] // 2})
    np.testing.assert_array_equal(cv2.imread(paths["max"], cv2.IMREAD_UNCHANGED), MAPS["max"] // 2)


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_leaves_nothing_of_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int):
    calls = []

    def full(file: int, data: bytes, write=os.write) -> int:
        calls.append(file)
        if len(calls) > written:
            raise OSError(28, "No space left on device")
        return write(file, data)

    with MapWriter(tmp_path, RUN) as writer:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            writer.write(SAMPLE, MAPS)
        monkeypatch.undo()
        assert not {name for name in files(tmp_path) if name.endswith(".png")}
        writer.write(OTHER, MAPS)
    assert files(tmp_path) == {f"{RUN}/cd/{OTHER}/{name}.png" for name in MAPS}


def test_a_killed_writer_leaves_no_half_sample_and_the_next_one_cleans_up(tmp_path: Path, busy_writer):
    busy_writer.send_signal(signal.SIGKILL)
    busy_writer.wait()
    left = files(run_folder(tmp_path, RUN))
    assert any(name.endswith("max.png") for name in left), "killed too early to show anything"
    assert all(name.startswith(".partial") for name in left)

    with MapWriter(tmp_path, RUN) as writer:
        writer.write(OTHER, MAPS)

    assert files(tmp_path) == {f"{RUN}/cd/{OTHER}/{name}.png" for name in MAPS}


def test_a_writer_beside_a_living_one_leaves_its_work_alone(tmp_path: Path, busy_writer):
    before = files(run_folder(tmp_path, RUN))
    assert any(name.endswith("max.png") for name in before)
    with MapWriter(tmp_path, RUN) as writer:
        writer.write(OTHER, MAPS)
    assert before <= files(run_folder(tmp_path, RUN))


def test_what_another_machine_writes_is_left_alone(tmp_path: Path, busy_writer, monkeypatch: pytest.MonkeyPatch):
    """Also where its lock can be had: many network file systems know the locks of one machine only."""
    busy_writer.send_signal(signal.SIGKILL)
    busy_writer.wait()
    theirs = files(run_folder(tmp_path, RUN))
    monkeypatch.setattr(map_files, "HOST", map_files.HOST[:-1])
    with MapWriter(tmp_path, RUN) as writer:
        writer.write(OTHER, MAPS)
    assert theirs <= files(run_folder(tmp_path, RUN))


def test_a_writer_that_begins_while_the_last_one_ends_finds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sweep, met = map_files._sweep, []

    def others_end(partial: Path) -> None:
        sweep(partial)
        if not met:
            met.append(partial)
            partial.rmdir()

    monkeypatch.setattr(map_files, "_sweep", others_end)
    with MapWriter(tmp_path, RUN) as writer:
        writer.write(SAMPLE, MAPS)
    assert met


def test_folders_that_cannot_be_written_to_are_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert check_writable(tmp_path / "not" / "there" / "yet") is None
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    assert "is a file" in str(check_writable(tmp_path / "file" / "maps"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert "no permission" in str(check_writable(tmp_path))
