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
COUNT = 32
MAPS = 18
INPUT_SIZE = 256  # smaller than the model's own: this is about files, not about poses


def map_files(folder: Path) -> set[str]:
    # os.walk, since folders vanish while it looks
    return {os.path.join(root, name) for root, _, names in os.walk(folder) for name in names}


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

    count = random.randrange(1, COUNT * MAPS // 2)  # the rest takes long enough to be killed in
    delay = random.uniform(0, 0.05)
    print(f"killed {delay:.3f} s after map {count}")  # pytest shows it where the test fails
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run_pipeline.py"), made.name, str(maps_dir), str(INPUT_SIZE)],
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )
    try:
        deadline = time.monotonic() + 120
        while len(map_files(maps_dir)) < count:
            assert process.poll() is None, "the run ended too early"
            assert time.monotonic() < deadline, "the run made too few maps"
            time.sleep(0.005)
        time.sleep(delay)
    finally:
        process.kill()
        process.wait()

    finished = maps_of(made)
    statuses = dict(zip(made.values("id"), made.values("pose_status"), strict=True))
    assert len(finished) < COUNT, "killed too late to show anything"
    assert {sample_id for sample_id, status in statuses.items() if status == "done"} == set(finished)
    for paths in finished.values():
        assert len(paths) == MAPS
        assert all(cv2.imread(path, cv2.IMREAD_UNCHANGED) is not None for path in paths)

    settings = pipeline.Settings(label_field="pose", maps_dir=str(maps_dir), input_size=INPUT_SIZE)
    pipeline.run(made.view(), settings)
    complete = maps_of(made)
    assert made.values("pose_status") == ["done"] * COUNT
    assert all(len(paths) == MAPS for paths in complete.values())
    assert {sample_id: complete[sample_id] for sample_id in finished} == finished, "finished samples were repeated"
    assert map_files(maps_dir) == {path for paths in complete.values() for path in paths}, "files were left behind"
