"""A run that is killed leaves whole samples, and the next run finishes the rest."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import fiftyone as fo
import pytest

from inference import pipeline

HERE = Path(__file__).parent
COUNT = 48


def map_files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def maps_of(dataset: fo.Dataset) -> dict[str, list[str]]:
    """The map files that each sample with a heatmap refers to, by sample id."""
    dataset.reload()
    fields = list(dataset.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap))
    columns = [dataset.values(f"{field}.map_path") for field in fields]
    rows = zip(dataset.values("id"), *columns, strict=True)
    return {sample_id: [path for path in paths if path] for sample_id, *paths in rows if any(paths)}


@pytest.mark.parametrize("trial", range(3))
def test_sigkill_leaves_no_sample_with_half_of_its_maps(dataset, photos: Path, tmp_path: Path, trial: int):
    folder, maps_dir = tmp_path / "photos", tmp_path / "maps"
    folder.mkdir()
    for index in range(COUNT):
        source = photos / ("astronaut.jpg", "rocket.jpg", "chelsea.jpg")[index % 3]
        shutil.copy(source, folder / f"{index:02}.jpg")
    made = dataset(folder)

    moment = random.uniform(0, 2)
    print(f"killed {moment:.3f} s after its first map")  # pytest shows it where the test fails
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run_pipeline.py"), made.name, str(maps_dir)],
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )
    deadline = time.monotonic() + 120
    while not map_files(maps_dir):
        assert process.poll() is None, "the run ended before its first map"
        assert time.monotonic() < deadline, "the run made no map"
        time.sleep(0.01)
    time.sleep(moment)
    process.kill()
    process.wait()

    finished = maps_of(made)
    statuses = dict(zip(made.values("id"), made.values("pose_status"), strict=True))
    assert len(finished) < COUNT, "killed too late to show anything"
    assert {sample_id for sample_id, status in statuses.items() if status == "done"} == set(finished)
    for paths in finished.values():
        assert len(paths) == 18
        assert all(cv2.imread(path, cv2.IMREAD_UNCHANGED) is not None for path in paths)

    pipeline.run(made.view(), pipeline.Settings(label_field="pose", maps_dir=str(maps_dir)))
    complete = maps_of(made)
    assert made.values("pose_status") == ["done"] * COUNT
    assert all(len(paths) == 18 for paths in complete.values())
    assert {sample_id: complete[sample_id] for sample_id in finished} == finished, "finished samples were repeated"
    assert map_files(maps_dir) == {path for paths in complete.values() for path in paths}, "files were left behind"
