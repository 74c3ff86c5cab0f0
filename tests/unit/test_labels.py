"""People as a run stores them: which ones, and which of their joints."""

import numpy as np
import pytest

from inference import labels
from inference.geometry import warp_for
from inference.grouping import People
from inference.joints import COCO
from inference.labels import Labeller, Seen
from inference.maps import ImageMaps
from inference.settings import Settings


def test_joints_are_relative_to_the_image_and_doubtful_ones_are_left_out():
    warp = warp_for((400, 300), 256)
    joints = np.zeros((1, 17, 3), np.float32)
    for k, (x, y, value) in enumerate([(100, 60, 0.7), (200, 90, 0.04)]):
        joints[0, k] = (*(np.array([x, y]) * warp.ratio + warp.offset), value)
    people = People(joints, np.zeros((1, 17)), np.array([0.2]))
    (stored,), (exact,) = (labels.keypoints(people, warp, exact).keypoints for exact in (False, True))
    assert stored.points[0] == pytest.approx((0.25, 0.2), abs=1e-4)
    assert stored.confidence[0] == pytest.approx(0.7, abs=1e-5)
    assert np.isnan(stored.points[1]).all()
    assert np.isnan(stored.confidence[1])
    assert exact.points[1] == pytest.approx((0.5, 0.3), abs=1e-6)
    assert exact.confidence[1] == pytest.approx(0.04, abs=1e-6)
    assert np.isnan(exact.points[2]).all(), "what has no value at all is nowhere"


def test_people_below_the_least_mean_are_left_out_unless_all_groups_are_asked_for():
    """Two people, all of whose joints have the values 0.14 and 0.16: so have their scores."""
    heatmaps, tags = np.zeros((17, 64, 64), np.float32), np.zeros((17, 64, 64, 1), np.float32)
    for column, value, tag in ((8, 0.14, -5), (40, 0.16, 5)):
        for k in range(17):
            heatmaps[k, 3 * k + 3 : 3 * k + 6, column - 1 : column + 2] = value  # keeps it when it is enlarged
            tags[k, :, column - 8 : column + 8] = tag
    seen = Seen(warp_for((512, 512), 256), ImageMaps(None, np.zeros((8, 8), np.uint8), 0.16), heatmaps, tags)
    counts = {}
    for all_groups in (False, True):
        settings = Settings(storage="memory", maps=("max",), all_groups=all_groups)
        values = Labeller(settings, COCO, None).labels(seen, "")
        scores = [person.score for person in values["keypoints"].keypoints]
        assert len(scores) == values["num_people"]
        counts[all_groups] = len([score for score in scores if score > 0.1])
        if not all_groups:
            assert min(scores) >= 0.15
    assert counts == {False: 1, True: 2}
