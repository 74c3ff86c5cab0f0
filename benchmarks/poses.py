"""Whether similar poses are found: `python -m benchmarks.poses --images DIR --annotations COCO.json`.

Photos and copies of them go through a run, `index_poses` and FiftyOne Brain's `sort_by_similarity`, as a user's would.

- `found`: of 100 photos in which the model finds people, with one mirrored, rescaled or shifted copy each: the share
  whose nearest neighbour is the copy, among all photos and all of the copies
- `found_<kind>`: the same with a copy of one kind for every photo in which the model finds people
    - mirrored: left and right exchanged
    - rescaled: to 60% of its size
    - shifted: by 8% of its width; what leaves the frame is lost
    - zoomed: to 85% in a black frame of the old size, so that people are smaller for the network too
- `found_any`: as `found`, for the first 100 photos, also those in which the model finds nobody
- `sitting`: of the people found, as far as they are labelled: the share of sitting people among the three nearest
  neighbours of a sitting one; `sitting_base`: among all. `sitting_drawn`, `sitting_drawn_base`: the same with maps
  drawn from the labels, which shows the embedding without the model's mistakes
- `indexed_per_second`: samples, from maps on disk to the index
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from evaluation import indexing
from evaluation.embeddings import embedding
from inference import checkpoints, pipeline
from inference.joints import COCO as JOINTS
from inference.settings import Settings

QUERIES = 100
NEIGHBORS = 3
OVERLAP = 0.4  # of the boxes around joints, from which on a person found is a labelled one
SITTING = 0.45  # thighs that go down by less than this share of the torso's length
DRAWN_AREA = 64**2  # of labelled people that are drawn, at least, pixels
DRAWN_JOINTS = 8  # and at least so many joints
KEY = "poses"
Image = NDArray[np.uint8]
Array = NDArray[np.floating]


def shifted(image: Image, ratio: float, across: float) -> Image:
    """The image scaled about its middle and moved by a share of its width, in a frame of its own size."""
    height, width = image.shape[:2]
    rest = (1 - ratio) / 2
    matrix = np.array([[ratio, 0, (rest + across) * width], [0, ratio, rest * height]])
    return cv2.warpAffine(image, matrix, (width, height))  # type: ignore[return-value]


COPIES: dict[str, Callable[[Image], Image]] = {
    "mirrored": lambda image: image[:, ::-1],
    "rescaled": lambda image: cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),  # type: ignore
    "shifted": lambda image: shifted(image, 1, 0.08),
    "zoomed": lambda image: shifted(image, 0.85, 0),
}
MIXED = ("mirrored", "rescaled", "shifted")  # in turn


def photos_and_copies(images: list[Path], folder: Path) -> Iterator[fo.Sample]:
    for path in images:
        yield fo.Sample(filepath=str(path), photo=path.name, kind="photo")
        image = cv2.imread(str(path))
        for kind, copy in COPIES.items():
            target = folder / f"{path.stem}_{kind}.jpg"
            cv2.imwrite(str(target), copy(image), [cv2.IMWRITE_JPEG_QUALITY, 95])  # type: ignore[arg-type]
            yield fo.Sample(filepath=str(target), photo=path.name, kind=kind)


# --- copies


def share_found(dataset: fo.Dataset, wanted: dict[str, str]) -> float:
    """The share of photos whose nearest neighbour is their copy.

    Args:
        dataset: with an index
        wanted: for each photo that is asked for, the kind of its copy
    """
    ids = {(photo, kind): name for photo, kind, name in zip(*dataset.values(["photo", "kind", "id"]), strict=True)}
    copies = {photo: ids[photo, kind] for photo, kind in wanted.items()}
    photos = [name for (_, kind), name in ids.items() if kind == "photo"]
    view = dataset.select([*photos, *copies.values()])
    hits = 0
    for photo, copy in copies.items():
        own = ids[photo, "photo"]
        if dataset[own][f"{KEY}_embedding"] is not None:
            nearest = view.sort_by_similarity(own, k=2, brain_key=KEY).values("id")
            hits += next(name for name in nearest if name != own) == copy
    return hits / len(copies)


def copy_figures(dataset: fo.Dataset) -> dict[str, float]:
    photos = dataset.match({"kind": "photo"}).sort_by("photo")
    everything = photos.values("photo")
    people = photos.match({"pose_num_people": {"$gt": 0}}).values("photo")

    def mixed(names: Sequence[str]) -> dict[str, str]:
        return {name: MIXED[index % len(MIXED)] for index, name in enumerate(names[:QUERIES])}

    return {
        "found": share_found(dataset, mixed(people)),
        **{f"found_{kind}": share_found(dataset, dict.fromkeys(people, kind)) for kind in COPIES},
        "found_any": share_found(dataset, mixed(everything)),
        "photos": len(everything),
        "photos_with_people": len(people),
    }


# --- people who sit


def is_sitting(joints: Array) -> bool | None:
    """Whether labelled joints (17, 3) are those of somebody whose thighs do not hang down; None if they do not tell."""
    at = dict(zip(JOINTS.joints, joints, strict=True))
    drops = []
    for side in ("left", "right"):
        hip, knee, shoulder = (at[f"{side}_{joint}"] for joint in ("hip", "knee", "shoulder"))
        if min(hip[2], knee[2], shoulder[2]) > 0:
            drops.append((knee[1] - hip[1]) / max(float(np.linalg.norm(shoulder[:2] - hip[:2])), 1.0))
    return bool(np.mean(drops) < SITTING) if drops else None


def sitting_near_sitting(vectors: list[Array], sitting: list[bool], photos: list[str]) -> tuple[float, float]:
    """The share of sitting people among the nearest neighbours of sitting ones in other photos, and among all."""
    matrix, sits = np.array(vectors), np.array(sitting)
    similarity = matrix @ matrix.T
    similarity[np.equal.outer(photos, photos)] = -1  # people at one table, and one person found twice
    nearest = np.argsort(-similarity, axis=1)[:, :NEIGHBORS]
    return float(sits[nearest[sits]].mean()), float(sits.mean())


def labelled(annotations: COCO) -> Iterator[tuple[str, Array, float]]:
    """File, joints (17, 3) and area of labelled people."""
    for person in annotations.anns.values():
        if not person["iscrowd"] and person["num_keypoints"]:
            name = annotations.imgs[person["image_id"]]["file_name"]
            yield name, np.array(person["keypoints"], float).reshape(-1, 3), person["area"]


def corners(joints: Array) -> Array:
    seen = joints[joints[:, 2] > 0, :2]
    return np.concatenate([seen.min(axis=0), seen.max(axis=0)])


def overlap(one: Array, other: Array) -> float:
    """Intersection over union of two boxes [x, y, x, y]."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(sides.clip(0).prod())
    return common / max(float((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()) - common, 1e-9)


def people_found(dataset: fo.Dataset, annotations: COCO) -> tuple[list[Array], list[bool], list[str]]:
    """Embeddings of the people found in the photos that are labelled ones, whether they sit, and their photos."""
    known: dict[str, list[Array]] = {}
    for name, joints, _ in labelled(annotations):
        known.setdefault(name, []).append(joints)
    sizes = {record["file_name"]: (record["width"], record["height"]) for record in annotations.imgs.values()}
    vectors, sitting, photos = [], [], []
    for sample in dataset.match({"kind": "photo"}):
        for person in sample[f"{KEY}_people"].detections:
            x, y, w, h = person.bounding_box
            box = np.array([x, y, x + w, y + h]) * (sizes[sample.photo] * 2)
            best = max(known.get(sample.photo, []), key=lambda joints: overlap(box, corners(joints)), default=None)
            sits = None if best is None or overlap(box, corners(best)) < OVERLAP else is_sitting(best)
            if sits is not None:
                vectors.append(person.embedding)
                sitting.append(sits)
                photos.append(sample.photo)
    return vectors, sitting, photos


def drawn(joints: Array) -> NDArray[np.float32]:
    """Maps (17, 200, 200) with a Gaussian at each labelled joint, the person 100 pixels large in the middle."""
    box = corners(joints)
    middle, size = (box[:2] + box[2:]) / 2, np.hypot(*(box[2:] - box[:2])) / np.sqrt(2)
    x, y = ((joints[:, :2] - middle) * 100 / size + 100).T[:, :, None]
    pixels = np.arange(200) + 0.5
    across, down = (np.exp(-(((pixels - places) / 5) ** 2) / 2) for places in (x, y))
    return (down[:, :, None] * across[:, None, :] * (joints[:, 2] > 0)[:, None, None]).astype(np.float32)


def sitting_figures(dataset: fo.Dataset, annotations: COCO) -> dict[str, float]:
    found = people_found(dataset, annotations)
    sitting, base = sitting_near_sitting(*found)
    order = JOINTS.flip
    vectors, truth, photos = [], [], []
    for name, joints, area in labelled(annotations):
        sits = is_sitting(joints)
        if sits is not None and area >= DRAWN_AREA and (joints[:, 2] > 0).sum() >= DRAWN_JOINTS:
            vector = embedding(drawn(joints), order)
            assert vector is not None
            vectors.append(vector)
            truth.append(sits)
            photos.append(name)
    drawn_sitting, drawn_base = sitting_near_sitting(vectors, truth, photos)
    return {
        "sitting": sitting,
        "sitting_base": base,
        "sitting_people": sum(found[1]),
        "sitting_drawn": drawn_sitting,
        "sitting_drawn_base": drawn_base,
    }


def measure(images: list[Path], annotations: COCO | None, settings: Settings, folder: Path) -> dict[str, float]:
    """All figures."""
    dataset = fo.Dataset(f"poses-{uuid.uuid4().hex[:8]}")
    try:
        dataset.add_samples(photos_and_copies(images, folder), progress=False)
        print(f"maps of {len(dataset)} photos and copies ...", flush=True)
        pipeline.run(dataset, settings, progress=False)
        started = time.perf_counter()
        choices = indexing.Choices(key=KEY, visualization=None, uniqueness=False)
        state = indexing.index(dataset, choices, progress=False)
        figures = {"indexed_per_second": state.done / (time.perf_counter() - started)}
        figures |= copy_figures(dataset)
        return {**figures, **(sitting_figures(dataset, annotations) if annotations else {})}
    finally:
        dataset.delete()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, help="a COCO keypoint file, for the figures about sitting people")
    parser.add_argument("--model", default=checkpoints.DEFAULT_MODEL)
    parser.add_argument("--checkpoint", help="local weights for that model")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    arguments = parser.parse_args()
    images = sorted(path for path in arguments.images.iterdir() if path.is_file())
    annotations = None
    if arguments.annotations:
        with contextlib.redirect_stdout(io.StringIO()):
            annotations = COCO(str(arguments.annotations))
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-poses-") as name:
        folder = Path(name)
        settings = Settings(model=arguments.model, checkpoint=arguments.checkpoint, maps_dir=str(folder / "maps"))
        (folder / "copies").mkdir()
        figures = measure(images, annotations, settings, folder / "copies")
    for name, figure in figures.items():
        print(f"{name:22} {figure:.3f}" if isinstance(figure, float) else f"{name:22} {figure}")
    if arguments.json:
        print(json.dumps({name: round(figure, 6) for name, figure in figures.items()}))


if __name__ == "__main__":
    main()
