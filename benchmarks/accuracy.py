"""How well a model finds joints and people: `python -m benchmarks.accuracy --images DIR --annotations COCO.json`.

Images go through the functions of the pipeline. `ap…` and `ar` are pycocotools' keypoint figures over the people that
grouping finds, as published: every group of peaks counts, ranked by its score (but for the copies that a pose refiner
makes). `stored_ap…` and `stored_ar` are the same over the people that a run stores, without groups and joints that
were only guessed: what the operator evaluate_heatmaps gives. Where the model has other joints than the annotations,
those that both name are compared (`joints` says how many). The other figures judge the default maps (8 bits,
resolution "network"):

- `joint_recall`: share of labelled joints (v >= 1, people larger than 32^2) whose map has a local maximum of at least
  0.2 within 0.15 * sqrt(area); `joint_recall_large`: of people larger than 96^2
- `false_alarm_rate`: share of the images of `--person-free` whose maximum map reaches 0.2
- `recall_at_fa3`, `recall_large_at_fa3`: recall of maxima above the largest value that at most 3% of the person-free
  images exceed, so that no rescaling of the maps can bend it
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from evaluation import coco
from inference import checkpoints
from inference.images import read_image
from inference.joints import COCO as JOINTS
from inference.joints import JointSet
from inference.labels import Seen, find_people, keypoints, see
from inference.predictor import PRECISIONS, Predictor, PreparedImage
from inference.settings import Settings

THRESHOLD = 0.2
ALARM_SHARE = 0.03
RADIUS = 0.15  # of the root of a person's area
SMALL, LARGE = 32**2, 96**2  # COCO's areas, pixels
BATCH = 4


def look_at(predictor: Predictor, paths: list[Path], what: str) -> Iterator[tuple[Path, Seen]]:
    """What the network sees in images, in batches of one shape, so not in their order."""
    settings = Settings()
    waiting: dict[tuple, list[tuple[Path, PreparedImage]]] = {}

    def run(batch: list[tuple[Path, PreparedImage]]) -> Iterator[tuple[Path, Seen]]:
        seen = see(predictor, settings, [image for _, image in batch], joints=True)
        yield from zip((path for path, _ in batch), seen, strict=True)

    with tqdm(total=len(paths), desc=what, unit=" images") as bar:
        for path in paths:
            image = predictor.prepare(read_image(str(path)))
            batch = waiting.setdefault(image.shape, [])
            batch.append((path, image))
            if len(batch) == BATCH:
                yield from run(waiting.pop(image.shape))
                bar.update(BATCH)
        for batch in waiting.values():
            yield from run(batch)
            bar.update(len(batch))


def stored(seen: Seen, order: tuple[int, ...], columns: list[int]) -> list[dict[str, Any]]:
    """The people that a run stores, as COCO results."""
    people = find_people(seen, order, all_groups=False)
    return coco.results(keypoints(people, seen.warp).to_dict(), columns, seen.warp.image_wh)


def detections(seen: Seen, image_id: int, order: tuple[int, ...], columns: list[int]) -> list[dict[str, Any]]:
    """All groups of an image as COCO results, in pixels of the image."""
    people = find_people(seen, order)
    points = seen.warp.to_image(people.joints[:, :, :2])
    joints = np.concatenate([points, people.joints[:, :, 2:]], axis=2)[:, columns]
    return [
        {"image_id": image_id, "category_id": 1, "keypoints": person.ravel().tolist(), "score": float(score)}
        for person, score in zip(joints, people.scores, strict=True)
    ]


def keypoint_figures(annotations: COCO, results: list[dict[str, Any]], sigmas: NDArray) -> dict[str, float]:
    if not results:
        return dict.fromkeys(("ap", "ap50", "ap_medium", "ap_large", "ar"), 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(annotations, annotations.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, _, ap_medium, ap_large, ar, *_ = (float(figure) for figure in evaluation.stats)
    return {"ap": ap, "ap50": ap50, "ap_medium": ap_medium, "ap_large": ap_large, "ar": ar}


def local_maxima(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map (h, w) with everything but its local maxima (of 3 x 3 pixels) set to 0."""
    return np.where(values == cv2.dilate(values, np.ones((3, 3), np.uint8)), values, 0).astype(np.uint8)


def joint_peaks(seen: Seen, people: Iterable[dict[str, Any]], chosen: list[int]) -> Iterator[tuple[float, bool]]:
    """For each labelled joint, the highest local maximum (0 to 1) near it, and whether its person is large."""
    assert seen.maps.joints is not None
    maxima = [local_maxima(values) for values in np.ascontiguousarray(seen.maps.joints[chosen])]
    height, width = maxima[0].shape
    scale = np.array([width / seen.warp.image_wh[0], height / seen.warp.image_wh[1]])
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    for person in people:
        if person["iscrowd"] or person["area"] <= SMALL:
            continue
        radius = RADIUS * np.sqrt(person["area"])
        for maximum, (x, y, visibility) in zip(maxima, np.reshape(person["keypoints"], (-1, 3)), strict=True):
            if visibility >= 1:
                across, down = columns / scale[0] - x, rows / scale[1] - y
                near = across[None] ** 2 + down[:, None] ** 2 <= radius**2
                yield float(maximum[near].max(initial=0)) / 255, person["area"] > LARGE


def share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 0.0


def align(annotations: COCO, joint_set: JointSet) -> list[int]:
    """Leave to annotations the joints that a model has too, in its order; returns which of the model's these are.

    Categories with the same keypoints become one.

    Raises:
        ValueError: if there are some with others
    """
    categories = [annotations.cats[number] for number in sorted(annotations.cats)]
    named = [category for category in categories if category.get("keypoints")] or categories[:1]
    labelled = list(named[0].get("keypoints") or JOINTS.joints)
    if any(category.get("keypoints", labelled) != labelled for category in named):
        raise ValueError("The annotations have several categories with other keypoints each; use a file with one.")
    columns = [k for k, joint in enumerate(joint_set.joints) if joint in labelled]
    chosen = [labelled.index(joint_set.joints[k]) for k in columns]
    ids = {category["id"] for category in named}
    people = [person for person in annotations.dataset["annotations"] if person["category_id"] in ids]
    people = [{**coco.chosen_joints(person, chosen), "category_id": 1} for person in people]
    annotations.dataset["annotations"], annotations.dataset["categories"] = people, [{**named[0], "id": 1}]
    annotations.createIndex()
    return columns


def measure(
    predictor: Predictor, joint_set: JointSet, images: Path, annotations: COCO, person_free: Path | None
) -> dict[str, float]:
    """All figures.

    Raises:
        ValueError: if model and annotations have no joint in common
    """
    with contextlib.redirect_stdout(io.StringIO()):
        columns = align(annotations, joint_set)
    if not columns:
        raise ValueError(f"The annotations have none of the joints of '{joint_set.name}'.")
    order, sigmas = joint_set.grouping_order, np.array(joint_set.sigmas)[columns]
    by_path = {images / record["file_name"]: record for record in annotations.imgs.values()}
    results, peaks = [], []
    precision = coco.AveragePrecision(sigmas)
    for path, seen in look_at(predictor, sorted(by_path), "photos with people"):
        image_id = by_path[path]["id"]
        results += detections(seen, image_id, order, columns)
        precision.add(image_id, annotations.imgToAnns[image_id], stored(seen, order, columns))
        peaks += list(joint_peaks(seen, annotations.imgToAnns[image_id], columns))
    values, large = np.array([value for value, _ in peaks]), np.array([is_large for _, is_large in peaks], bool)
    figures = {
        **keypoint_figures(annotations, results, sigmas),
        **{f"stored_{name}": figure for name, figure in precision.figures().items()},
        "joint_recall": share(values >= THRESHOLD),
        "joint_recall_large": share(values[large] >= THRESHOLD),
    }
    if person_free:
        paths = sorted(path for path in person_free.iterdir() if path.is_file())
        alarms = np.sort([float(s.maps.maximum.max()) / 255 for _, s in look_at(predictor, paths, "photos without")])
        limit = alarms[::-1][int(ALARM_SHARE * len(alarms))]  # at most 3% of the images exceed it
        figures |= {
            "false_alarm_rate": share(alarms >= THRESHOLD),
            "recall_at_fa3": share(values > limit),
            "recall_large_at_fa3": share(values[large] > limit),
            "threshold_fa3": float(limit),
        }
    return {**figures, "images": len(by_path), "joints": len(columns)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True, help="a COCO keypoint file")
    parser.add_argument("--person-free", type=Path, help="folder of images without people")
    parser.add_argument("--model", default=checkpoints.DEFAULT_MODEL)
    parser.add_argument("--checkpoint", help="local weights for that model")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--input-size", type=int, help="short side of the network's input, pixels")
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    arguments = parser.parse_args()

    model = checkpoints.load(arguments.model, arguments.checkpoint)
    settings = Settings(
        model=arguments.model,
        checkpoint=arguments.checkpoint,
        input_size=arguments.input_size,
        flip=arguments.flip,
        scales=tuple(arguments.scales),
        precision=arguments.precision,
        device=arguments.device,
    )
    predictor = settings.predictor(model)
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(str(arguments.annotations))
    figures = measure(predictor, model.entry.joint_set, arguments.images, annotations, arguments.person_free)
    for name, figure in figures.items():
        print(f"{name:22} {figure:.3f}" if isinstance(figure, float) else f"{name:22} {figure}")
    if arguments.json:
        print(json.dumps({name: round(figure, 6) for name, figure in figures.items()}))


if __name__ == "__main__":
    main()
