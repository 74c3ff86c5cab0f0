"""How far two sets of maps disagree."""

import numpy as np
import pytest

from evaluation.disagreement import disagreement, jensen_shannon, peaks

PERSON = np.array([[[0.3, 0.2], [0.7, 0.2], [0.3, 0.8], [0.7, 0.8]]])


def blob(x: float, y: float, value: float = 0.8, shape: tuple[int, int] = (96, 128), sigma: float = 0.02) -> np.ndarray:
    """A Gaussian at a place relative to the image; sigma relative to its height."""
    rows, columns = ((np.arange(count) + 0.5) / count for count in shape)
    across, down = (columns - x) * shape[1], (rows - y) * shape[0]
    return (value * np.exp(-(across[None] ** 2 + down[:, None] ** 2) / (2 * (sigma * shape[0]) ** 2))).astype(
        np.float32
    )


def dark(shape: tuple[int, int] = (96, 128)) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_the_same_maps_do_not_disagree():
    maps = np.stack([blob(0.3, 0.4), dark()])
    found = disagreement(maps, maps, PERSON)
    assert found.distance[0] == 0
    assert found.divergence[0] == pytest.approx(0, abs=1e-6)
    assert found.overall() == pytest.approx((0, 0), abs=1e-6)
    assert found.worst() is None or found.divergence[found.worst()] < 1e-6


def test_distance_is_in_sizes_of_the_person():
    # The person's joints span 51.2 x 57.6 map pixels: the side of a square with that diagonal is 54.5.
    found = disagreement(blob(0.3, 0.4)[None], blob(0.4, 0.4)[None], PERSON)
    assert found.distance[0] == pytest.approx(12.8 / 54.5, abs=0.02)
    smaller = disagreement(blob(0.3, 0.4)[None], blob(0.4, 0.4)[None], 0.3 + 0.4 * (PERSON - 0.3))
    assert smaller.distance[0] == pytest.approx(12.8 / 21.8, abs=0.02)


def test_peaks_are_compared_with_the_nearest_not_the_highest():
    """Two people, of whom each run finds another one a little clearer."""
    first = blob(0.2, 0.4, 0.8) + blob(0.8, 0.4, 0.7)
    second = blob(0.2, 0.4, 0.7) + blob(0.8, 0.4, 0.8)
    assert disagreement(first[None], second[None]).distance[0] == 0


def test_a_person_that_only_one_run_sees_counts_by_its_value():
    alone, both = blob(0.2, 0.4, 0.8), blob(0.2, 0.4, 0.8) + blob(0.8, 0.4, 0.4)
    assert disagreement(alone[None], both[None], PERSON).distance[0] == pytest.approx(0.4 / 2.0, abs=0.01)


def test_neither_sees_it_is_no_disagreement_and_one_alone_is_the_largest():
    found = disagreement(np.stack([dark(), blob(0.3, 0.4)]), np.stack([dark(), dark()]), PERSON)
    assert np.isnan(found.distance[0])
    assert np.isnan(found.divergence[0])
    assert found.weight[0] == 0
    assert (found.distance[1], found.divergence[1]) == (1, 1)
    assert found.overall() == (1, 1)
    assert found.worst() == 1
    nobody = disagreement(dark()[None], dark()[None])
    assert nobody.overall() == (0, 0)
    assert nobody.worst() is None


def test_a_peak_at_the_threshold_is_not_lost_by_a_little():
    found = disagreement(blob(0.3, 0.4, 0.11)[None], blob(0.3, 0.4, 0.09)[None])
    assert found.distance[0] == 0
    assert found.divergence[0] < 0.05


def test_divergence_grows_with_the_shift_up_to_one_bit():
    values = [jensen_shannon(blob(0.3, 0.4), blob(0.3 + shift, 0.4)) for shift in (0, 0.01, 0.03, 0.5)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1, abs=1e-3)
    p, q = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])
    assert jensen_shannon(p, q) == pytest.approx(0.3112781, abs=1e-6)  # by hand: 0.8112781 - 0.5 bits


def test_maps_of_other_sizes_are_resampled():
    found = disagreement(blob(0.3, 0.4)[None], blob(0.3, 0.4, shape=(193, 255))[None], PERSON)
    assert found.distance[0] < 0.02
    assert found.divergence[0] < 0.02
    assert disagreement(blob(0.3, 0.4)[None], blob(0.6, 0.4, shape=(48, 64))[None], PERSON).divergence[0] > 0.9


def test_a_peak_that_averages_below_the_floor_still_counts():
    narrow, wide = dark((192, 256)), blob(0.3, 0.4, shape=(48, 64))
    narrow[150, 200] = 0.2
    found = disagreement(narrow[None], wide[None])
    assert found.divergence[0] == pytest.approx(1, abs=0.01)
    assert found.overall()[1] == pytest.approx(1, abs=0.01)


def test_the_image_as_a_whole_is_weighed_by_the_peaks():
    first = np.stack([blob(0.3, 0.4, 0.9), blob(0.5, 0.5, 0.12)])
    second = np.stack([blob(0.3, 0.4, 0.9), dark()])
    assert disagreement(first, second).overall()[0] == pytest.approx(0.12 / 1.02, abs=0.01)


def test_peaks_are_local_maxima_and_a_plateau_is_one():
    values = np.minimum(blob(0.3, 0.4, 1.6) + blob(0.8, 0.6, 0.5), 1.0)
    found = peaks(values, 0.1)
    assert len(found) == 2
    assert found[found[:, 2].argsort()[::-1]] == pytest.approx(np.array([[0.3, 0.4, 1.0], [0.8, 0.6, 0.5]]), abs=0.01)
    assert len(peaks(dark(), 0.1)) == 0


@pytest.mark.parametrize("sigma", [25, 100])
def test_a_wide_peak_of_8_bits_is_one(sigma: int):
    rows, columns = np.arange(750)[:, None] - 375, np.arange(1000) - 500
    eight = np.round(255 * np.exp(-(rows**2 + columns**2) / (2 * sigma**2))).astype(np.uint8)
    assert len(peaks(eight.astype(np.float32) / 255, 0.05)) == 1


def test_distances_in_squashed_maps_are_those_of_the_image():
    """An image of 2:1, whose maps are square: a step across is twice as far as one down."""
    first, across, down = (blob(*place, shape=(100, 100))[None] for place in ((0.4, 0.4), (0.45, 0.4), (0.4, 0.5)))
    steps = [disagreement(first, second, image_wh=(400, 200)).distance[0] for second in (across, down)]
    assert steps == pytest.approx([20 / (0.25 * 80000**0.5)] * 2, rel=0.05)
    squares = [disagreement(first, second).distance[0] for second in (across, down)]
    assert squares[1] == pytest.approx(2 * squares[0], rel=0.05)
