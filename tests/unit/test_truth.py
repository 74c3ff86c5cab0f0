"""Areas, boxes and crowds of labelled people, where no COCO file tells them."""

import numpy as np
import pytest

from evaluation import truth


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
