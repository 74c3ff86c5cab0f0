"""From image to network input and back.

The published code warps an image so that its short side becomes the input size and its long side keeps the proportion,
rounded up to a multiple of 64; the content is centred and the rest is black. Coordinates are continuous: the heatmap
pixel v at 1/2 of the input covers the input's [2v, 2v + 2), since training puts a joint at u into pixel floor(u / 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 32_766  # pixels, of what OpenCV warps
STRIDE = 64  # input sides are multiples of this at the smallest scale


@dataclass(frozen=True)
class Warp:
    """A uniform scaling that puts an image into the middle of a network input.

    Attributes:
        image_wh: image width and height, pixels
        input_wh: width and height of the network input, pixels
        ratio: input pixels per image pixel
        center: the image point, pixels, that comes to lie in the middle of the input
        reduced: True where the whole image was made smaller than asked for, to keep the input's area in bounds
    """

    image_wh: tuple[int, int]
    input_wh: tuple[int, int]
    ratio: float
    center: tuple[int, int]
    reduced: bool = False

    @property
    def offset(self) -> tuple[float, float]:
        """Where the image's (0, 0) lies in the input, pixels."""
        return (
            self.input_wh[0] / 2 - self.center[0] * self.ratio,
            self.input_wh[1] / 2 - self.center[1] * self.ratio,
        )

    @property
    def half_wh(self) -> tuple[int, int]:
        """Width and height, pixels, of the image's content at half the input: the size of a ``network`` map."""
        return (
            max(1, round(self.image_wh[0] * self.ratio / 2)),
            max(1, round(self.image_wh[1] * self.ratio / 2)),
        )

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Image (H, W, 3) -> network input (h, w, 3), uint8, bilinear, black around the content.

        Raises:
            ValueError: if a side of the image is longer than OpenCV can warp
        """
        if max(image.shape[:2]) > MAX_SIDE:
            raise ValueError(
                f"The image has {image.shape[1]} x {image.shape[0]} pixels; sides of at most {MAX_SIDE:,} can be "
                "handled. Use a smaller copy, or cut it up."
            )
        matrix = np.array([[self.ratio, 0, self.offset[0]], [0, self.ratio, self.offset[1]]])
        return cv2.warpAffine(image, matrix, self.input_wh)  # type: ignore[return-value]

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points (..., 2) in the input, pixels -> points in the image, pixels."""
        return (points - np.array(self.offset)) / self.ratio


def resized_wh(
    image_wh: tuple[int, int], input_size: int, scale: float = 1.0, scales: tuple[float, ...] = (1.0,)
) -> tuple[int, int]:
    """Width and height of the network input for an image at ``scale`` when ``scales`` are used, as published."""
    width, height = image_wh
    smallest = min(scales)
    short = int((smallest * input_size + STRIDE - 1) // STRIDE * STRIDE)
    long = int((short / min(width, height) * max(width, height) + STRIDE - 1) // STRIDE * STRIDE)
    short, long = int(short * scale / smallest), int(long * scale / smallest)
    return (short, long) if width < height else (long, short)


def warp_for(
    image_wh: tuple[int, int], input_size: int, scale: float = 1.0, scales: tuple[float, ...] = (1.0,)
) -> Warp:
    """The published warp, with the input's area at scale 1 kept below 4 * input_size**2.

    An image that is much longer than wide would need a huge input; beyond that area the whole image is scaled down.
    """
    smallest = min(scales)
    limit = 4 * (smallest * input_size) ** 2
    width, height = base_wh = resized_wh(image_wh, input_size, smallest, scales)
    reduced = width * height > limit
    if reduced:
        shrink = math.sqrt(limit / (width * height))
        short = max(STRIDE, int(min(base_wh) * shrink) // STRIDE * STRIDE)
        long = max(STRIDE, int(min(max(base_wh) * shrink, limit / short)) // STRIDE * STRIDE)
        base_wh = (short, long) if width < height else (long, short)
        ratio = min(base_wh[0] / image_wh[0], base_wh[1] / image_wh[1])
    else:
        ratio = min(base_wh) / min(image_wh)
    factor = scale / smallest
    input_wh = (int(base_wh[0] * factor + 1e-6), int(base_wh[1] * factor + 1e-6))  # 0.3 / 0.1 is below 3
    center = (int(image_wh[0] / 2 + 0.5), int(image_wh[1] / 2 + 0.5))
    return Warp(image_wh, input_wh, ratio * factor, center, reduced)
