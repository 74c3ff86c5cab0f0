"""What the network should say of a crop: heatmaps, where they count, tags and places."""

from __future__ import annotations

import cv2
import numpy as np

from inference.joints import COCO
from training.dataset import PERSON_MARGIN, Photo, corners, grown, labelled, trusted, warp

JOINTS = len(COCO)
FULL = 255  # mask value of a pixel that counts fully
IGNORE_MARGIN = 6  # input pixels: the Gaussian of a head at the edge of an ignored box reaches so far out of it
TAG_JITTER = 0.5  # deviations of a joint's Gaussian: tags are read at the peak, which is only near the joint
MAX_PEOPLE = 12  # of a crop, whose tags and places are looked at: the largest


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
    max_people: int = MAX_PEOPLE,
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


def mosaic(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Four crops as one of twice their size, in two rows of two, with the targets of :func:`make_sample`.

    Photos that show one person become scenes with several. No Gaussian reaches into the neighbour.
    """
    side = len(parts[0]["image"])
    rows, columns = (np.arange(4) // 2) * side, (np.arange(4) % 2) * side
    moved = []
    for part, row, column in zip(parts, rows, columns, strict=True):
        there, tags, quarter = part["places"][..., 2:] > 0, part["tags"], side // 4
        y, x = np.divmod(tags, quarter)
        moved.append(
            {
                "tags": np.where(tags < 0, -1, (y + row // 4) * 2 * quarter + x + column // 4),
                "places": part["places"] + there * np.array([column / 2, row / 2, 0], np.float32),
                "boxes": part["boxes"].clip(0, side / 2) + np.tile(np.array([column / 2, row / 2], np.float32), 2),
            }
        )
    people = {name: np.concatenate([part[name] for part in moved]) for name in moved[0]}
    across = people["boxes"][:, 2:] - people["boxes"][:, :2]
    largest = np.argsort(-across.prod(axis=1), kind="stable")[: len(parts[0]["tags"])]
    people = {name: values[largest] for name, values in people.items()}
    people["boxes"] *= (people["boxes"][:, 2:] > people["boxes"][:, :2]).all(axis=1, keepdims=True)

    def together(name: str, down: int) -> np.ndarray:
        upper, lower = (np.concatenate([parts[i][name], parts[i + 1][name]], axis=down + 1) for i in (0, 2))
        return np.concatenate([upper, lower], axis=down)

    planes = {name: together(name, 1) for name in ("quarter", "half", "mask", "empty")}
    return {"image": together("image", 0), **planes, **people}
