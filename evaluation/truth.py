"""The labelled people of an image: from a field of keypoints, areas and crowds from COCO annotations.

Areas decide what is near and how large a person is. They come from the annotations (`area`, or `bbox`), else from
attributes of the keypoints (`area` in pixels^2, or `bounding_box`), else they are estimated from the labelled joints.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .matching import Floats, Truth, assign

FROM_ANNOTATIONS, FROM_ATTRIBUTES, ESTIMATED = "annotations", "attributes", "estimated"
SOURCES = (FROM_ANNOTATIONS, FROM_ATTRIBUTES, ESTIMATED)
AREA_FROM = "area_from"  # which of them, of an annotation
BY_ID, BY_NAME = "coco_id", "file name"
SAME = 3.0  # pixels between an annotation and the keypoints made of it, on average: rounding, no more
# Medians over COCO val2017, about: the area of a person is 0.53 of the box around it, 0.9 of the box around 7 and more
# of its joints, and a third of that box made square.
OF_BOX, OF_JOINTS, OF_SQUARE = 0.53, 0.9, 0.33
OF_IMAGE = 0.02  # where one joint alone is labelled
MARGIN = 0.2  # of the root of the area: how far a person reaches beyond its joints


@dataclass(frozen=True)
class Labels:
    """The people of a sample.

    Attributes:
        truth: those with labelled joints, and where peaks are ignored
        ids: of their keypoints
        sources: of their areas
    """

    truth: Truth
    ids: list[Any]
    sources: list[str]


class Annotations:
    """A COCO keypoint file.

    Args:
        path: of the JSON file

    Raises:
        ValueError: if it is none; a sentence that says what is wrong
    """

    def __init__(self, path: str | Path):
        try:
            data = Path(path).read_bytes()
            content = json.loads(data)
            named = [category for category in content["categories"] if category.get("keypoints")]
            self.joints: tuple[str, ...] = tuple(named[0]["keypoints"])
            same = {category["id"] for category in named if tuple(category["keypoints"]) == self.joints}
            self.images: dict[int, dict[str, Any]] = {image["id"]: image for image in content["images"]}
            self._by_name: dict[str, int] = {}
            for image in content["images"]:  # the same name in several folders is nobody's
                name = Path(image["file_name"]).name
                self._by_name[name] = -1 if name in self._by_name else image["id"]
            self._people: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for annotation in content["annotations"]:
                if annotation["category_id"] in same and "keypoints" in annotation:
                    person = _counted(annotation, len(self.joints))
                    if person["bbox"] or any(person["keypoints"][2::3]):  # else it is nowhere
                        self._people[annotation["image_id"]].append(person)
        except OSError as error:
            raise ValueError(f"The annotations {path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path} is not a COCO keypoint file: it needs images, annotations with keypoints, and a category that "
                "names them, as person_keypoints_val2017.json has."
            ) from error
        if len(same) < len(named):
            raise ValueError(
                f"{path} has several categories with other keypoints each, of which only one can be compared. Make a "
                "file with the annotations of one of them."
            )
        self.sha256 = hashlib.sha256(data).hexdigest()

    def find(self, coco_id: Any, filepath: str) -> tuple[dict[str, Any], str] | None:
        """The image of a sample, and whether its id or its file's name said so."""
        if coco_id in self.images:
            return self.images[coco_id], BY_ID
        image = self.images.get(self._by_name.get(Path(filepath).name, -1))
        return (image, BY_NAME) if image else None

    def people(self, image_id: int, image_wh: tuple[float, float]) -> list[dict[str, Any]]:
        """All annotations of an image, with all keys that COCO's have: crowds and people without joints too."""
        return [_measured(person, image_wh) for person in self._people.get(image_id, [])]


def _counted(annotation: dict[str, Any], joints: int) -> dict[str, Any]:
    """An annotation with the keys that some files lack, and ``bbox`` None where there is no box.

    Raises:
        ValueError: if its keypoints are not of that many joints, or its box is none
    """
    keypoints = annotation["keypoints"] or [0] * (3 * joints)
    box = annotation.get("bbox") or None
    box = box if np.isfinite(np.array(box or 0, float)).all() else None
    if len(keypoints) != 3 * joints or len(box or range(4)) != 4:
        raise ValueError
    counted = {"num_keypoints": sum(visible > 0 for visible in keypoints[2::3]), "iscrowd": 0}
    given = {name: value for name, value in annotation.items() if value is not None}
    return {**counted, **given, "keypoints": keypoints, "bbox": box}


def _measured(person: dict[str, Any], image_wh: tuple[float, float]) -> dict[str, Any]:
    """An annotation with area and box, and where the area comes from."""
    area, box = _positive(person.get("area")), person["bbox"]
    if area and box:
        return {**person, AREA_FROM: FROM_ANNOTATIONS}
    places = np.reshape(np.array(person["keypoints"], float), (-1, 3))
    there = places[places[:, 2] > 0, :2]
    source = FROM_ANNOTATIONS if area or box else ESTIMATED
    area = area or (OF_BOX * box[2] * box[3] if box else _area_of_joints(there, image_wh))
    if not box:
        left, top, right, bottom = _around(there, area).tolist()
        box = [left, top, right - left, bottom - top]
    return {**person, "area": area, "bbox": box, AREA_FROM: source}


def read_labels(
    document: dict[str, Any] | None,
    columns: Sequence[int],
    image_wh: tuple[float, float],
    annotations: Sequence[dict[str, Any]] = (),
    annotated: Sequence[int] = (),
) -> Labels:
    """The labelled people of a sample.

    Args:
        document: its ``fo.Keypoints`` as the database holds them
        columns: which of their points are the K joints that count
        image_wh: width and height of the image in pixels
        annotations: of the image, from a COCO file
        annotated: which joints of the annotations are these K joints
    """
    keypoints = (document or {}).get("keypoints") or []
    points = np.full((len(keypoints), len(columns), 2), np.nan)
    for person, label in zip(points, keypoints, strict=True):
        given = np.array(label["points"], float).reshape(-1, 2)
        there = [k for k, column in enumerate(columns) if column < len(given)]
        person[there] = given[[columns[k] for k in there]] * image_wh
    points[np.isnan(points).any(axis=2)] = np.nan
    matched = _match(keypoints, points, annotations, annotated)
    areas, boxes, sources = np.zeros(len(points)), np.zeros((len(points), 4)), []
    ignored = []
    for p, label in enumerate(keypoints):
        annotation = annotations[matched[p]] if p in matched else None
        areas[p], boxes[p], source = _extent(label, points[p], annotation, image_wh)
        sources.append(source)
        if (label.get("iscrowd") or label.get("ignore") or np.isnan(points[p]).all()) and not np.isnan(boxes[p]).any():
            ignored.append(boxes[p])
    ignored += [_corners(a["bbox"]) for i, a in enumerate(annotations) if i not in matched.values()]
    kept = [
        p
        for p, label in enumerate(keypoints)
        if not (label.get("iscrowd") or label.get("ignore") or np.isnan(points[p]).all())
    ]
    truth = Truth(points[kept], areas[kept], boxes[kept], np.array(ignored, float).reshape(-1, 4))
    return Labels(truth, [keypoints[p]["_id"] for p in kept], [sources[p] for p in kept])


def _match(
    keypoints: Sequence[dict[str, Any]],
    points: Floats,
    annotations: Sequence[dict[str, Any]],
    annotated: Sequence[int],
) -> dict[int, int]:
    """Which annotation each person was made of: by its `coco_id`, else by where the joints are."""
    ids = {annotation["id"]: number for number, annotation in enumerate(annotations) if "id" in annotation}
    matched = {p: ids[label["coco_id"]] for p, label in enumerate(keypoints) if label.get("coco_id") in ids}
    people = [p for p in range(len(keypoints)) if p not in matched]
    others = [number for number in range(len(annotations)) if number not in matched.values()]
    if people and others:
        places = np.array([annotations[number]["keypoints"] for number in others], float)
        places = places.reshape(len(others), -1, 3)[:, list(annotated)]
        places[places[:, :, 2] == 0] = np.nan
        apart = np.linalg.norm(points[people][:, None] - places[None, :, :, :2], axis=3)  # P, A, K
        both = (~np.isnan(apart)).sum(axis=2)
        mean = np.where(both > 0, np.nansum(apart, axis=2) / np.maximum(both, 1), np.inf)
        rows, columns = assign(mean, SAME)
        matched |= {people[row]: others[column] for row, column in zip(rows, columns, strict=True)}
    return matched


def _extent(
    label: dict[str, Any], points: Floats, annotation: dict[str, Any] | None, image_wh: tuple[float, float]
) -> tuple[float, Floats, str]:
    """A person's area, its box (NaN = unknown), and where the area comes from."""
    there = points[~np.isnan(points[:, 0])]
    if annotation is not None and annotation[AREA_FROM] == FROM_ANNOTATIONS:
        return max(float(annotation["area"]), 1.0), _corners(annotation["bbox"]), FROM_ANNOTATIONS
    box = np.full(4, np.nan)
    if label.get("bounding_box"):
        box = _corners(np.array(label["bounding_box"], float).reshape(2, 2) * image_wh)
    if area := _positive(label.get("area")):
        return max(area, 1.0), _or_joints(box, there, area), FROM_ATTRIBUTES
    if not np.isnan(box).any():
        return max(OF_BOX * float(np.prod(box[2:] - box[:2])), 1.0), box, FROM_ATTRIBUTES
    if not len(there):
        return 1.0, box, ESTIMATED
    area = _area_of_joints(there, image_wh)
    return area, _or_joints(box, there, area), ESTIMATED


def _positive(area: Any) -> float | None:
    """An area, or None where it is none: files and attributes may hold anything, also NaN."""
    return float(area) if isinstance(area, (int, float)) and 0 < area < np.inf else None


def _area_of_joints(points: Floats, image_wh: tuple[float, float]) -> float:
    """An estimate of a person's area from its joints (N, 2), of which there is at least one."""
    width, height = points.max(axis=0) - points.min(axis=0)
    area = max(OF_JOINTS * width * height, OF_SQUARE * max(width, height) ** 2)
    return float(area if len(points) > 1 and area > 1 else OF_IMAGE * image_wh[0] * image_wh[1])


def _or_joints(box: Floats, points: Floats, area: float) -> Floats:
    """A box, or where it is not known one around the joints."""
    return box if not np.isnan(box).any() or not len(points) else _around(points, area)


def _around(points: Floats, area: float) -> Floats:
    """Left, top, right, bottom around the joints (N, 2) of a person of that area."""
    margin = MARGIN * np.sqrt(area)
    return np.concatenate([points.min(axis=0) - margin, points.max(axis=0) + margin])


def _corners(box: Any) -> Floats:
    """Left, top, width, height to left, top, right, bottom."""
    left, top, width, height = np.ravel(np.asarray(box, float))
    return np.array([left, top, left + width, top + height])
