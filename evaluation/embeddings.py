"""Maps to pose embeddings: vectors that lie near each other where poses look alike. Plain arrays, no datasets.

An embedding does not change when what it shows is moved, enlarged or mirrored. docs/poses.md has the formula:

1. Frame. The mass of all joints' maps has a centre and a spread; they are the origin and the unit of length.
2. Pooling. Each joint's map is averaged around the cells of a grid over that frame, and the root is taken, which lets
   a faint joint count.
3. Mirror. With the pooled maps q and their mirror image q' (left joints swapped with right ones), the mean (q + q') / 2
   and the absolute difference |q - q'| / 2 are the same for an image and its mirror image. Both are symmetric about the
   middle, so that half of the columns is kept.
4. The vector has length 1, so that the cosine distance is what compares two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

GRID = 8  # cells across and down
REACH = 2.5  # spreads from the centre to the edge of the grid
BLUR = 0.6  # cells: standard deviation of the Gaussian that averages around a cell
SMALLEST = 0.02  # of the image's size: spreads are taken for at least as large
WINDOW = 0.25  # of a person's size: standard deviation of the window around each of their joints
FAINTEST = 0.05  # a map that never gets higher shows nothing
FLOOR = 0.02  # values below it count as 0, as a run's default has it: noise over a whole image outweighs any person


def embedding(maps: Array, order: Sequence[int], aspect: float = 1.0) -> NDArray[np.float32] | None:
    """The pose that maps show, whatever its place, size and side.

    Args:
        maps: (K, h, w) 0 to 1
        order: for each joint, the one that it becomes in a mirrored image
        aspect: width of a map's pixel, in heights of it: maps of an image may be squashed

    Returns:
        (K * GRID * GRID,) of length 1; None where the maps show nothing
    """
    if maps.max(initial=0) < FAINTEST:
        return None
    x, y, spread = frame(maps, aspect)
    pooled = np.sqrt(pool(maps, x, y, spread, aspect))
    mirrored = pooled[list(order), :, ::-1]
    half = [part[:, :, : GRID // 2].ravel() for part in ((pooled + mirrored) / 2, np.abs(pooled - mirrored) / 2)]
    vector = np.concatenate(half)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def floored(maps: Array) -> Array:
    """Maps without the values below the floor; the others of this module expect such."""
    return np.where(maps >= FLOOR, maps, np.float32(0))


def pixel(aspect: float) -> tuple[float, float]:
    """Width and height of a pixel whose area is 1, which is the unit of all places here."""
    return float(np.sqrt(aspect)), float(1 / np.sqrt(aspect))


def frame(maps: Array, aspect: float) -> tuple[float, float, float]:
    """The centre (x, y) and the spread of the mass of maps (K, h, w)."""
    mass = maps.sum(axis=0)
    height, width = mass.shape
    total = mass.sum()
    columns, rows = ((np.arange(n) + 0.5) * side for n, side in zip((width, height), pixel(aspect), strict=True))
    across, down = mass.sum(axis=0) / total, mass.sum(axis=1) / total
    x, y = float(across @ columns), float(down @ rows)
    spread = np.sqrt((across @ (columns - x) ** 2 + down @ (rows - y) ** 2) / 2)
    return x, y, max(float(spread), SMALLEST * np.sqrt(height * width))


def pool(maps: Array, x: float, y: float, spread: float, aspect: float) -> Array:
    """Maps (K, h, w) averaged around the cells of a grid centred on (x, y): (K, GRID, GRID), rows first."""
    cell = 2 * REACH / GRID
    places = (np.arange(GRID) + 0.5) * cell - REACH

    def weights(count: int, side: float, center: float) -> Array:
        apart = ((np.arange(count) + 0.5) * side - center) / spread - places[:, None]
        return (np.exp(-((apart / (BLUR * cell)) ** 2) / 2) / spread).astype(np.float32)

    pixel_width, pixel_height = pixel(aspect)
    down, across = weights(maps.shape[1], pixel_height, y), weights(maps.shape[2], pixel_width, x)
    return down @ maps @ across.T


def person_maps(maps: Array, points: Array, aspect: float = 1.0) -> Array:
    """What of the maps belongs to a person: seen through a window around each of their joints.

    Args:
        maps: (K, h, w)
        points: (K, 2) places of their joints relative to the image, NaN where absent
        aspect: as of :func:`embedding`

    Returns:
        (K, h, w), 0 where they have no such joint
    """
    height, width = maps.shape[1:]
    pixel_width, pixel_height = pixel(aspect)
    places = points * (width * pixel_width, height * pixel_height)
    sides = np.nanmax(places, axis=0) - np.nanmin(places, axis=0)
    size = max(float(np.hypot(*sides)) / np.sqrt(2), SMALLEST * np.sqrt(height * width))

    def windows(count: int, side: float, centers: Array) -> NDArray[np.float32]:
        apart = ((np.arange(count) + 0.5) * side - centers[:, None]) / (WINDOW * size)
        return np.nan_to_num(np.exp(-(apart**2) / 2)).astype(np.float32)

    across, down = windows(width, pixel_width, places[:, 0]), windows(height, pixel_height, places[:, 1])
    return maps * down[:, :, None] * across[:, None, :]


def person_box(points: Array) -> list[float] | None:
    """A box [x, y, w, h] relative to the image around a person's joints (K, 2), a tenth larger on each side.

    None where fewer than two joints are there.
    """
    present = points[np.isfinite(points).all(axis=1)]
    if len(present) < 2:
        return None
    low, high = present.min(axis=0), present.max(axis=0)
    margin = 0.1 * (high - low).max()
    low, high = np.clip(low - margin, 0, 1), np.clip(high + margin, 0, 1)
    return [float(value) for value in (*low, *(high - low))]
