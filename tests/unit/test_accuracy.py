"""The README's figures: which joints count as found, and what the threshold of false alarms is."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from benchmarks import accuracy
from inference.geometry import warp_for
from inference.joints import COCO as JOINTS
from inference.labels import Seen
from inference.maps import ImageMaps

PERSON = {"iscrowd": 0, "area": 97**2, "keypoints": [81, 61, 2, 150, 110, 1] + [0] * 45}
WARP = warp_for((160, 120), 120)


def maps() -> np.ndarray:
    """A nose at pixel (80, 60) of an image of 160 x 120, and an eye in its corner."""
    values = np.zeros((17, 60, 80), np.uint8)
    values[0, 30, 40] = 200
    values[1, 5, 5] = 255
    return values


def test_a_joint_counts_with_the_highest_maximum_near_it():
    seen = Seen(WARP, ImageMaps(maps(), maps().max(axis=0), 1.0))

    def peaks(**more: float) -> list[tuple[float, bool]]:
        return list(accuracy.joint_peaks(seen, [PERSON | more], list(range(17))))

    assert peaks() == [(pytest.approx(200 / 255), True), (0.0, True)]
    assert peaks(area=96**2) == [(pytest.approx(200 / 255), False), (0.0, False)]
    assert peaks(area=32**2) == peaks(iscrowd=1) == []


def test_slopes_are_no_maxima():
    values = np.array([[1, 2, 3, 2], [0, 0, 0, 0], [0, 0, 0, 5]], np.uint8)
    assert accuracy.local_maxima(values).tolist() == [[0, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 5]]


def test_three_of_a_hundred_images_exceed_the_threshold_of_false_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number in range(100):
        (tmp_path / f"{number}.jpg").touch()

    def look_at(predictor: object, paths: list[Path], what: str):
        for path in paths:
            values = maps() if path.name == "photo.jpg" else np.full((17, 60, 80), 2 * int(path.stem), np.uint8)
            yield path, Seen(WARP, ImageMaps(values, values.max(axis=0), 1.0))

    monkeypatch.setattr(accuracy, "look_at", look_at)
    monkeypatch.setattr(accuracy, "detections", lambda *_: [])
    monkeypatch.setattr(accuracy, "stored", lambda *_: [])
    annotations = COCO()
    annotations.dataset = {
        "images": [{"id": 1, "file_name": "photo.jpg", "width": 160, "height": 120}],
        "annotations": [{**PERSON, "id": 1, "image_id": 1, "category_id": 1, "num_keypoints": 2, "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS.joints)}],
    }
    annotations.createIndex()
    figures = accuracy.measure(None, JOINTS, tmp_path / "with", annotations, tmp_path)
    assert figures["threshold_fa3"] == pytest.approx(2 * 96 / 255)  # 97, 98 and 99 exceed it
    assert figures["false_alarm_rate"] == pytest.approx(0.74)  # 26 to 99 reach 0.2
    assert figures["joint_recall"] == 0.5
    assert figures["recall_at_fa3"] == 0.5  # 200 exceeds 192


def test_categories_with_the_same_keypoints_become_one():
    people = [
        {**PERSON, "id": number, "image_id": 1, "category_id": number, "num_keypoints": 2, "bbox": [0, 0, 9, 9]}
        for number in (3, 7)
    ]
    ball = {"id": 5, "image_id": 1, "category_id": 2, "area": 4, "bbox": [0, 0, 2, 2], "iscrowd": 0}
    categories = [{"id": number, "name": str(number), "keypoints": list(JOINTS.joints)} for number in (3, 7)]

    def annotations(other: list[dict]) -> COCO:
        made = COCO()
        made.dataset = {"images": [{"id": 1}], "annotations": [*people, ball], "categories": [{"id": 2}, *other]}
        made.createIndex()
        return made

    merged = annotations(categories)
    assert accuracy.align(merged, JOINTS) == list(range(17))
    assert merged.getCatIds() == [1]
    assert [person["id"] for person in merged.imgToAnns[1]] == [3, 7]
    with pytest.raises(ValueError, match="several categories"):
        accuracy.align(annotations([categories[0], {**categories[1], "keypoints": ["tail"]}]), JOINTS)
