"""From image to network input and back."""

from __future__ import annotations

import numpy as np
import pytest

from inference.geometry import resized_wh, warp_for

EXTREME = [(1, 1), (1, 5000), (5000, 1), (12000, 9000), (3, 7), (63, 65)]
ORDINARY = [(640, 480), (480, 640), (333, 500), (501, 333), (256, 256), (1921, 1079)]


@pytest.mark.parametrize("input_size", [64, 100, 256, 512])
@pytest.mark.parametrize("image_wh", EXTREME + ORDINARY)
def test_no_image_needs_an_input_larger_than_four_squares(image_wh: tuple[int, int], input_size: int) -> None:
    warp = warp_for(image_wh, input_size)
    width, height = warp.input_wh
    assert width * height <= 4 * input_size**2
    assert width % 64 == height % 64 == 0
    assert min(warp.input_wh) >= 64


@pytest.mark.parametrize("image_wh", [(1, 5000), (5000, 1), (100, 3000)])
def test_a_very_long_image_is_scaled_down_as_a_whole_and_says_so(image_wh: tuple[int, int]) -> None:
    warp = warp_for(image_wh, 256)
    assert warp.reduced
    content = np.array(image_wh) * warp.ratio
    assert (content <= warp.input_wh).all()
    # Nothing is cut off, up to half an image pixel of an odd side: the published centre is a whole pixel.
    first, last = np.array(warp.offset), np.array(warp.offset) + content
    slack = warp.ratio / 2 + 1e-6
    assert (first >= -slack).all()
    assert (last <= np.array(warp.input_wh) + slack).all()
    assert min(warp.half_wh) >= 1


@pytest.mark.parametrize("image_wh", ORDINARY)
def test_an_ordinary_image_is_not_scaled_down(image_wh: tuple[int, int]) -> None:
    warp = warp_for(image_wh, 512)
    assert not warp.reduced
    assert warp.input_wh == resized_wh(image_wh, 512)
    assert min(image_wh) * warp.ratio == pytest.approx(512)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("image_wh", EXTREME + ORDINARY)
def test_to_image_undoes_the_warp(image_wh: tuple[int, int], scale: float) -> None:
    warp = warp_for(image_wh, 256, scale, (0.5, 1.0, 2.0))
    points = np.random.default_rng(0).uniform(0, image_wh, (50, 2))
    in_input = points * warp.ratio + np.array(warp.offset)
    np.testing.assert_allclose(warp.to_image(in_input), points, atol=1e-6)


@pytest.mark.parametrize("image_wh", EXTREME + ORDINARY)
def test_the_content_lies_in_the_middle_of_the_input(image_wh: tuple[int, int]) -> None:
    warp = warp_for(image_wh, 256)
    middle = np.array(image_wh) / 2 * warp.ratio + np.array(warp.offset)
    assert np.abs(middle - np.array(warp.input_wh) / 2).max() <= warp.ratio / 2 + 1e-9
    if not (image_wh[0] % 2 or image_wh[1] % 2):
        np.testing.assert_allclose(middle, np.array(warp.input_wh) / 2)


@pytest.mark.parametrize("image_wh", [(640, 480), (333, 500), (1000, 128)])
def test_pixels_come_to_lie_where_the_warp_says(image_wh: tuple[int, int]) -> None:
    """A bright block in the image is found again in the input, and what is not image is black."""
    width, height = image_wh
    image = np.full((height, width, 3), 50, np.uint8)
    x, y = width // 4, height // 3
    image[y - 6 : y + 6, x - 6 : x + 6] = 250
    warp = warp_for(image_wh, 128)
    warped = warp.apply(image)
    assert warped.shape == (*warp.input_wh[::-1], 3)
    assert warped.dtype == np.uint8

    weight = np.clip(warped[:, :, 0].astype(float) - 50, 0, None)
    rows, columns = np.mgrid[: warped.shape[0], : warped.shape[1]]
    found = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    # OpenCV's coordinates name pixel centres: the block's pixels x - 6 to x + 5 have their middle at x - 0.5.
    expected = (np.array([x, y]) - 0.5) * warp.ratio + np.array(warp.offset)
    assert np.abs(found - expected).max() <= 0.5

    left, top = (round(side) for side in warp.offset)
    if left > 2:
        assert warped[:, : left - 1].max() == 0
        assert warped[:, warp.input_wh[0] - left + 1 :].max() == 0
    if top > 2:
        assert warped[: top - 1].max() == 0
        assert warped[warp.input_wh[1] - top + 1 :].max() == 0


@pytest.mark.parametrize("scales", [(0.5, 1.0, 2.0), (1.0, 2.0), (0.5, 1.0, 1.5), (1.0, 1.5)])
@pytest.mark.parametrize("image_wh", EXTREME + ORDINARY)
def test_inputs_of_several_scales_are_exact_multiples(image_wh: tuple[int, int], scales: tuple[float, ...]) -> None:
    """The same content in all of them, at sizes that the network can halve five times."""
    smallest = warp_for(image_wh, 256, scales[0], scales)
    for scale in scales:
        warp = warp_for(image_wh, 256, scale, scales)
        factor = scale / scales[0]
        assert warp.input_wh == tuple(side * factor for side in smallest.input_wh)
        assert warp.ratio == pytest.approx(smallest.ratio * factor)
        assert warp.offset == pytest.approx(np.array(smallest.offset) * factor)
        assert warp.reduced == smallest.reduced
        assert not any(side % 32 for side in warp.input_wh)


def test_an_image_that_cannot_be_warped_says_so() -> None:
    image = np.zeros((2, 33_000, 3), np.uint8)
    with pytest.raises(ValueError, match=r"33000 x 2 pixels; sides of at most 32,766"):
        warp_for((33_000, 2), 64).apply(image)
    longest = image[:, :32_766]
    assert warp_for((32_766, 2), 64).apply(longest).shape[2] == 3


def test_portrait_and_landscape_are_treated_alike() -> None:
    for width, height in EXTREME + ORDINARY:
        assert warp_for((width, height), 256).input_wh == warp_for((height, width), 256).input_wh[::-1]
        assert warp_for((width, height), 256).half_wh == warp_for((height, width), 256).half_wh[::-1]
