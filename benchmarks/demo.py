"""The main job on a few photos, with a picture of what came out: `python -m benchmarks.demo [DATASET]`.

DATASET is a folder of images, the name of a dataset that is here or of one in FiftyOne's dataset zoo (which needs a
network); without it, the photos that scikit-image carries.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.zoo as foz
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from inference.images import read_image
from inference.joints import COCO

from .app import DEMO_DATASET
from .photos import write_demo_photos

OPERATOR = "@pose-heatmaps/higherhrnet/generate_heatmaps"
OUTPUT = Path("demo_output")
SHOWN_IMAGES = 6
SHOWN_JOINTS = 5
WORTH_SHOWING = 0.2  # a heatmap value from which on a joint is drawn: the threshold of the false alarms too
MAX_DEMO_IMAGES = 200


def demo_dataset(source: str | None) -> fo.Dataset:
    """The dataset to run on; the demo's own is made anew each time."""
    if source and fo.dataset_exists(source):
        return fo.load_dataset(source)
    if source and not Path(source).is_dir():
        if source not in foz.list_zoo_datasets():
            sys.exit(f"There is no folder, dataset or zoo dataset '{source}'. Give the path of a folder of images.")
        try:
            return foz.load_zoo_dataset(source, max_samples=MAX_DEMO_IMAGES, persistent=True)
        except Exception as error:
            sys.exit(f"'{source}' could not be loaded from FiftyOne's dataset zoo, which needs a network: {error}")
    if fo.dataset_exists(DEMO_DATASET):
        old = fo.load_dataset(DEMO_DATASET)
        delete = foo.get_operator("@pose-heatmaps/higherhrnet/delete_heatmaps")
        if "pose" in old.list_runs():
            delete(old, "pose")
        old.delete()
    dataset = fo.Dataset(DEMO_DATASET, persistent=True)
    if source:
        dataset.add_images_dir(source)
    else:
        paths = write_demo_photos(OUTPUT.absolute() / "photos")
        dataset.add_samples([fo.Sample(filepath=str(path)) for path in paths], progress=False)
    return dataset


def strongest_joints(sample: fo.Sample, count: int = SHOWN_JOINTS) -> list[tuple[str, float, tuple[float, float]]]:
    """The joints with the highest peaks: name, value (0 to 1), and place (x, y) relative to the image."""
    found = []
    for joint in COCO.joints:
        values = sample[f"pose_{joint}"].get_map()
        y, x = np.unravel_index(values.argmax(), values.shape)
        place = (float(x + 0.5) / values.shape[1], float(y + 0.5) / values.shape[0])
        found.append((joint, float(values.max()) / 255, place))
    found = [joint for joint in found if joint[1] >= WORTH_SHOWING]
    return sorted(found, key=lambda joint: -joint[1])[:count]


def print_table(dataset: fo.Dataset) -> None:
    print(f"\n{'photo':24} {'people':>6} {'highest':>8}   strongest joints")
    for sample in dataset.limit(20):
        name = Path(sample.filepath).name[:24]
        if sample.pose_status != "done":
            print(f"{name:24} {'-':>6} {'-':>8}   {sample.pose_status}")
            continue
        joints = ", ".join(f"{joint.replace('_', ' ')} {value:.2f}" for joint, value, _ in strongest_joints(sample))
        print(f"{name:24} {sample.pose_num_people:6} {sample.pose_confidence:8.2f}   {joints or 'none'}")
    print()


def draw_overview(samples: list[fo.Sample], path: Path) -> None:
    """Each photo with its maximum map, its strongest joints and its skeletons."""
    matplotlib.use("Agg")
    columns = min(3, len(samples))
    rows = -(-len(samples) // columns)
    # Each row is as high as its highest photo.
    shapes = [read_image(sample.filepath).shape for sample in samples]
    heights = [max(h / w for h, w, _ in shapes[row * columns : (row + 1) * columns]) for row in range(rows)]
    size = (4.6 * columns, sum(4.6 * min(height, 1) + 0.4 for height in heights))
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, facecolor="#16181d", height_ratios=[min(h, 1) for h in heights]
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, sample in zip(axes.flat, samples, strict=False):
        _draw_photo(axis, sample)
    figure.tight_layout(pad=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor=figure.get_facecolor())
    plt.close(figure)


def _draw_photo(axis: Axes, sample: fo.Sample) -> None:
    photo = read_image(sample.filepath)
    height, width = photo.shape[:2]
    axis.imshow(with_map(photo, sample.pose_max.get_map()))
    for person in sample.pose_keypoints.keypoints:
        _draw_skeleton(axis, np.array(person.points) * (width, height), np.array(person.confidence))
    _label_joints(axis, strongest_joints(sample), width, height)
    people = sample.pose_num_people
    found = f"{people} {'person' if people == 1 else 'people'}" if people else "nobody"
    axis.set_title(f"{Path(sample.filepath).stem}: {found}, highest value {sample.pose_confidence:.2f}", color="white")
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)


def _label_joints(axis: Axes, joints: list[tuple[str, float, tuple[float, float]]], width: int, height: int) -> None:
    """Names at the nearer side of the photo, one above the other, with a line to each joint."""
    for side in (0.0, 1.0):
        here = sorted((joint for joint in joints if round(joint[2][0]) == side), key=lambda joint: -joint[2][1])
        line = 1.0
        for name, value, (x, y) in here:
            color = COCO.colors[name]
            line = min(line - 0.065, y)
            axis.annotate(
                f"{name.replace('_', ' ')} {value:.2f}",
                (x * width, y * height),
                xytext=((0.015 if side == 0 else 0.985) * width, line * height),
                ha="left" if side == 0 else "right",
                va="center",
                color=color,
                fontsize=9,
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "#000000", "alpha": 0.65, "linewidth": 0},
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.9, "alpha": 0.9},
            )
            axis.plot(x * width, y * height, "o", markersize=6, markerfacecolor="none", markeredgecolor=color)


def with_map(photo: NDArray[np.uint8], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A darkened photo with the map glowing on it."""
    strength = cv2.resize(values, (photo.shape[1], photo.shape[0])).astype(np.float32)[..., None] / 255
    glow = plt.get_cmap("inferno")(np.clip(strength[..., 0] * 1.2, 0, 1))[..., :3] * 255
    cover = np.clip(strength * 2.5, 0, 0.85)
    return (photo * 0.75 * (1 - cover) + glow * cover).astype(np.uint8)


def _draw_skeleton(axis: Axes, points: NDArray[np.floating], values: NDArray[np.floating]) -> None:
    there = np.nan_to_num(values) >= WORTH_SHOWING
    for one, other in COCO.limbs:
        if there[one] and there[other]:
            axis.plot(*points[[one, other]].T, color="white", linewidth=1.4, alpha=0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="folder, dataset name, or zoo dataset; default: the demo photos")
    dataset = demo_dataset(parser.parse_args().dataset)
    generate = foo.get_operator(OPERATOR)
    print(generate(dataset, existing="replace").summary())
    print_table(dataset)
    done = dataset.match({"pose_status": "done"})
    if not len(done):
        sys.exit("No image could be read, so there is no picture.")
    picture = (OUTPUT / "overview.png").absolute()
    draw_overview(list(done.limit(SHOWN_IMAGES)), picture)
    print(f"The picture is {picture}")
    print(f"Look at the maps in the App:  make app{'' if dataset.name == DEMO_DATASET else f' DATASET={dataset.name}'}")


if __name__ == "__main__":
    main()
