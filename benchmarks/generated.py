"""Generated people and the maps that a model would make of them: for measuring and testing without photos.

Nothing here knows how maps are evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

from inference import runs
from inference.joints import COCO

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 640, 480  # pixels of the images, which do not exist
SCALE = 4  # pixels of an image per pixel of its maps
NOISE = 0.01
# A person who stands and faces the camera, in heights: x to the right of the middle, y down from the head. The
# person's left is on the image's right.
STANDING = np.array(
    [
        (0.00, 0.07), (0.03, 0.05), (-0.03, 0.05), (0.06, 0.06), (-0.06, 0.06), (0.14, 0.19), (-0.14, 0.19),
        (0.22, 0.34), (-0.22, 0.34), (0.26, 0.48), (-0.26, 0.48), (0.10, 0.50), (-0.10, 0.50), (0.13, 0.73),
        (-0.13, 0.73), (0.14, 0.95), (-0.14, 0.95),
    ]
)  # fmt: skip
AREA = 0.2  # of a person, in squares of its height


@dataclass(frozen=True)
class Person:
    """A labelled person.

    Attributes:
        points: (17, 2) pixels of the image
        area: pixels^2
    """

    points: Floats
    area: float


def make_people(random: np.random.Generator, count: int) -> list[Person]:
    """People side by side, of several sizes and poses, some with joints that are not labelled (NaN)."""
    people = []
    for number in range(count):
        height = random.uniform(0.5, 0.9) * min(HEIGHT, 1.6 * WIDTH / count)
        pose = STANDING + random.normal(0, 0.012, STANDING.shape)
        if random.random() < 0.3:
            pose[:, 0] *= -1  # seen from behind
        middle = WIDTH * (number + 0.5) / count
        top = random.uniform(0.02 * HEIGHT, 0.98 * HEIGHT - height)
        points = pose * height + (middle, top)
        points[random.random(len(points)) < 0.05] = np.nan
        people.append(Person(points, AREA * height**2))
    return people


def draw_maps(people: Sequence[Person], random: np.random.Generator) -> NDArray[np.float32]:
    """A Gaussian at each joint, (17, h, w), with 1% noise."""
    ys, xs = np.mgrid[: HEIGHT // SCALE, : WIDTH // SCALE] + 0.5
    maps = np.zeros((len(COCO), HEIGHT // SCALE, WIDTH // SCALE))
    for person in people:
        spread = max(1.5, 0.05 * math.sqrt(person.area) / SCALE)
        for values, (x, y) in zip(maps, person.points / SCALE, strict=True):
            if not math.isnan(x):
                np.maximum(values, np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * spread**2)), out=values)
    return (0.9 * maps + random.normal(0, NOISE, maps.shape)).clip(0, 1).astype(np.float32)


def save_maps(maps: NDArray[np.float32], folder: Path) -> dict[str, str]:
    """Write maps as PNG files; the path of each joint's."""
    folder.mkdir(parents=True)
    paths = {joint: str(folder / f"{joint}.png") for joint in COCO.joints}
    for path, values in zip(paths.values(), maps, strict=True):
        cv2.imwrite(path, np.round(255 * values).astype(np.uint8))
    return paths


def keypoints(people: Sequence[Person], **attributes: object) -> fo.Keypoints:
    """People as labels."""
    return fo.Keypoints(
        keypoints=[
            fo.Keypoint(label="person", points=(person.points / (WIDTH, HEIGHT)).tolist(), **attributes)
            for person in people
        ]
    )


def make_sample(number: int, people: Sequence[Person], paths: dict[str, str]) -> fo.Sample:
    """A sample with labels in ``people``, maps in ``pose_<joint>``, and what grouping would make of them."""
    found = keypoints(people, score=0.9)
    for person in found.keypoints:
        person.confidence = [0.9] * len(COCO)
    return fo.Sample(
        filepath=f"/generated/{number}.jpg",
        metadata=fo.ImageMetadata(width=WIDTH, height=HEIGHT),
        people=keypoints(people),
        pose_keypoints=found,
        **{f"pose_{joint}": fo.Heatmap(map_path=path) for joint, path in paths.items()},
    )


def make_dataset(samples: Sequence[fo.Sample], name: str | None = None) -> fo.Dataset:
    """A dataset of such samples, with skeleton and record of the run ``pose``."""
    dataset = fo.Dataset(name, persistent=True)
    dataset.add_samples(samples, progress=False)
    dataset.skeletons["people"] = fo.KeypointSkeleton(
        labels=list(COCO.joints), edges=[list(limb) for limb in COCO.limbs]
    )
    dataset.save()
    runs.adopt(dataset, "pose", COCO)
    return dataset


# --- faults


def shifted(people: Sequence[Person], random: np.random.Generator) -> list[Person]:
    """Some joints of one person elsewhere, by a third of the root of its area."""
    points = people[0].points.copy()
    angles = random.uniform(0, 2 * math.pi, 6)
    chosen = random.choice(np.flatnonzero(~np.isnan(points[:, 0])), 6, replace=False)
    way = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points[chosen] += random.uniform(0.3, 0.4, (6, 1)) * math.sqrt(people[0].area) * way
    return [replace(people[0], points=points), *people[1:]]


def swapped(people: Sequence[Person], random: np.random.Generator) -> list[Person]:
    """Arms and legs of one person with left and right exchanged."""
    points = people[0].points.copy()
    limbs = [k for k, joint in enumerate(COCO.joints) if joint.endswith(("elbow", "wrist", "knee", "ankle"))]
    points[limbs] = points[[COCO.flip[k] for k in limbs]]
    return [replace(people[0], points=points), *people[1:]]


def blanked(people: Sequence[Person], random: np.random.Generator) -> list[Person]:
    """Some joints of one person not seen."""
    points = people[0].points.copy()
    points[random.choice(len(points), 7, replace=False)] = np.nan
    return [replace(people[0], points=points), *people[1:]]


def false_person(people: Sequence[Person], random: np.random.Generator) -> list[Person]:
    """One more person, between the others."""
    height = 0.3 * HEIGHT
    middle = WIDTH / len(people) if len(people) > 1 else 0.15 * WIDTH
    return [*people, Person(STANDING * height + (middle, random.uniform(0.1, 0.6) * HEIGHT), AREA * height**2)]


FAULTS = {"shifted": shifted, "swapped": swapped, "missed": blanked, "false": false_person}  # by what they are named
