"""Heatmaps and tags at the resolution of the network's input, interpolated only where grouping asks for them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Indices = NDArray[np.integer]
BLOCK = 8  # pixels


class Enlarged:
    """Maps at a higher resolution than they have, interpolated only where they are asked for.

    Args:
        values: (C, h, w) float32
        shape: (H, W); larger than (h, w) means bilinear enlargement, ``align_corners=False``
    """

    def __init__(self, values: Array, shape: tuple[int, int]):
        self.shape = shape
        self._factors = (values.shape[1] / shape[0], values.shape[2] / shape[1])
        # Channels last, as the network leaves them: no copy then.
        self._values = np.ascontiguousarray(values.transpose(1, 2, 0))
        self.count, height, width = values.shape
        self._rows = _neighbours(shape[0], self._factors[0], height, width * self.count)
        self._columns = _neighbours(shape[1], self._factors[1], width, self.count)

    def at(self, channels: Indices, ys: Indices, xs: Indices) -> Array:
        """The values of channels at pixels of the enlarged maps; the three are broadcast."""
        flat = self._values.reshape(-1)
        (top, bottom, fy), (left, right, fx) = self._rows, self._columns
        left, top = left.take(xs), top.take(ys) + channels
        if self._factors == (1, 1):
            return flat.take(top + left)
        right, bottom = right.take(xs), bottom.take(ys) + channels
        fx, fy = fx.take(xs), fy.take(ys)
        upper, lower = (flat.take(row + left) * (1 - fx) + flat.take(row + right) * fx for row in (top, bottom))
        return upper * (1 - fy) + lower * fy  # type: ignore[return-value]

    def patches(self, threshold: float, margin: int) -> Iterator[tuple[int, int, int, Array]]:
        """Of each channel with values above a threshold, the part that holds them all.

        Args:
            threshold: of the values before they are enlarged
            margin: enlarged pixels around them that are right, too

        Returns:
            channel, first row, first column, and the enlarged values (rows, columns)
        """
        height, width, count = self._values.shape
        zoom = self.shape[0] // height
        whole = self.shape != (zoom * height, zoom * width)  # then a part would be enlarged to other places
        around = 1 + math.ceil(margin / zoom) + 1  # interpolation reaches one pixel, there and at the patch's edge
        high, channels = np.divmod(np.flatnonzero(self._values > threshold), count)
        rows, columns = np.divmod(high, width)
        for channel in np.unique(channels):
            own = channels == channel
            (top, bottom), (left, right) = (
                (0, size) if whole else (max(at.min() - around, 0), min(at.max() + around + 1, size))
                for at, size in ((rows[own], height), (columns[own], width))
            )
            patch = np.ascontiguousarray(self._values[top:bottom, left:right, channel])
            if self._factors != (1, 1):
                shape = self.shape if whole else (zoom * patch.shape[0], zoom * patch.shape[1])
                patch = cv2.resize(patch, shape[::-1])  # type: ignore[assignment]
            yield int(channel), zoom * top, zoom * left, patch

    def block_bounds(self, extreme: np.ufunc) -> Array:
        """Minimum or maximum of each block of the enlarged maps, or a bound of it: (rows, columns, C)."""
        bounds: Array = self._values
        for axis in (0, 1):
            starts = (np.arange(0, self.shape[axis], BLOCK) * self._factors[axis]).astype(np.intp)
            reach = range(-1, math.ceil(BLOCK * self._factors[axis]) + 2)  # interpolation reaches beyond the block
            places = (np.clip(starts + offset, 0, bounds.shape[axis] - 1) for offset in reach)
            bounds = functools.reduce(extreme, (bounds.take(place, axis) for place in places))
        return bounds


@functools.lru_cache(maxsize=64)  # the images of a run have few shapes
def _neighbours(count: int, factor: float, size: int, step: int) -> tuple[Indices, Indices, Array]:
    """Where an axis of ``count`` enlarged pixels reads.

    Returns:
        for each of them the two pixels between which it lies, times ``step``, and how near it is to the second (0 to
        1); the last one again and again up to a whole number of blocks
    """
    positions = np.minimum(np.arange(math.ceil(count / BLOCK) * BLOCK), count - 1)
    source = np.minimum(np.maximum((positions + 0.5) * factor - 0.5, 0), size - 1).astype(np.float32)
    low = source.astype(np.intp)
    return low * step, np.minimum(low + 1, size - 1) * step, (source - low).astype(np.float32)


class TagMap:
    """Tags at the resolution of the heatmaps.

    Args:
        tags: (T, h, w, D) float32: T = K, or 1 where all joints share a tag; D tags per pixel (1, or 2 with flip test)
        shape: (H, W) of the heatmaps
    """

    def __init__(self, tags: Array, shape: tuple[int, int]):
        self.count, height, width, self.depth = tags.shape
        self._maps = Enlarged(tags.transpose(0, 3, 1, 2).reshape(-1, height, width), shape)

    def at(self, joints: Indices, ys: Indices, xs: Indices) -> Array:
        """Tags (…, D) of joints at pixels; the three are broadcast."""
        channels = self.own(joints)[..., None] * self.depth + np.arange(self.depth)
        return self._maps.at(channels, ys[..., None], xs[..., None])

    def block_bounds(self) -> tuple[Array, Array]:
        """Bounds of the tags in each block: smallest, largest; (blocks, T, D)."""
        bounds = (self._maps.block_bounds(extreme) for extreme in (np.minimum, np.maximum))
        low, high = (bound.reshape(-1, self.count, self.depth) for bound in bounds)
        return low, high

    def own(self, joints: Indices) -> Indices:
        """Which of the T maps holds the tags of a joint."""
        return joints if self.count > 1 else joints * 0
