"""Areas, boxes and crowds of labelled people, and what is read of a COCO file."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation import summary, truth


@pytest.mark.parametrize(
    ("points", "area"),
    [([(0, 0), (40, 100)], 0.9 * 4000), ([(0, 0), (10, 100)], 0.33 * 100**2), ([(5, 5)], 0.02 * 640 * 480)],
    ids=["box", "square", "one joint"],
)
def test_areas_of_joints(points: list, area: float):
    assert truth._area_of_joints(np.array(points, float), (640, 480)) == pytest.approx(area)


def test_boxes_areas_and_crowds_come_from_attributes():
    label = {"_id": 1, "points": [(0.2, 0.2)], "bounding_box": [0.1, 0.1, 0.5, 0.5]}
    others = [{**label, "_id": 2, "area": 777}, {**label, "_id": 3, "iscrowd": True}, {**label, "_id": 4, "ignore": 1}]
    found = truth.read_labels({"keypoints": [label, *others]}, [0], (640, 480))
    assert found.ids == [1, 2]
    assert found.sources == ["attributes"] * 2
    assert found.truth.areas.tolist() == pytest.approx([0.53 * 320 * 240, 777])
    assert found.truth.boxes.tolist() == [[64, 48, 384, 288]] * 2
    assert found.truth.ignored.tolist() == [[64, 48, 384, 288]] * 2


@pytest.mark.parametrize("area", [float("nan"), float("inf"), -5.0, 0, "large"])
def test_an_area_that_is_none_is_estimated(area: float):
    label = {"_id": 1, "points": [(0.2, 0.2), (0.6, 0.7)], "area": area}
    found = truth.read_labels({"keypoints": [label]}, [0, 1], (640, 480))
    assert found.sources == ["estimated"]
    assert summary.size_of(found.truth.areas[0]) == "large"
    assert np.isfinite(found.truth.boxes).all()
    assert summary.size_of(float("nan")) == "large"


def coco_file(path: Path, categories: list[dict], **annotation: object) -> Path:
    """One person of each category."""
    people = [
        {"id": n, "image_id": 1, "category_id": category["id"], "keypoints": [9, 9, 2, 40, 60, 2], **annotation}
        for n, category in enumerate(categories, 1)
    ]
    images = [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480}]
    path.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))
    return path


def test_areas_and_boxes_of_a_file_that_are_no_numbers_are_estimated(tmp_path: Path):
    category = {"id": 1, "name": "person", "keypoints": ["nose", "tail"]}
    for given in ({"area": float("nan")}, {"area": -1}, {"area": float("nan"), "bbox": [0, 0, float("nan"), 5]}):
        file = truth.Annotations(coco_file(tmp_path / "coco.json", [category], **given))
        (person,) = file.people(1, (640, 480))
        assert person["area_from"] == "estimated"
        assert person["area"] == pytest.approx(0.9 * 31 * 51)
        assert np.isfinite(person["bbox"]).all()


def test_people_of_all_categories_with_the_same_keypoints_are_read(tmp_path: Path):
    player, referee = (
        {"id": n, "name": name, "keypoints": ["nose", "tail"]} for n, name in ((3, "player"), (7, "ref"))
    )
    plain = {"id": 4, "name": "ball"}
    file = truth.Annotations(coco_file(tmp_path / "coco.json", [player, plain, referee]))
    assert [person["category_id"] for person in file.people(1, (640, 480))] == [3, 7]
    others = [player, {**referee, "keypoints": ["nose", "paw", "tail"]}]
    with pytest.raises(ValueError, match="several categories with other keypoints"):
        truth.Annotations(coco_file(tmp_path / "coco.json", others))
