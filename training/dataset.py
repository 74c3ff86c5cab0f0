"""Photos with joints from tar shards, augmented into training batches.

Shards are read in place (an index of byte offsets is made once). Every batch is a function of (seed, batch number)
only, so a resumed run meets exactly the batches that it would have met.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from inference.joints import COCO

JOINTS = len(COCO)
PADDING = (0, 0, 0)  # black, as around the photos that the plugin runs on
FULL = 255  # mask value of a pixel that counts fully
IGNORE_MARGIN = 6  # input pixels: the Gaussian of a head at the edge of an ignored box reaches so far out of it
PERSON_MARGIN = 0.1  # of a box's sides: what lies so near to a person may be part of them
TAG_JITTER = 0.5  # deviations of a joint's Gaussian: tags are read at the peak, which is only near the joint
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


# --- targets


def draw_heatmaps(joints: np.ndarray, sigmas: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Gaussians with peak 1, the maximum where they overlap.

    Args:
        joints: (P, K, 3) x, y in map pixels (corner origin), v; drawn where v > 0
        sigmas: (P, K) in map pixels
        size: (h, w)

    Returns:
        (K, h, w) float32
    """
    height, width = size
    maps = np.zeros((joints.shape[1], height, width), np.float32)
    for person, deviations in zip(joints, sigmas, strict=True):
        channels = np.flatnonzero(person[:, 2] > 0)
        if not channels.size:
            continue
        sigma = deviations[channels, None]
        reach = int(np.ceil(3 * sigma.max()))
        offsets = np.arange(-reach, reach + 1)
        x, y = (person[channels, :2] - 0.5).T[:, :, None]  # in units of pixel centres
        columns = np.rint(x).astype(int) + offsets  # N, patch
        rows = np.rint(y).astype(int) + offsets
        across = np.exp(-((columns - x) ** 2) / (2 * sigma**2)) * ((columns >= 0) & (columns < width))
        down = np.exp(-((rows - y) ** 2) / (2 * sigma**2)) * ((rows >= 0) & (rows < height))
        patches = down[:, :, None] * across[:, None, :]
        # One person has each channel once, so that patches never collide and plain indexing is safe.
        index = (channels[:, None, None], rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None, :])
        if min(rows.min(), columns.min()) < 0 or rows.max() >= height or columns.max() >= width:
            np.maximum.at(maps, index, patches.astype(np.float32))  # clipped indices repeat at the border
        else:
            maps[index] = np.maximum(maps[index], patches)
    return maps


def fill_box(plane: np.ndarray, box: list[float], affine: np.ndarray, value: int) -> None:
    """Fill a box of the photo in a plane at half of the crop."""
    cv2.fillConvexPoly(plane, np.rint(corners(box, affine) / 2).astype(np.int32), value)


def draw_empty(record: dict, affine: np.ndarray, size: int) -> np.ndarray:
    """Where nobody is: (size/2, size/2) uint8, 1 away from all people."""
    plane = np.ones((size // 2, size // 2), np.uint8)
    for box in (*record["ignore"], *[person["bbox"] for person in record["persons"]]):
        fill_box(plane, grown(box, 0, PERSON_MARGIN), affine, 0)
    return plane


def draw_mask(
    record: dict, affine: np.ndarray, size: int, shown: list[dict], hidden: list[dict], teacher_background: int
) -> np.ndarray:
    """Which pixels of which channel count in the loss, at half of the crop.

    Args:
        record: of the photo
        affine: photo to crop
        size: of the crop
        shown: people whose joints are drawn
        hidden: labelled people too small to be drawn; what they cover does not count
        teacher_background: weight (0 to 255) of a teacher-labelled photo outside of its labelled people, some of
            whom the teacher missed

    Returns:
        (K, size/2, size/2) uint8, 255 = counts fully
    """

    teacher = any(person.get("labels") == "teacher" for person in record["persons"])
    plane = np.full((size // 2, size // 2), FULL, np.uint8)
    if teacher:
        fill_box(plane, [0, 0, record["width"], record["height"]], affine, teacher_background)
    margin = IGNORE_MARGIN / np.sqrt(abs(np.linalg.det(affine[:, :2])))
    boxes = [(box, 0, margin) for box in (*record["ignore"], *[person["bbox"] for person in hidden])]
    boxes += [(person["bbox"], FULL, 0) for person in shown]
    if not teacher:  # the smaller box decides: of somebody in front of a crowd, or half hidden by a large person
        boxes.sort(key=lambda entry: -entry[0][2] * entry[0][3])
    for box, value, around in boxes:
        fill_box(plane, grown(box, around), affine, value)
    if "valid_box" in record:
        valid = np.zeros_like(plane)
        fill_box(valid, record["valid_box"], affine, FULL)
        plane = np.minimum(plane, valid)
    mask = np.repeat(plane[None], JOINTS, axis=0)
    for person in shown:
        if person.get("labels") == "teacher" or "valid_box" in record:
            # v = 0 is unknown there, not absent; by hand in COCO it is absent.
            unknown = np.flatnonzero(np.array(person["keypoints"]).reshape(-1, 3)[:, 2] == 0)
            if unknown.size:
                hole = np.zeros_like(plane)
                fill_box(hole, person["bbox"], affine, FULL)
                mask[unknown] = np.minimum(mask[unknown], FULL - hole)
    mask[record.get("unlabelled_joints", [])] = 0
    return mask


def make_sample(
    photo: Photo,
    image: np.ndarray,
    affine: np.ndarray,
    size: int,
    options: dict,
    rng: np.random.Generator,
    max_people: int = 12,
) -> dict[str, np.ndarray]:
    """One crop of a photo, whose colours may have been changed, with its targets.

    The deviation of a Gaussian is ``sigma`` times the roots of the person's box area in the crop and of the joint's
    OKS constant, within ``sigma_range`` input pixels: large people and hips are located less precisely in pixels than
    small people and eyes, and a fixed deviation makes their peaks low (the observation of SWAHR, arXiv 2012.15175;
    here the size is known instead of predicted).

    Returns:
        ``image`` (size, size, 3) uint8 RGB; ``quarter`` (K, size/4, size/4) and ``half`` (K, size/2, size/2) float16
        heatmaps; ``mask`` (K, size/2, size/2) uint8; ``empty`` (1, size/2, size/2) uint8, 1 where surely nobody is;
        ``tags`` (max_people, K) int64, positions y * (size/4) + x at or near the joints in the quarter map, -1 where
        there is none; ``places`` (max_people, K, 3) float32, the same people's joints in pixels of the half map
        (corner origin) and their Gaussians' deviation there, 0 where there is no joint; ``boxes`` (max_people, 4)
        float32, left, top, right, bottom in the half map of what surely holds these people's boxes
    """
    record = photo.record
    mirrored = np.linalg.det(affine[:, :2]) < 0
    shown, hidden, joints, sizes = [], [], [], []
    for person in labelled(record):
        points = np.array(person["keypoints"], np.float64).reshape(-1, 3)
        points[:, :2] = points[:, :2] @ affine[:, :2].T + affine[:, 2]
        if mirrored:
            points = points[list(COCO.flip)]
        points[((points[:, :2] < 0) | (points[:, :2] >= size)).any(1), 2] = 0
        extent = np.sqrt(person["bbox"][2] * person["bbox"][3] * abs(np.linalg.det(affine[:, :2])))
        if extent < options["min_person"]:
            hidden.append(person)
        else:
            shown.append(person)
            joints.append(points)
            sizes.append(extent)
    stacked = np.array(joints).reshape(-1, JOINTS, 3)
    sigmas = options["sigma"] * np.array(sizes)[:, None] * np.sqrt(COCO.sigmas)  # P, K
    maps = {}
    for name, stride in (("quarter", 4), ("half", 2)):
        low, high = options["sigma_range"][name]
        maps[name] = draw_heatmaps(
            stacked / (stride, stride, 1), sigmas.clip(low, high) / stride, (size // stride,) * 2
        )
    mask = draw_mask(record, affine, size, shown, hidden, round(FULL * options["teacher_background"]))
    if mirrored:
        mask = mask[list(COCO.flip)]
    mask[maps["half"] > 0.1] = FULL  # a labelled joint counts, whoever's box or ignored crowd it lies in
    tags = np.full((max_people, JOINTS), -1, np.int64)
    places = np.zeros((max_people, JOINTS, 3), np.float32)
    boxes = np.zeros((max_people, 4), np.float32)
    deviations = sigmas.clip(*options["sigma_range"]["quarter"])
    fine_deviations = sigmas.clip(*options["sigma_range"]["half"])
    for row, person in enumerate(np.argsort(sizes)[::-1][:max_people]):
        points = stacked[person]
        near = points[:, :2] + rng.normal(size=(JOINTS, 2)) * TAG_JITTER * deviations[person][:, None]
        x, y = (near // 4).astype(np.int64).clip(0, size // 4 - 1).T
        there = points[:, 2] > 0
        tags[row] = np.where(there, y * (size // 4) + x, -1)
        places[row, :, :2] = points[:, :2] / 2
        places[row, :, 2] = fine_deviations[person] / 2 * there
        around = corners(grown(shown[person]["bbox"], 0, PERSON_MARGIN), affine) / 2
        boxes[row] = (*around.min(0), *around.max(0))
    return {
        "image": warp(image, affine, (size, size)),
        "quarter": maps["quarter"].astype(np.float16),
        "half": maps["half"].astype(np.float16),
        "mask": mask,
        "empty": draw_empty(record, affine, size)[None] * np.uint8(trusted(photo)),
        "tags": tags,
        "places": places,
        "boxes": boxes,
    }


class Batches(Dataset):
    """Training batches by number.

    Args:
        photos: to draw from
        options: the ``data`` part of the configuration
        seed: another seed, another sequence of batches
        group: so many batches in a row have crops of the same size (one for each process of a step)
        alarms: what `training.mine` found, (x, y, value) in photo pixels by ``<source>/<id>``

    ``batches[n]`` is a dict of the arrays of :func:`make_sample` with a batch dimension in front (torch tensors).
    """

    def __init__(
        self,
        photos: list[Photo],
        options: dict,
        seed: int,
        group: int = 1,
        alarms: dict[str, list[list[float]]] | None = None,
    ):
        self.options, self.seed, self.group, self.alarms = options, seed, group, alarms or {}
        self.sets = {name: [p for p in photos if p.set_name == name] for name in options["sets"]}
        empty = [name for name, members in self.sets.items() if not members]
        if empty:
            raise ValueError(f"No photos of the sets {', '.join(empty)}: remove them from 'sets' in the configuration.")
        shares = np.array([options["sets"][name] for name in self.sets], float)
        self.shares = shares / shares.sum()

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        cv2.setNumThreads(1)  # loader processes are the parallelism
        crops = self.options["crops"]
        shares = np.array([share for _, _, share in crops], float)
        common = np.random.default_rng((self.seed, number // self.group, 0))
        size, count, _ = crops[common.choice(len(crops), p=shares / shares.sum())]
        rng = np.random.default_rng((self.seed, number, 1))
        samples = []
        for name in rng.choice(list(self.sets), count, p=self.shares):
            photo = self.sets[name][rng.integers(len(self.sets[name]))]
            affine = random_affine(photo, size, rng, self.options, self.alarms.get(photo.key))
            image = recolour(photo.image(), rng)  # before the crop, so that what is around the photo stays black
            samples.append(make_sample(photo, image, affine, size, self.options, rng))
        return {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
