"""Poses in grouping: joints that cannot be one person's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from inference import checkpoints
from inference.grouping import GroupingConfig, _match, group
from inference.joints import COCO
from inference.pose_prior import SMALLEST, PosePrior
from inference.predictor import Predictor
from training.dataset import Photo
from training.poses import fit_pose_prior

# A standing person, joints as in COCO: x to the right, y down.
STANDING = np.array(
    [(0, -16), (1, -17), (-1, -17), (2, -16), (-2, -16)]  # nose, eyes, ears
    + [(side * x, y) for x, y in ((4, -12), (6, -6), (7, 0), (3, 0), (3, 8), (3, 16)) for side in (1, -1)],
    float,
)


def prior(spread: float = 0.01) -> PosePrior:
    joints = STANDING - STANDING.mean(axis=0)
    return PosePrior.from_arrays(joints / np.sqrt((joints**2).sum(axis=1).mean()), spread * np.eye(34))


def person(x: float, y: float, size: float = 1.0) -> NDArray[np.float64]:
    return STANDING * size + (x, y)


def scene(people: list[NDArray], tags: list[float], values: list[float]) -> tuple[NDArray, NDArray]:
    """Heatmaps (17, 96, 160) and tags (17, 96, 160, 1) with each person's tag around the person's joints."""
    heatmaps, tag_map = np.zeros((17, 96, 160), np.float32), np.zeros((17, 96, 160, 1), np.float32)
    for joints, tag, value in zip(people, tags, values, strict=True):
        for joint, (x, y) in enumerate(joints.astype(int)):
            heatmaps[joint, y, x] = max(value, heatmaps[joint, y, x])
            cv2.circle(tag_map[joint, :, :, 0], (x, y), 3, tag, -1)
    return heatmaps, tag_map


def found(heatmaps: NDArray, tags: NDArray, **config: object) -> NDArray:
    return group(heatmaps, tags, COCO.grouping_order, GroupingConfig(adjust=False, **config)).joints  # type: ignore[arg-type]


def test_a_pose_is_expected_where_some_of_its_joints_say() -> None:
    people = np.stack([person(50, 40), person(300, 200, 4)])
    weights = np.zeros((2, 17))
    weights[:, [0, 5, 6, 9, 11, 15]] = 0.8
    expected, sizes = prior().fit(np.where(weights[..., None] > 0, people, -999), weights)
    assert (np.linalg.norm(expected - people, axis=2).max(axis=1) < 0.1 * sizes).all()
    assert sizes[1] / sizes[0] == pytest.approx(4, rel=0.05)


def test_joints_of_somebody_else_do_not_fit_and_few_joints_are_no_pose() -> None:
    people = np.stack([person(50, 40), person(50, 40), person(50, 40)])
    people[:, [9, 16]] += (60, 0)
    values = np.full((3, 17), 0.5)
    values[1, 4:] = 0
    values[2, 3:] = 0
    expected, _, fits = prior().fit_robustly(people, values)
    assert np.flatnonzero(~fits[0]).tolist() == [9, 16]
    assert np.abs(expected[0] - person(50, 40)).max() < 2
    assert fits.sum(axis=1).tolist() == [15, 4, 0]
    assert [len(part) for part in prior().fit_robustly(people[:0], values[:0])] == [0, 0, 0]


def test_people_whose_joints_lie_in_one_place_have_a_size_to_divide_by() -> None:
    places, values = np.full((1, 17, 2), (50.0, 40.0)), np.zeros((1, 17))
    places[0, [10, 7]] = (107, -39), (94, 63)  # where the size comes from, until they turn out not to fit
    values[0, [4, 5, 6, 8, 9, 11]], values[0, [10, 7]] = 0.5, 0.2
    expected, sizes, fits = prior().fit_robustly(places, values)
    assert np.flatnonzero(fits[0]).tolist() == [4, 5, 6, 8]
    assert sizes == [SMALLEST]
    assert np.isfinite(expected).all()


def test_people_with_alike_tags_are_told_apart_by_their_poses() -> None:
    people = [person(40, 50), person(115, 45)]
    heatmaps, tags = scene(people, [1.0, 1.3], [0.6, 0.6])
    heatmaps[[6, 8, 11, 15]] *= np.where(np.arange(160) > 80, 1.0, 0.8)  # the other person's are the higher ones there
    heatmaps[[5, 7, 9, 16]] *= np.where(np.arange(160) < 80, 1.0, 0.8)
    for config, mixed in (({}, True), ({"prior": prior()}, False)):
        joints = found(heatmaps, tags, **config)
        assert len(joints) == 2
        off = [min(np.abs(each[:, :2] - whole).max() for whole in people) for each in joints]
        assert all(distance > 60 if mixed else distance <= 1 for distance in off), config


def test_which_of_two_near_people_a_joint_is_of_does_not_hang_on_the_last_bit_of_its_value() -> None:
    people = np.array([[10, 10, 0.5, 0.0], [50, 10, 0.5, 0.3]], np.float32)
    joints = np.array([[10, 40, 0.5, 0.35], [50, 40, 0.5, 0.45]], np.float32)  # tags apart in all: 0.5 either way
    pairs: dict[bool, set[tuple[float, float]]] = {True: set(), False: set()}
    for known in pairs:
        config = GroupingConfig(prior=prior() if known else None)
        for order in ([0, 1], [1, 0]):  # of two values that differ by nothing
            for person in _match([people, joints[order]], (0, 1), config):
                pairs[known].add((float(person[0, 0]), float(person[1, 0])))
    assert pairs[True] == {(10, 10), (50, 50)}
    assert len(pairs[False]) == 4, "as published"


def test_where_tags_are_equally_near_the_stronger_joint_is_the_stronger_persons() -> None:
    people = np.array([[10, 10, 0.8, 0.0], [50, 10, 0.3, 0.1]], np.float32)
    joints = np.array([[10, 40, 0.7, 0.05], [50, 40, 0.2, 0.05]], np.float32)
    for order in ([0, 1], [1, 0]):
        matched = _match([people[order], joints], (0, 1), GroupingConfig(prior=prior()))
        assert (matched[:, 0, 0] == matched[:, 1, 0]).all()


def test_a_joint_that_a_person_lacks_is_looked_for_near_the_person() -> None:
    whole = person(40, 50)
    heatmaps, tags = scene([whole], [1.0], [0.6])
    x, y = whole[15].astype(int)
    heatmaps[15] = 0
    heatmaps[15, y + 1, x + 1] = 0.08  # below what starts a joint
    heatmaps[15, 20, 150] = 0.09
    tags[15] = 1
    for config, place in (({}, (150, 20)), ({"prior": prior()}, (x + 1, y + 1))):
        (joints,) = found(heatmaps, tags, **config)
        assert np.abs(joints[15, :2] - place).max() <= 2, config
        assert joints[15, 2] <= 0.09


def test_nothing_changes_where_poses_agree_with_tags_and_no_person_is_lost() -> None:
    people = [person(30, 50), person(80, 50, 0.8), person(130, 45, 1.2)]
    heatmaps, tags = scene(people, [0.0, 4.0, 8.0], [0.9, 0.7, 0.5])
    heatmaps[3, 90, 3] = 0.3  # a stray peak, a group of its own
    tags[3, 90, 3] = 20
    plain, posed = found(heatmaps, tags), found(heatmaps, tags, prior=prior())
    assert len(plain) == 4
    np.testing.assert_allclose(np.sort(plain[:, :, 2], axis=0), np.sort(posed[:, :, 2], axis=0))
    for joints in plain[:3]:
        assert min(np.abs(joints - other).max() for other in posed) == 0


def test_files_keep_it() -> None:
    kept = prior()
    assert PosePrior.from_json(kept.to_json()) == kept
    good = json.loads(kept.to_json())
    for bad, words in (
        ({**good, "mean": good["mean"][1:]}, "two rows"),
        ({**good, "covariance": good["covariance"][1:]}, "two rows"),
        ({"mean": [], "covariance": []}, "two rows"),
        ({**good, "covariance": [[-1.0], *good["covariance"][1:]]}, "positive definite"),
        ({**good, "mean": [[float("nan"), 0], *good["mean"][1:]]}, "finite"),
    ):
        with pytest.raises(ValueError, match=words):
            PosePrior.from_json(json.dumps(bad))


def test_it_comes_with_the_weights(rewritten: Callable[..., Path]) -> None:
    model = checkpoints.load(checkpoint=rewritten(pose_prior=prior().to_json()))
    assert model.network.pose_prior == prior()
    assert Predictor(model.network, COCO.flip, 128, device="cpu").grouping.prior == prior()
    half = json.loads(prior().to_json())
    half = {"mean": half["mean"][:8], "covariance": half["covariance"][:16]}
    for text in ("nonsense", "[]", "{}", '{"mean": 1, "covariance": []}', json.dumps(half)):
        with pytest.raises(checkpoints.CheckpointError, match="pose prior"):
            checkpoints.load(checkpoint=rewritten(pose_prior=text))


def test_it_is_fitted_to_people_with_all_joints_and_their_mirror_images(tmp_path: Path) -> None:
    def labelled(joints: NDArray, seen: int = 2) -> dict:
        keypoints = np.column_stack([joints, np.full(17, seen)])
        return {"bbox": [0, 0, 60, 60], "keypoints": keypoints.ravel().tolist()}

    raised = STANDING.copy()
    raised[9] = (6, -12)  # the left hand, only
    few, small = labelled(STANDING), {**labelled(STANDING), "bbox": [0, 0, 20, 20]}
    few["keypoints"][2] = 0
    records = [{"persons": [labelled(STANDING), few, small]}, {"persons": [labelled(2 * raised + 100)]}]
    photos = [Photo(tmp_path, 0, 0, record) for record in records]  # type: ignore[arg-type]
    fitted = fit_pose_prior(photos)
    mean = np.array(fitted.mean)
    np.testing.assert_allclose(mean[list(COCO.flip)] * (-1, 1), mean, atol=1e-4)
    assert (mean**2).sum() == pytest.approx(17, rel=0.05)
    variances = np.array([row[-1] for row in fitted.covariance]).reshape(17, 2)
    assert set(variances[:, 1].argsort()[-2:]) == {9, 10}, "either hand may be raised"
    with pytest.raises(ValueError, match="two people"):
        fit_pose_prior(photos[:1])
