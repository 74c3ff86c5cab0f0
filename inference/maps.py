"""Heatmaps of the network to the maps that people see: resampled to the image and quantised.

A map has no padding: pixel (i, j) of a w x h map covers the image's x in [i, i + 1) * W / w, y in [j, j + 1) * H / h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .geometry import Warp
from .predictor import Prediction

RESOLUTIONS = ("network", "image")
DTYPES = ("uint8", "float32")
VALUES_AT_ONCE = 32_000_000  # of maps at the size of the image


@dataclass(frozen=True)
class ImageMaps:
    """The maps of one image.

    Attributes:
        joints: (K, h, w), uint8 0 to 255 or float32 0 to 1; None where they were not asked for
        maximum: (h, w), the same for the maximum over the joints
        confidence: the largest heatmap value of all joints, not quantised, not clipped
    """

    joints: NDArray | None
    maximum: NDArray
    confidence: float


def map_wh(warp: Warp, resolution: str) -> tuple[int, int]:
    """Width and height of the maps of an image: its own, or half of its size in the network input."""
    return warp.image_wh if resolution == "image" else warp.half_wh


@torch.inference_mode()
def make_maps(
    prediction: Prediction,
    warps: Sequence[Warp],
    resolution: str = "network",
    dtype: str = "uint8",
    floor: float = 0.02,
    joints: bool = True,
) -> list[ImageMaps]:
    """Turn the heatmaps of a batch into maps, on the device where they are.

    Args:
        prediction: of B images
        warps: B warps, the ones that made the base inputs
        resolution: ``"network"`` = half of the content's size in the input; ``"image"`` = the image's size
        dtype: ``"uint8"`` = round(255 * clip(v, 0, 1)); ``"float32"`` = clip(v, 0, 1)
        floor: values below it become 0
        joints: False leaves out the maps of single joints
    """
    sizes = [map_wh(warp, resolution) for warp in warps]
    source = prediction.heatmaps
    if resolution == "image":  # the published aggregate: at the size of the input
        height, width = (2 * side for side in source.shape[2:])
        source = (
            prediction.enlarged
            if prediction.enlarged is not None
            else F.interpolate(source, size=(height, width), mode="bilinear", align_corners=False)
        )
        each = zip(source.split(1), warps, sizes, strict=True)
        return [_in_parts(one, warp, size, dtype, floor, joints) for one, warp, size in each]
    values, inside = _resample(source, warps, sizes)
    maximum = (values.amax(dim=1) * inside).clamp_(min=0)  # B, h, w
    confidence = maximum.flatten(1).amax(dim=1).tolist()
    maxima = _quantise(maximum, dtype, floor).cpu().numpy()
    per_joint = _quantise(values, dtype, floor).cpu().numpy() if joints else None
    return [
        ImageMaps(
            joints=None if per_joint is None else per_joint[index, :, :height, :width],
            maximum=maxima[index, :height, :width],
            confidence=confidence[index],
        )
        for index, (width, height) in enumerate(sizes)
    ]


def _in_parts(heatmaps: Tensor, warp: Warp, size: tuple[int, int], dtype: str, floor: float, joints: bool) -> ImageMaps:
    """The maps of one image, a few channels at a time: all those of a photo of 12 megapixels are 800 MB as floats."""
    count = max(1, VALUES_AT_ONCE // (size[0] * size[1]))
    highest, parts = None, []
    for channels in heatmaps.split(count, dim=1):
        values, _ = _resample(channels, [warp], [size])
        of_these = values[0].amax(dim=0)
        highest = of_these if highest is None else torch.maximum(highest, of_these)
        if joints:
            parts.append(_quantise(values[0], dtype, floor).cpu().numpy())
    assert highest is not None
    maximum = highest.clamp_(min=0)
    confidence = float(maximum.amax())
    return ImageMaps(
        joints=np.concatenate(parts) if joints else None,
        maximum=_quantise(maximum, dtype, floor).cpu().numpy(),
        confidence=confidence,
    )


def _resample(heatmaps: Tensor, warps: Sequence[Warp], sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Sample the heatmaps where the map pixels' centres come to lie in the input.

    Returns:
        (B, K, h, w) with the largest size of the batch, and (B, h, w) 1 where the pixel belongs to the image's map
    """
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    device = heatmaps.device
    whole = [_is_whole_input(warp, size, heatmaps) for warp, size in zip(warps, sizes, strict=True)]
    if all(whole):
        return heatmaps.contiguous(), torch.ones((len(sizes), 1, 1), device=device)

    def places(axis: int, count: int) -> tuple[Tensor, Tensor]:
        """Per image, where ``count`` map pixels lie in the input (-1 = its first edge, 1 = its last): (B, count)."""
        own = torch.tensor([size[axis] for size in sizes], device=device)[:, None]
        step = torch.tensor([warp.image_wh[axis] * warp.ratio for warp in warps], device=device)[:, None] / own
        start = torch.tensor([warp.offset[axis] for warp in warps], device=device)[:, None]
        whole = torch.tensor([warp.input_wh[axis] for warp in warps], device=device)[:, None]
        index = torch.arange(count, device=device)
        return ((index + 0.5) * step + start) * 2 / whole - 1, (index < own).float()

    (x, in_x), (y, in_y) = places(0, width), places(1, height)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1).float()  # B, h, w, 2
    values = F.grid_sample(heatmaps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if any(whole):  # an image's maps do not depend on what else is in its batch, not even by rounding
        values[whole, :, : heatmaps.shape[2], : heatmaps.shape[3]] = heatmaps[whole]
    return values, in_y[:, :, None] * in_x[:, None, :]


def _is_whole_input(warp: Warp, size: tuple[int, int], heatmaps: Tensor) -> bool:
    """Whether each pixel of a map is a pixel of the heatmaps: an image of 640 x 480, say, that fills its input."""
    content = (warp.image_wh[0] * warp.ratio, warp.image_wh[1] * warp.ratio)
    return content == warp.input_wh and warp.offset == (0, 0) and size == (heatmaps.shape[3], heatmaps.shape[2])


def _quantise(values: Tensor, dtype: str, floor: float) -> Tensor:
    # Values below the floor become 0; one pass over the maps less than comparing and choosing.
    values = F.threshold(values, float(np.nextafter(np.float32(floor), np.float32(-1))), 0.0).clamp_(max=1)
    return values if dtype == "float32" else values.mul_(255).round_().to(torch.uint8)
