"""Heatmaps and tags to people."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from inference.enlarged import Enlarged, TagMap
from inference.grouping import GroupingConfig, group
from inference.joints import COCO

ORDER = COCO.grouping_order
WITHOUT_REFINE = GroupingConfig(refine=False)


def enlarged(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(C, h, w) -> (C, H, W) as PyTorch does it."""
    return F.interpolate(torch.from_numpy(values)[None], size=shape, mode="bilinear", align_corners=False)[0].numpy()


def indices(count: int, shape: tuple[int, int]) -> NDArray[np.intp]:
    return np.mgrid[:count, : shape[0], : shape[1]]


def random_maps(seed: int, height: int, width: int, tags: int, depth: int) -> tuple[NDArray, NDArray]:
    """Heatmaps (17, h, w) with a few bumps per joint, some joints without any, and tags (T, h, w, D) in regions."""
    random = np.random.default_rng(seed)
    heatmaps = np.zeros((17, height, width), np.float32)
    for joint in range(17):
        for _ in range(random.integers(0, 5)):
            heatmaps[joint, random.integers(height), random.integers(width)] += random.uniform(3, 12)
        heatmaps[joint] = cv2.GaussianBlur(heatmaps[joint], (0, 0), 1.3)
    heatmaps += random.uniform(-0.02, 0.08, heatmaps.shape).astype(np.float32)
    low = random.uniform(-4, 4, (tags * depth, 3, 4)).astype(np.float32)
    field = enlarged(low, (height, width)) + random.normal(0, 0.2, (tags * depth, height, width)).astype(np.float32)
    return heatmaps, np.ascontiguousarray(field.reshape(tags, depth, height, width).transpose(0, 2, 3, 1))


def bump(values: NDArray, joint: int, x: int, y: int, peak: float = 0.9) -> None:
    """Draw a joint into the heatmaps, its peak in the middle of pixel (x, y)."""
    rows, columns = np.mgrid[: values.shape[1], : values.shape[2]]
    blob = peak * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4)
    values[joint] = np.maximum(values[joint], blob.astype(np.float32))


# --- enlarging


@pytest.mark.parametrize("shape", [(18, 22), (36, 44), (35, 47), (40, 50), (73, 91)])
def test_enlarged_values_are_those_of_bilinear_interpolation(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal((3, 18, 22)).astype(np.float32)
    expected = enlarged(values, shape)
    where = indices(3, shape)
    np.testing.assert_allclose(Enlarged(values, shape).at(*where), expected, atol=1e-5)


@pytest.mark.parametrize(("tags", "depth"), [(17, 1), (17, 2), (1, 1), (1, 2)])
def test_tags_are_enlarged_in_the_same_way_and_may_be_shared(tags: int, depth: int) -> None:
    values = np.random.default_rng(0).standard_normal((tags, 18, 22, depth)).astype(np.float32)
    found = TagMap(values, (36, 44)).at(*indices(17, (36, 44)))
    assert found.shape == (17, 36, 44, depth)
    for d in range(depth):
        expected = np.broadcast_to(enlarged(np.ascontiguousarray(values[..., d]), (36, 44)), (17, 36, 44))
        np.testing.assert_allclose(found[..., d], expected, atol=1e-5)


# --- the joints that a person lacks


def brute_force(
    heatmaps: NDArray[np.float32], tags: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], int]:
    """People whose missing joints are looked for at every pixel of the enlarged maps, and how many were added."""
    people = group(heatmaps, tags, ORDER, WITHOUT_REFINE, shape)
    maps = enlarged(heatmaps, shape)
    depth = tags.shape[3]
    tag_maps = np.stack([enlarged(np.ascontiguousarray(tags[..., d]), shape) for d in range(depth)], axis=-1)
    tag_maps = np.broadcast_to(tag_maps, (len(maps), *shape, depth))
    joints, added = people.joints.copy(), 0
    for person in joints:
        present = np.flatnonzero(person[:, 2] > 0)
        mean = np.mean([tag_maps[k, int(person[k, 1]), int(person[k, 0])] for k in present], axis=0)
        for k in np.flatnonzero(person[:, 2] == 0):
            distance = np.sqrt(((tag_maps[k] - mean) ** 2).sum(axis=-1))
            y, x = np.unravel_index((maps[k] - np.round(distance)).argmax(), shape)
            if maps[k, y, x] <= 0:
                continue
            row, column = maps[k, y], maps[k, :, x]
            right = row[min(x + 1, shape[1] - 1)] > row[max(x - 1, 0)]
            down = column[min(y + 1, shape[0] - 1)] > column[max(y - 1, 0)]
            person[k] = x + (0.75 if right else 0.25), y + (0.75 if down else 0.25), maps[k, y, x]
            added += 1
    return joints, added


@pytest.mark.parametrize(("tags", "depth"), [(17, 1), (17, 2), (1, 1)])
@pytest.mark.parametrize("size", [(24, 32), (30, 21), (40, 56)])
@pytest.mark.parametrize("factor", [1, 2])
def test_missing_joints_are_found_where_a_search_of_every_pixel_finds_them(
    size: tuple[int, int], factor: int, tags: int, depth: int
) -> None:
    total = 0
    for seed in range(3):
        heatmaps, tag_values = random_maps(seed, *size, tags, depth)
        shape = (factor * size[0], factor * size[1])
        expected, added = brute_force(heatmaps, tag_values, shape)
        found = group(heatmaps, tag_values, ORDER, GroupingConfig(), shape).joints
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found[..., :2], expected[..., :2])
        np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=1e-5)
        total += added
    assert total > 20


@pytest.mark.parametrize("shape", [(24, 32), (48, 64), (72, 96), (35, 47)])
def test_enlarging_where_peaks_are_finds_what_enlarging_the_whole_finds(shape: tuple[int, int]) -> None:
    for seed in range(3):
        heatmaps, tags = random_maps(seed, 24, 32, 17, 1)
        large_tags = enlarged(np.ascontiguousarray(tags[..., 0]), shape)[..., None]
        whole = group(enlarged(heatmaps, shape), large_tags, ORDER, WITHOUT_REFINE)
        parts = group(heatmaps, tags, ORDER, WITHOUT_REFINE, shape)
        assert len(whole) > 3
        np.testing.assert_allclose(parts.joints, whole.joints, atol=1e-5)


def test_joints_that_were_seen_stay_where_they_were_seen() -> None:
    heatmaps, tags = random_maps(0, 24, 32, 17, 1)
    before, after = (group(heatmaps, tags, ORDER, config) for config in (WITHOUT_REFINE, GroupingConfig()))
    seen = before.joints[..., 2] > 0
    assert 0 < seen.sum() < seen.size
    np.testing.assert_array_equal(after.joints[seen], before.joints[seen])
    np.testing.assert_array_equal(after.scores, before.scores)  # of what was seen


# --- people


def test_nobody_is_found_where_no_peak_passes_the_threshold() -> None:
    heatmaps, tags = random_maps(0, 24, 32, 17, 1)
    heatmaps *= 0.099 / heatmaps.max()
    people = group(heatmaps, tags, ORDER, shape=(48, 64))
    assert len(people) == 0
    assert people.joints.shape == (0, 17, 3)
    assert people.tags.shape == (0, 17)
    assert people.scores.shape == (0,)
    assert len(group(heatmaps, tags, ORDER, GroupingConfig(detection_threshold=0.05))) > 0
    assert len(group(np.zeros_like(heatmaps), tags, ORDER)) == 0
    assert len(group(-np.ones_like(heatmaps), tags, ORDER)) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_two_people_with_different_tags_stay_apart(shared: bool) -> None:
    """All 17 joints of both, interleaved so that the nearest joint is always the other person's."""
    heatmaps = np.zeros((17, 64, 64), np.float32)
    tags = np.zeros((1 if shared else 17, 64, 64, 1), np.float32)
    where = np.zeros((2, 17, 2), int)
    for joint in range(17):
        column, row = divmod(joint, 9)
        for person in range(2):
            # Joints that share a tag channel must not lie on each other.
            x, y = 8 + 12 * (2 * column + (person + joint) % 2), 4 + 7 * row
            where[person, joint] = x, y
            bump(heatmaps, joint, x, y, 0.9 - 0.2 * person)
            tags[0 if shared else joint, y - 2 : y + 3, x - 2 : x + 3] = 3.0 if person else -3.0
    people = group(heatmaps, tags, ORDER)
    assert len(people) == 2
    for person, joints, own, score in zip(where, people.joints, people.tags, people.scores, strict=True):
        assert np.abs(joints[:, :2] - (person + 0.5)).max() <= 0.25
        assert len(set(np.sign(own))) == 1
        assert score == pytest.approx(joints[:, 2].mean())
    assert people.scores == pytest.approx([0.9, 0.7], abs=1e-5)


def test_joints_with_one_tag_become_one_person() -> None:
    heatmaps, tags = np.zeros((17, 64, 64), np.float32), np.full((17, 64, 64, 1), 1.5, np.float32)
    tags += np.linspace(0, 0.4, 17, dtype=np.float32)[:, None, None, None]
    for joint in range(17):
        bump(heatmaps, joint, 3 * joint + 6, 60 - 3 * joint)
    (person,) = group(heatmaps, tags, ORDER).joints
    assert (person[:, 2] > 0.85).all()
    np.testing.assert_allclose(person[:, 0], 3 * np.arange(17) + 6.5, atol=0.25)


def test_a_joint_whose_tag_is_too_far_away_starts_a_person_of_its_own() -> None:
    heatmaps, tags = np.zeros((17, 32, 32), np.float32), np.zeros((17, 32, 32, 1), np.float32)
    bump(heatmaps, 0, 8, 8)
    bump(heatmaps, 1, 20, 20)
    for tag, count in ((0.9, 1), (1.1, 2)):
        tags[1] = tag
        assert len(group(heatmaps, tags, ORDER, WITHOUT_REFINE)) == count
        assert len(group(heatmaps, tags, ORDER, GroupingConfig(refine=False, tag_threshold=1.2))) == 1


def test_positions_move_a_quarter_pixel_towards_the_higher_neighbour() -> None:
    heatmaps, tags = np.zeros((17, 32, 32), np.float32), np.zeros((17, 32, 32, 1), np.float32)
    heatmaps[0, 10, 12] = 0.9
    heatmaps[0, 10, 13], heatmaps[0, 10, 11] = 0.5, 0.4  # higher on the right
    heatmaps[0, 11, 12], heatmaps[0, 9, 12] = 0.4, 0.5  # and above
    (person,) = group(heatmaps, tags, ORDER, WITHOUT_REFINE).joints
    assert person[0].tolist() == pytest.approx([12.75, 10.25, 0.9])
    assert (person[1:] == 0).all()


def test_tags_that_are_no_numbers_are_a_sentence() -> None:
    heatmaps = np.zeros((2, 32, 32), np.float32)
    heatmaps[:, 10, 10] = 0.9
    with pytest.raises(ValueError, match=r"no numbers: its weights are damaged"):
        group(heatmaps, np.full((2, 32, 32, 1), np.nan, np.float32), (0, 1))


def test_no_more_people_than_allowed() -> None:
    heatmaps, tags = np.zeros((17, 64, 64), np.float32), np.zeros((17, 64, 64, 1), np.float32)
    for index in range(49):
        x, y = 4 + 9 * (index % 7), 4 + 9 * (index // 7)
        heatmaps[0, y, x] = 0.3 + 0.01 * index
        tags[0, y - 3 : y + 4, x - 3 : x + 4] = 5 * index
    people = group(heatmaps, tags, ORDER, WITHOUT_REFINE)
    assert len(people) == 30
    assert people.joints[:, 0, 2].min() == pytest.approx(0.3 + 0.01 * 19)  # the lowest 19 of 49 are left out
    assert len(group(heatmaps, tags, ORDER, GroupingConfig(refine=False, max_people=4))) == 4


def test_peaks_are_the_maximum_of_their_surroundings() -> None:
    heatmaps, tags = np.zeros((17, 32, 32), np.float32), np.zeros((17, 32, 32, 1), np.float32)
    heatmaps[0, 10, 10], heatmaps[0, 10, 12], heatmaps[0, 10, 16] = 0.9, 0.8, 0.7
    tags[0, :, 12], tags[0, :, 16] = 10, 20
    found = group(heatmaps, tags, ORDER, WITHOUT_REFINE).joints[:, 0, 2]
    assert sorted(found.tolist()) == pytest.approx([0.7, 0.9])  # 0.8 lies within two pixels of 0.9
    found = group(heatmaps, tags, ORDER, GroupingConfig(refine=False, window=3)).joints[:, 0, 2]
    assert sorted(found.tolist()) == pytest.approx([0.7, 0.8, 0.9])


def test_groups_of_stray_peaks_are_left_out_by_their_mean() -> None:
    heatmaps, tags = np.zeros((17, 64, 64), np.float32), np.zeros((17, 64, 64, 1), np.float32)
    for joint in range(17):
        bump(heatmaps, joint, 10, 3 * joint + 5)
    bump(heatmaps, 9, 50, 50, 0.5)
    tags[:, :, 40:] = 8
    assert group(heatmaps, tags, ORDER).scores.tolist() == pytest.approx([0.9, 0.5 / 17], abs=1e-5)
    for config in (GroupingConfig(min_mean=0.2), GroupingConfig(min_score=0.2)):
        (score,) = group(heatmaps, tags, ORDER, config).scores
        assert score == pytest.approx(0.9)


def test_people_are_found_in_the_networks_own_values_and_have_those_of_the_maps() -> None:
    own, tags = random_maps(3, 40, 48, 17, 1)
    factors = np.linspace(0.02, 1, 48, dtype=np.float32)
    found = group(own, tags, ORDER, GroupingConfig(), (80, 96))
    seen = group(own * factors, tags, ORDER, GroupingConfig(), (80, 96), own)
    np.testing.assert_array_equal(seen.joints[:, :, :2], found.joints[:, :, :2])
    there = found.joints[:, :, 2] > 0
    ratios = seen.joints[:, :, 2][there] / found.joints[:, :, 2][there]
    np.testing.assert_allclose(ratios, np.interp(found.joints[:, :, 0][there] / 2, range(48), factors), atol=0.03)
    assert (seen.scores < found.scores).all()
    alone = group(own, tags, ORDER, WITHOUT_REFINE, (80, 96), own)
    assert alone.scores == pytest.approx(alone.joints[:, :, 2].mean(axis=1), abs=1e-6)

    best = float(seen.scores.max())
    few = group(own * factors, tags, ORDER, GroupingConfig(min_mean=best - 1e-6), (80, 96), own)
    assert few.scores.tolist() == pytest.approx([best])
    assert len(group(own * 0.01, tags, ORDER, GroupingConfig(min_mean=best), (80, 96), own)) == 0
