"""Held-out accuracy of weights against their time and size: what the bundled network and its input size are chosen by.

`python -m training.choose --data DIR --weights A.safetensors B.safetensors --input-size 256 384 --plot choices.png`
With `--smoothing 0 4` for other smoothings than the files', each with a gate and a calibration of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from benchmarks.accuracy import detections, keypoint_figures
from inference import checkpoints
from inference.joints import COCO as JOINTS
from inference.labels import see
from inference.network import check_smoothing
from inference.predictor import Predictor
from inference.settings import Settings
from training.calibrate import fit
from training.card import table
from training.context import fit_context_gate
from training.dataset import HELD_OUT, Photo, read_shards, split
from training.evaluate import SEGMENT, evaluate, original_scale

mpl.use("Agg")
from matplotlib import pyplot

TIMED = 20  # forward passes
SHOWN = ("ap", "ap_medium", "ap_large", "recall_at_fa3", "recall_large_at_fa3")


def truth(photos: list[Photo]) -> COCO:
    """The labelled people as COCO annotations; image ids are places in the list."""
    images: list[dict] = []
    people: list[dict] = []
    for number, photo in enumerate(photos):
        scale = original_scale(photo.record)
        images.append({"id": number, "width": photo.record["width"] * scale, "height": photo.record["height"] * scale})
        labels = [(person["bbox"], person["keypoints"]) for person in photo.record["persons"]]
        crowds = [(box, [0] * 3 * len(JOINTS)) for box in photo.record["ignore"]]
        for index, (box, keypoints) in enumerate(labels + crowds):
            joints = np.array(keypoints, float).reshape(-1, 3) * (scale, scale, 1)
            people.append(
                {
                    "id": len(people) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [side * scale for side in box],
                    "area": SEGMENT * box[2] * box[3] * scale**2,
                    "keypoints": joints.ravel().tolist(),
                    "num_keypoints": int((joints[:, 2] > 0).sum()),
                    "iscrowd": int(index >= len(labels)),
                }
            )
    annotations = COCO()
    annotations.dataset = {"images": images, "annotations": people, "categories": [{"id": 1, "name": "person"}]}
    with contextlib.redirect_stdout(io.StringIO()):
        annotations.createIndex()
    return annotations


def average_precision(predictor: Predictor, photos: list[Photo]) -> dict[str, float]:
    """AP and AR of all groups, as published, on photos with people."""
    results: list[dict[str, Any]] = []
    for number, photo in enumerate(tqdm(photos, desc="photos with people", unit=" photos")):
        (seen,) = see(predictor, Settings(), [predictor.prepare(photo.image())], joints=False)
        scale = original_scale(photo.record)
        for person in detections(seen, number, JOINTS.grouping_order, list(range(len(JOINTS)))):
            joints = np.reshape(person["keypoints"], (-1, 3)) * (scale, scale, 1)
            results.append({**person, "keypoints": joints.ravel().tolist()})
    return keypoint_figures(truth(photos), results, np.array(JOINTS.sigmas))


def milliseconds(predictor: Predictor) -> float:
    """Of a photo of 640 x 480 through the network, one at a time, with all cores: the median."""
    image = predictor.prepare(np.zeros((480, 640, 3), np.uint8))
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        predictor.predict([image])
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def measure(weights: Path, input_size: int, smoothing: float | None, held: list[Photo]) -> dict[str, Any]:
    """One choice: its name and figures. Smoothing None is that of the file."""
    model = checkpoints.load(checkpoints.CUSTOM, weights)
    if smoothing is not None:
        model.network.smoothing, model.network.context_gate = check_smoothing(smoothing), None
        model.network.context_gate = fit_context_gate(model.network, held, input_size)
        model.network.calibration = fit(model.network, held, input_size)
    predictor = Predictor(model.network, JOINTS.flip, input_size)
    people = [photo for photo in held if photo.record["persons"]]
    config = model.network.config
    return {
        "network": f"{weights.stem}: width {config.width}, {config.blocks} blocks, smooth {model.network.smoothing:g}",
        "short side": input_size,
        "MB": weights.stat().st_size / 1e6,
        "ms": milliseconds(predictor),
        **average_precision(predictor, people),
        **evaluate(model.network, held, input_size),
    }


def plot(choices: list[dict[str, Any]], path: Path) -> None:
    """AP of all and of large people over milliseconds, a line for each network."""
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4))
    for panel, name in zip(panels, ("ap", "recall_at_fa3"), strict=True):
        for network in dict.fromkeys(choice["network"] for choice in choices):
            own = [choice for choice in choices if choice["network"] == network]
            panel.plot([c["ms"] for c in own], [c[name] for c in own], "o-", label=f"{network}, {own[0]['MB']:.1f} MB")
            for choice in own:
                panel.annotate(
                    choice["short side"], (choice["ms"], choice[name]), xytext=(4, 4), textcoords="offset points"
                )
        panel.set(xlabel="ms an image of 640 x 480", ylabel=f"{name} on held-out photos", ylim=(0, None))
    panels[0].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training shards")
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="files that training.export wrote")
    parser.add_argument("--input-size", type=int, nargs="+", default=[256, 320, 384])
    parser.add_argument("--smoothing", type=float, nargs="+", default=[None], help="input pixels")
    parser.add_argument("--plot", type=Path, help="picture to write")
    arguments = parser.parse_args()
    held = split(read_shards(arguments.data), **HELD_OUT)[1]
    combinations = itertools.product(arguments.weights, arguments.input_size, arguments.smoothing)
    choices = [measure(*combination, held) for combination in combinations]
    columns = ["network", "short side", "MB", "ms", *SHOWN]
    rows = [
        [c["network"], c["short side"], f"{c['MB']:.1f}", round(c["ms"]), *(f"{c[name]:.3f}" for name in SHOWN)]
        for c in choices
    ]
    print(table(columns, rows))
    if arguments.plot:
        plot(choices, arguments.plot)


if __name__ == "__main__":
    main()
