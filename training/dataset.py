"""Photos with joints from tar shards, read in place (an index of byte offsets is made once), and crops of them."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

PADDING = (0, 0, 0)  # black, as around the photos that the plugin runs on
PERSON_MARGIN = 0.1  # of a box's sides: what lies so near to a person may be part of them
ALARM_SHARE = 0.7  # of the background crops of photos with known alarms show one of them


@dataclass(frozen=True)
class Photo:
    """One photo of a shard.

    ``record`` is the JSON beside it. The WebP file is ``size`` bytes from ``offset`` of ``shard``.
    """

    shard: Path
    offset: int
    size: int
    record: dict

    @property
    def set_name(self) -> str:
        return self.shard.name.rsplit("-", 1)[0]

    @property
    def key(self) -> str:
        return f"{self.record['source']}/{self.record['id']}"

    def image(self) -> np.ndarray:
        """The photo, (height, width, 3) uint8 RGB."""
        with self.shard.open("rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError(f"{self.shard} is damaged at byte {self.offset}; fetch this shard again.")
        return image


def read_shards(folder: Path) -> list[Photo]:
    """All photos of the ``*.tar`` shards in a folder, in a fixed order."""
    photos = []
    for shard in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = {member.name: member for member in tar}
            for name, member in members.items():
                if name.endswith(".webp"):
                    file = tar.extractfile(members[name.removesuffix(".webp") + ".json"])
                    if file is None:
                        raise ValueError(f"{shard}: the labels of {name} are not a file; pack or copy the shard again.")
                    record = json.load(file)
                    photos.append(Photo(shard, member.offset_data, member.size, record))
    if not photos:
        raise ValueError(f"{folder} has no tar shards with photos; pass the folder that holds coco-000.tar and others.")
    return photos


HELD_OUT = {"coco": 300, "negative": 80}  # of weights whose checkpoint does not say it


def split(photos: list[Photo], coco: int, negative: int) -> tuple[list[Photo], list[Photo]]:
    """Training photos and held-out photos.

    Held out are the ``coco`` hand-labelled COCO photos and the ``negative`` person-free photos whose ids have the
    smallest SHA-256: a rule that stays the same when photos are added or shards are cut anew.
    """

    def rank(photo: Photo) -> str:
        return hashlib.sha256(photo.key.encode()).hexdigest()

    held: list[Photo] = []
    for name, count in (("coco", coco), ("negative", negative)):
        held += sorted((p for p in photos if p.set_name == name), key=rank)[:count]
    chosen = {id(photo) for photo in held}
    return [photo for photo in photos if id(photo) not in chosen], held


def labelled(record: dict) -> list[dict]:
    return [person for person in record["persons"] if person["num_keypoints"] > 0]


def trusted(photo: Photo) -> bool:
    """Whether all people are known: nobody unlabelled is expected in the background."""
    return photo.set_name in ("coco", "negative")


def grown(box: list[float], margin: float, share: float = 0.0) -> list[float]:
    """``[x, y, w, h]`` with a margin in pixels and as a share of its sides, all around."""
    x, y, w, h = box
    across, down = margin + share * w, margin + share * h
    return [x - across, y - down, w + 2 * across, h + 2 * down]


# --- geometry of a crop: affine matrices (2, 3) from photo to crop, x to the right, (0, 0) = the corner of the
# --- first pixel (not its centre)


def log_uniform(rng: np.random.Generator, limits: list[float]) -> float:
    low, high = np.log(limits)
    return float(np.exp(rng.uniform(low, high)))


def random_affine(
    photo: Photo, size: int, rng: np.random.Generator, options: dict, alarms: list[list[float]] | None = None
) -> np.ndarray:
    """Where a training crop of ``size`` x ``size`` lies in the photo.

    Three kinds of crop: ``zoom`` shows a person at ``zoom_range`` times the crop, ``background`` (of photos all of
    whose people are known) shows a false alarm, or as little of people as a few tries find: what keeps everyday
    objects from lighting up. The rest show a part of the scene. For the last two a range says how large the photo's
    short side becomes, in crops.

    Args:
        photo: to cut from
        size: of the crop, pixels
        rng: decides
        options: the ``data`` part of the configuration
        alarms: (x, y, value) of known false alarms in the photo
    """
    record = photo.record
    width, height = record["width"], record["height"]
    people = labelled(record)
    kind = rng.random()
    angle = rng.uniform(-15, 15)
    if people and kind < options["zoom"]:
        boxes = np.array([person["bbox"] for person in people])
        importance = np.sqrt(boxes[:, 2] * boxes[:, 3])
        x, y, w, h = boxes[rng.choice(len(boxes), p=importance / importance.sum())]
        scale = size * log_uniform(rng, options["zoom_range"]) / max(w, h)
        # Not so small that the crop is mostly padding, not so large that pixels show.
        scale = float(np.clip(scale, size / max(width, height), options["max_enlargement"]))
        centre = np.array([x + w * rng.uniform(0.25, 0.75), y + h * rng.uniform(0.25, 0.75)])
        centre += rng.uniform(-0.12, 0.12, 2) * size / scale
        angle = rng.uniform(-30, 30)
    elif alarms and kind < options["zoom"] + options["background"] and rng.random() < ALARM_SHARE:
        scale = size / min(width, height) * log_uniform(rng, options["background_range"])
        centre = alarms[rng.integers(len(alarms))][:2] + rng.uniform(-0.3, 0.3, 2) * size / scale
    elif people and trusted(photo) and kind < options["zoom"] + options["background"]:
        boxes = np.array([box for box in (*[p["bbox"] for p in people], *record["ignore"])])
        best = np.inf
        for _ in range(12):
            s = size / min(width, height) * log_uniform(rng, options["background_range"])
            c = rng.uniform(0, 1, 2) * (width, height)
            low_corner, high_corner = c - size / s / 2, c + size / s / 2
            overlap = np.minimum(boxes[:, :2] + boxes[:, 2:], high_corner) - np.maximum(boxes[:, :2], low_corner)
            people_area = overlap.clip(0).prod(1).sum()
            inside = np.minimum(high_corner, (width, height)) - np.maximum(low_corner, 0)
            badness = people_area - 0.3 * inside.prod()
            if badness < best:
                best, scale, centre = badness, s, c
    else:
        scale = size / min(width, height) * log_uniform(rng, options["scene_range"])
        centre = rng.uniform(0, 1, 2) * (width, height)
    scale = min(scale, options["max_enlargement"])
    half = 0.45 * size / scale  # the crop may reach over the border a little
    extent = np.array([width, height])
    centre = np.clip(centre, np.minimum(half, extent / 2), np.maximum(extent - half, extent / 2))
    if rng.random() < 0.4:
        angle = 0.0
    aspect = np.exp(rng.uniform(-0.12, 0.12))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * aspect, 1 / aspect])
    return np.column_stack([linear, np.full(2, size / 2) - linear @ centre])


def whole_affine(width: int, height: int, short_side: int, multiple: int = 32) -> tuple[np.ndarray, tuple[int, int]]:
    """The photo at ``short_side`` in the corner of the smallest canvas (w, h) of whole multiples that holds it."""
    scale = short_side / min(width, height)
    canvas_width, canvas_height = (int(np.ceil(round(side * scale) / multiple)) * multiple for side in (width, height))
    return np.array([[scale, 0, 0], [0, scale, 0]]), (canvas_width, canvas_height)


def warp(image: np.ndarray, affine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The crop of ``size`` (w, h), uint8. OpenCV counts from pixel centres, hence the halves."""
    centres = affine.copy()
    centres[:, 2] += affine[:, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(image, centres, size, flags=cv2.INTER_LINEAR, borderValue=PADDING)


def corners(box: list[float], affine: np.ndarray) -> np.ndarray:
    """The four corners (4, 2) of ``[x, y, w, h]`` in the crop."""
    x, y, w, h = box
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]) @ affine[:, :2].T + affine[:, 2]


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, tint; sometimes grey or blurred. uint8 in and out."""
    gain = rng.uniform(0.65, 1.35) * rng.uniform(0.92, 1.08, 3)
    offset = 128 * (1 - gain) + rng.uniform(-30, 30)
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table[None])
    if rng.random() < 0.1:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.1:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    return image
