"""Heatmaps of the network to the maps that people see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import inference.maps
from inference.geometry import Warp, warp_for
from inference.maps import make_maps, map_wh
from inference.predictor import Prediction

SHAPES = {"landscape": (400, 300), "portrait": (300, 500), "odd": (333, 251), "larger than the input": (1600, 1000)}


def predicted(heatmaps: torch.Tensor, enlarged: torch.Tensor | None = None) -> Prediction:
    """A prediction with these heatmaps (B, K, H/2, W/2)."""
    return Prediction(heatmaps.float(), enlarged, torch.zeros(*heatmaps.shape, 1))


def half_of_input(warp: Warp, joints: int = 1, value: float = 0) -> torch.Tensor:
    width, height = warp.input_wh
    return torch.full((1, joints, height // 2, width // 2), value)


def gaussian(warp: Warp, point: tuple[float, float], sigma: float = 3) -> torch.Tensor:
    """(h, w) heatmap of a joint at a point of the image."""
    width, height = warp.input_wh
    x, y = (np.array(point) * warp.ratio + np.array(warp.offset)) / 2
    rows, columns = np.mgrid[: height // 2, : width // 2] + 0.5
    return torch.from_numpy(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)))


def place(values: NDArray) -> NDArray:
    """The centre of gravity of a map as (x, y), in map pixels; pixel i covers [i, i + 1)."""
    rows, columns = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    return np.array([(columns * values).sum(), (rows * values).sum()]) / values.sum()


@pytest.mark.parametrize("resolution", ["network", "image"])
@pytest.mark.parametrize("image_wh", SHAPES.values(), ids=SHAPES)
def test_a_joint_shows_at_its_place_in_the_image(image_wh: tuple[int, int], resolution: str) -> None:
    warp = warp_for(image_wh, 256)
    for share in ((0.5, 0.5), (0.2, 0.7), (0.81, 0.23)):
        point = (share[0] * image_wh[0], share[1] * image_wh[1])
        (maps,) = make_maps(predicted(gaussian(warp, point)[None, None]), [warp], resolution, "float32")
        size = map_wh(warp, resolution)
        assert maps.maximum.shape == size[::-1]
        expected = np.array(share) * size
        pixel = max(1, size[0] / warp.half_wh[0])  # of the network's heatmap, in map pixels
        assert np.abs(place(maps.maximum) - expected).max() < 0.1 * pixel
        row, column = np.unravel_index(maps.maximum.argmax(), maps.maximum.shape)
        assert np.abs(np.array([column, row]) + 0.5 - expected).max() <= pixel


@pytest.mark.parametrize("image_wh", SHAPES.values(), ids=SHAPES)
def test_maps_have_the_size_of_the_image_or_half_of_the_content(image_wh: tuple[int, int]) -> None:
    warp = warp_for(image_wh, 256)
    assert map_wh(warp, "image") == image_wh
    short = min(image_wh)
    assert map_wh(warp, "network") == tuple(round(side / short * 128) for side in image_wh)


def test_an_image_that_fills_its_input_has_the_heatmaps_themselves_whatever_is_in_its_batch() -> None:
    warps = [warp_for((256, 128), 128), warp_for((252, 128), 128)]
    assert warps[0].input_wh == warps[1].input_wh
    heatmaps = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    (alone,) = make_maps(predicted(heatmaps[:1]), warps[:1], dtype="float32", floor=0)
    beside, other = make_maps(predicted(heatmaps), warps, dtype="float32", floor=0)
    for maps in (alone, beside):
        np.testing.assert_array_equal(maps.joints, heatmaps[0])
        np.testing.assert_array_equal(maps.maximum, heatmaps[0].amax(0))
    assert other.maximum.shape == (64, 126)


def test_images_of_several_sizes_share_a_batch() -> None:
    warps = [warp_for(wh, 128) for wh in ((128, 128), (64, 64), (300, 300))]
    assert len({warp.input_wh for warp in warps}) == 1
    heatmaps = torch.rand(3, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    for resolution in ("network", "image"):
        made = make_maps(predicted(heatmaps), warps, resolution)
        for index, warp in enumerate(warps):
            assert made[index].maximum.shape == map_wh(warp, resolution)[::-1]
            (alone,) = make_maps(predicted(heatmaps[index : index + 1]), [warp], resolution)
            np.testing.assert_array_equal(made[index].joints, alone.joints)


@pytest.mark.parametrize("resolution", ["network", "image"])
def test_padding_is_not_part_of_a_map(resolution: str) -> None:
    """Heat in the black bars beside the image is neither on the map nor in the confidence."""
    warp = warp_for((160, 128), 128)  # ratio 1: 192 x 128 with 16 black pixels on the left and the right
    heatmaps = half_of_input(warp, value=0.9)
    heatmaps[:, :, :, 8:-8] = 0
    (maps,) = make_maps(predicted(heatmaps), [warp], resolution, "float32")
    assert maps.maximum.shape == map_wh(warp, resolution)[::-1]
    edge = 0 if resolution == "network" else 1  # an enlarged heatmap runs into its neighbour by a quarter pixel
    assert maps.maximum[:, edge : maps.maximum.shape[1] - edge].max() == 0
    assert maps.maximum.max() < 0.3

    (maps,) = make_maps(predicted(0.9 - heatmaps), [warp], resolution, "float32")
    assert maps.maximum.min() > 0.6
    assert maps.maximum[:, edge : maps.maximum.shape[1] - edge].min() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-0.5, 0), (0.0, 0), (0.019, 0), (0.021, 5), (0.25, 64), (0.249, 63), (0.998, 254), (1.0, 255), (1.7, 255)],
)
def test_values_are_rounded_clipped_and_cut_at_the_floor(value: float, expected: int) -> None:
    warp = warp_for((128, 128), 128)
    (maps,) = make_maps(predicted(half_of_input(warp, joints=2, value=value)), [warp])
    assert maps.joints is not None
    assert maps.joints.dtype == maps.maximum.dtype == np.uint8
    assert np.unique(maps.joints).tolist() == [expected]
    assert np.unique(maps.maximum).tolist() == [expected]
    assert maps.confidence == pytest.approx(max(value, 0), abs=1e-6)  # neither clipped at 1 nor cut at the floor


def test_the_floor_is_what_was_asked_for() -> None:
    warp = warp_for((128, 128), 128)
    prediction = predicted(half_of_input(warp, value=0.1))
    assert make_maps(prediction, [warp], floor=0.11)[0].maximum.max() == 0
    assert make_maps(prediction, [warp], floor=0.09)[0].maximum.min() == 26
    assert make_maps(predicted(half_of_input(warp, value=0.001)), [warp], dtype="float32", floor=0)[
        0
    ].maximum.min() == pytest.approx(0.001)


def test_float32_keeps_the_values_between_0_and_1() -> None:
    warp = warp_for((300, 200), 128)
    torch.manual_seed(0)
    heatmaps = torch.randn(1, 3, *half_of_input(warp).shape[2:])
    (exact,) = make_maps(predicted(heatmaps), [warp], dtype="float32")
    (rounded,) = make_maps(predicted(heatmaps), [warp])
    assert exact.joints is not None
    assert rounded.joints is not None
    assert exact.joints.dtype == exact.maximum.dtype == np.float32
    assert exact.joints.min() == 0
    assert exact.joints.max() == 1
    assert len(np.unique(exact.joints)) > 256
    assert np.abs(exact.joints - rounded.joints / 255).max() <= 0.5 / 255 + 1e-6
    assert not ((exact.joints > 0) & (exact.joints < 0.02)).any()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("resolution", ["network", "image"])
def test_the_maximum_map_is_the_maximum_of_the_joint_maps(resolution: str, dtype: str) -> None:
    """Of the resampled maps: a maximum taken before would be larger between two joints' peaks."""
    warp = warp_for((333, 251), 128)
    torch.manual_seed(0)
    heatmaps = torch.rand(1, 5, *half_of_input(warp).shape[2:])
    (maps,) = make_maps(predicted(heatmaps), [warp], resolution, dtype)
    assert maps.joints is not None
    np.testing.assert_array_equal(maps.maximum, maps.joints.max(axis=0))
    (before,) = make_maps(predicted(heatmaps.amax(dim=1, keepdim=True)), [warp], resolution, dtype)
    assert before.maximum.astype(float).mean() > maps.maximum.astype(float).mean() * 1.01

    (alone,) = make_maps(predicted(heatmaps), [warp], resolution, dtype, joints=False)
    assert alone.joints is None
    np.testing.assert_array_equal(alone.maximum, maps.maximum)


def test_confidence_is_that_of_the_maximum_before_rounding() -> None:
    warp = warp_for((400, 300), 256)
    torch.manual_seed(0)
    heatmaps = torch.rand(1, 4, *half_of_input(warp).shape[2:])
    (exact,) = make_maps(predicted(heatmaps), [warp], dtype="float32")
    (rounded,) = make_maps(predicted(heatmaps), [warp])
    assert exact.confidence == rounded.confidence == pytest.approx(float(exact.maximum.max()), abs=1e-7)
    assert rounded.confidence != float(rounded.maximum.max()) / 255


@pytest.mark.parametrize("resolution", ["network", "image"])
def test_images_of_mixed_sizes_in_one_batch_get_the_maps_they_get_alone(resolution: str) -> None:
    sizes = [(160, 128), (170, 128), (1900, 1300), (129, 128)]
    warps = [warp_for(size, 128) for size in sizes]
    assert len({warp.input_wh for warp in warps}) == 1
    torch.manual_seed(0)
    heatmaps = torch.rand(len(sizes), 3, *half_of_input(warps[0]).shape[2:])
    heatmaps[0, :, :, :6] = 5  # in the first one's padding, but in the others' content
    together = make_maps(predicted(heatmaps), warps, resolution)
    for index, (maps, warp, size) in enumerate(zip(together, warps, sizes, strict=True)):
        (alone,) = make_maps(predicted(heatmaps[index : index + 1]), [warp], resolution)
        assert maps.joints is not None
        assert alone.joints is not None
        assert maps.maximum.shape == (size[::-1] if resolution == "image" else warp.half_wh[::-1])
        # The grid of a batch is computed in float32: one step of rounding is allowed.
        assert np.abs(maps.joints.astype(int) - alone.joints).max() <= 1
        assert np.abs(maps.maximum.astype(int) - alone.maximum).max() <= 1
        assert maps.confidence == pytest.approx(alone.confidence, abs=1e-5)
    assert together[0].confidence <= 1


def test_image_maps_of_several_scales_come_from_their_own_aggregate() -> None:
    warp = warp_for((128, 128), 128)
    enlarged = torch.full((1, 2, 128, 128), 0.75)
    prediction = predicted(half_of_input(warp, joints=2, value=0.25), enlarged)
    assert np.unique(make_maps(prediction, [warp], "image")[0].maximum).tolist() == [191]
    assert np.unique(make_maps(prediction, [warp], "network")[0].maximum).tolist() == [64]


def test_maps_at_the_size_of_the_image_do_not_depend_on_how_many_are_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warps = [warp_for(size, 128) for size in ((200, 150), (200, 149))]
    prediction = predicted(torch.rand(2, 5, warps[0].input_wh[1] // 2, warps[0].input_wh[0] // 2) * 1.2 - 0.1)
    whole = make_maps(prediction, warps, "image")
    monkeypatch.setattr(inference.maps, "VALUES_AT_ONCE", 2 * 200 * 150)
    parts = make_maps(prediction, warps, "image")
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one.joints, other.joints)
        assert np.array_equal(one.maximum, other.maximum)
        assert one.confidence == other.confidence
    assert make_maps(prediction, warps, "image", joints=False)[0].joints is None
