"""Pose embeddings do not change when a pose is moved, enlarged or mirrored, and do when it is another pose."""

import cv2
import numpy as np
import pytest

from evaluation.embeddings import embedding, floored, person_box, person_maps
from evaluation.skeletons import twins
from inference.joints import COCO

ORDER = twins(COCO.joints).tolist()
SHAPE = (120, 160)
# Places of the COCO joints of a person who stands, relative to a box of 1 x 1.
STANDING = np.array(
    [(0.50, 0.05), (0.53, 0.03), (0.47, 0.03), (0.56, 0.05), (0.44, 0.05), (0.62, 0.20), (0.38, 0.20), (0.75, 0.33),
     (0.34, 0.36), (0.90, 0.25), (0.30, 0.52), (0.57, 0.52), (0.43, 0.52), (0.59, 0.75), (0.42, 0.76), (0.60, 0.97),
     (0.40, 0.98)]
)  # fmt: skip
SITTING = STANDING.copy()
SITTING[[13, 14, 15, 16]] = [(0.80, 0.55), (0.68, 0.57), (0.82, 0.85), (0.70, 0.88)]


def draw(places: np.ndarray, scale: float = 80, left: float = 40, top: float = 20, shape=SHAPE) -> np.ndarray:
    """Maps of a person whose box of 1 x 1 is drawn ``scale`` pixels large, with Gaussians that grow along."""
    rows, columns = (np.arange(count) + 0.5 for count in shape)
    x, y = (places * scale + (left, top)).T[:, :, None]
    across, down = (np.exp(-((a - b) ** 2) / (2 * (0.04 * scale) ** 2)) for a, b in ((columns, x), (rows, y)))
    return (0.8 * down[:, :, None] * across[:, None, :]).astype(np.float32)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    one, other = embedding(first, ORDER), embedding(second, ORDER)
    return 1 - float(one @ other)


@pytest.mark.parametrize(
    "other",
    [
        draw(STANDING, left=60, top=35),
        draw(STANDING, scale=50, left=20, top=60),
        draw(STANDING, scale=110, left=20, top=5),
        draw(STANDING)[list(COCO.flip), :, ::-1],
        draw(STANDING, scale=60)[list(COCO.flip), :, ::-1],
        draw(STANDING, scale=200, left=300, top=100, shape=(400, 700)),
    ],
    ids=["moved", "smaller", "larger", "mirrored", "mirrored and smaller", "in another image"],
)
def test_a_pose_stays_the_same_when_moved_enlarged_or_mirrored(other: np.ndarray):
    assert distance(draw(STANDING), other) < 0.01
    assert distance(draw(SITTING), draw(STANDING)) > 0.05


def test_a_mirror_image_is_not_the_same_as_left_and_right_swapped():
    maps = draw(STANDING)
    assert distance(maps, maps[list(COCO.flip), :, ::-1]) < 1e-5
    assert distance(maps, maps[list(COCO.flip)]) > 0.01, "left and right swapped on the spot: another pose"
    assert distance(maps, maps[:, :, ::-1]) > 0.01, "mirrored without naming the joints anew: another pose"


def test_a_faint_map_is_the_same_pose_and_an_empty_one_is_none():
    assert distance(draw(STANDING), draw(STANDING) / 4) < 1e-5
    assert embedding(np.zeros((17, *SHAPE), np.float32), ORDER) is None


def squashed(maps: np.ndarray, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    return np.stack([cv2.resize(values, size, interpolation=cv2.INTER_AREA) for values in maps])


def test_squashed_maps_show_the_same_pose():
    whole = draw(STANDING, scale=80, left=150, top=30, shape=(135, 240))  # of a photo of 16:9
    small = squashed(whole)
    one, other = embedding(whole, ORDER), embedding(small, ORDER, aspect=16 / 9)
    assert float(one @ other) > 0.99
    assert float(one @ embedding(small, ORDER)) < 0.97, "pixels taken for square"
    points = (STANDING * 80 + (150, 30)) / (240, 135)
    both = np.maximum(whole, draw(SITTING, scale=80, left=40, top=30, shape=(135, 240)))
    one = embedding(person_maps(both, points), ORDER)
    other = embedding(person_maps(squashed(both), points, 16 / 9), ORDER, 16 / 9)
    assert float(one @ other) > 0.99


def test_a_background_below_the_floor_does_not_decide():
    maps = draw(STANDING, scale=40)
    noisy = np.maximum(maps, np.float32(2 / 255))
    assert distance(floored(noisy), maps) < 0.01
    assert distance(noisy, maps) > 0.1


def test_vectors_have_length_one():
    vector = embedding(draw(SITTING), ORDER)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_mirrored_joint_follows_from_the_names():
    assert tuple(ORDER) == COCO.flip
    assert twins(["left_wrist", "nose", "right_wrist"]).tolist() == [2, 1, 0]
    assert twins(["left_wrist", "nose"]).tolist() == [0, 1]


def test_a_person_is_embedded_apart_from_the_others():
    alone = draw(STANDING, scale=60, left=10, top=30)
    both = np.maximum(alone, draw(SITTING, scale=60, left=80, top=30))
    points = (STANDING * 60 + (10, 30)) / (SHAPE[1], SHAPE[0])
    assert distance(person_maps(both, points), person_maps(alone, points)) < 0.01
    assert distance(person_maps(both, points), both) > 0.1


def test_joints_that_a_person_lacks_show_nothing():
    points = STANDING.copy()
    points[[15, 16]] = np.nan
    maps = person_maps(np.full((17, *SHAPE), 0.5, np.float32), points)
    assert not maps[15:].any()
    assert maps[:15].max(axis=(1, 2)).min() > 0.4


def test_boxes_stay_inside_the_image():
    assert person_box(np.array([[0.5, 0.5], [np.nan, np.nan]])) is None
    x, y, width, height = person_box(np.array([[0.0, 0.2], [0.5, 1.0]]))
    assert (x, y) == pytest.approx((0, 0.12))
    assert (width, height) == pytest.approx((0.58, 0.88))
