"""Copies of real photos are found by their poses, with the bundled weights, whichever they are. Needs DATA_DIR."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.poses import MIXED, photos_and_copies, share_found
from evaluation import indexing
from inference import pipeline

PHOTOS = 40
ENOUGH = 0.8  # the benchmark measures more photos; this notices when the embedding no longer works


def test_copies_of_photos_are_their_nearest_neighbours(dataset: Callable, data_dir: Path, tmp_path: Path):
    images = sorted((data_dir / "val" / "images").iterdir())[:PHOTOS]
    made = dataset()
    made.add_samples([sample for sample in photos_and_copies(images, tmp_path) if sample.kind != "zoomed"])
    pipeline.run(made, pipeline.Settings("pose", maps_dir=str(tmp_path / "maps")), progress=False)
    indexing.index(made, indexing.Choices(key="poses", visualization=None, uniqueness=False), progress=False)
    seen = made.match({"kind": "photo", "pose_num_people": {"$gt": 0}}).values("photo")
    assert len(seen) >= PHOTOS // 3, "the weights find people in most photos with people"
    wanted = {photo: MIXED[index % len(MIXED)] for index, photo in enumerate(seen)}
    assert share_found(made, wanted) >= ENOUGH
