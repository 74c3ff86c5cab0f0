"""How far two sets of maps of one image disagree, joint by joint. Plain arrays; nothing about datasets.

Two measures, both from 0 (the same) to 1 (as different as can be):

- distance: from each peak of either map to the nearest peak of the other, in sizes of the person there, at most 1;
  the mean over the peaks of both, weighted by their values
- divergence: of Jensen and Shannon, to base 2, between the maps normalised to a sum of 1

A joint that neither map shows is no disagreement; one that only one map shows is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from .matching import reach_of

Array = NDArray[np.floating]

THRESHOLD = 0.1  # lower peaks are not compared
FLOOR = 0.02  # values below it count as 0, as a run's default has it: noise over a whole image outweighs any peak
SMALLEST = 0.05  # of the image's size: people are taken for at least as large
UNKNOWN = 0.25  # of the image's size: where nobody was found


@dataclass(frozen=True)
class Disagreement:
    """How far two sets of K maps disagree.

    Attributes:
        distance: (K,) 0 to 1, NaN where neither map shows the joint
        divergence: (K,) likewise
        weight: (K,) the highest value of the joint in either map, 0 where neither shows it
    """

    distance: Array
    divergence: Array
    weight: Array

    def overall(self) -> tuple[float, float]:
        """Distance and divergence of the whole image: means over the joints by weight; 0 where there are none."""
        total = self.weight.sum()
        if not total:
            return 0.0, 0.0
        means = (np.nansum(measure * self.weight) / total for measure in (self.distance, self.divergence))
        return tuple(float(mean) for mean in means)  # type: ignore[return-value]

    def worst(self) -> int | None:
        """The joint that adds most to the image's divergence; None where nothing differs."""
        shares = np.nan_to_num(self.divergence) * self.weight
        return int(shares.argmax()) if shares.any() else None


def disagreement(
    first: Array,
    second: Array,
    people: Array | None = None,
    threshold: float = THRESHOLD,
    image_wh: tuple[float, float] | None = None,
) -> Disagreement:
    """Compare two sets of maps of one image.

    A map shows its joint from ``threshold`` on. Where the other one reaches half of that, it counts as seeing it too:
    a peak just above the threshold and one just below it are compared, not called a miss.

    Args:
        first: (K, h, w) 0 to 1
        second: (K, h', w') of the same joints; both cover the image exactly
        people: (P, K', 2) places of people's joints relative to the image, NaN where absent, to take sizes from
        threshold: value from which on a map shows its joint
        image_wh: width and height of the image, in any unit; None = as the first maps', whose pixels are square then
    """
    width_height = np.array(image_wh or first.shape[:0:-1], float)
    sizes = _PeopleSizes(np.zeros((0, 1, 2)) if people is None else people, width_height)
    shape = min(first.shape[1:], second.shape[1:])
    count = len(first)
    distance, divergence, weight = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count)
    for joint, maps in enumerate(zip(first, second, strict=True)):
        highest = [float(values.max()) for values in maps]
        if max(highest) < threshold:
            continue
        weight[joint] = max(highest)
        if min(highest) < threshold / 2:
            distance[joint] = divergence[joint] = 1.0
            continue
        found = [peaks(values, threshold / 2) for values in maps]
        distance[joint] = _peak_distance(found, threshold, width_height, sizes)
        divergence[joint] = jensen_shannon(*(resampled(values, shape) for values in maps))
    return Disagreement(distance, divergence, weight)


def peaks(values: Array, threshold: float) -> Array:
    """The local maxima of a map (h, w) from ``threshold`` on: (N, 3), x and y relative to the image, value.

    They are the highest within a hundredth of the map's longer side, at least 2 pixels: on the slopes of a large map of
    8 bits every step is as high as all that is near. A plateau is one peak, at its centre.
    """
    window = 2 * reach_of(*values.shape) + 1
    highest = cv2.dilate(values, np.ones((window, window), np.uint8))
    tops = (values >= threshold) & (values == highest)
    count, labels, _, centers = cv2.connectedComponentsWithStats(tops.astype(np.uint8), connectivity=8)
    heights = np.zeros(count)
    np.maximum.at(heights, labels[tops], values[tops])
    return np.column_stack([(centers + 0.5) / values.shape[::-1], heights])[1:]  # the first is the background


def jensen_shannon(first: Array, second: Array) -> float:
    """The Jensen-Shannon divergence, to base 2, of two maps of one size that are not 0 everywhere: 0 to 1."""
    p, q = first / first.sum(), second / second.sum()
    nats = entr((p + q) / 2).sum() - (entr(p).sum() + entr(q).sum()) / 2
    return float(np.clip(nats / np.log(2), 0, 1))


def resampled(values: Array, size: tuple[int, ...]) -> NDArray[np.float64]:
    """A map at another size (h, w), by area, without the values below the floor."""
    sized = values if values.shape == size else cv2.resize(values, size[::-1], interpolation=cv2.INTER_AREA)
    floor = min(FLOOR, sized.max() / 2)  # the peak stays, also a narrow one that averages below the floor
    return np.where(sized >= floor, sized, 0.0).astype(np.float64)


class _PeopleSizes:
    """The size of whoever is nearest to a place: the side of a square with the diagonal of the box around their joints.

    Args:
        people: (P, K', 2) places relative to the image, NaN where absent
        width_height: of the image, in any unit
    """

    def __init__(self, people: Array, width_height: NDArray[np.float64]):
        self.image = float(np.sqrt(width_height.prod()))
        present = np.isfinite(people).all(axis=2).sum(axis=1) >= 2
        self.joints = people[present] * width_height
        sides = np.nanmax(self.joints, axis=1) - np.nanmin(self.joints, axis=1) if present.any() else np.zeros((0, 2))
        self.sizes = np.maximum(np.hypot(*sides.T) / np.sqrt(2), SMALLEST * self.image)

    def at(self, places: Array) -> Array:
        """The sizes (N,) at places (N, 2)."""
        if not len(self.sizes):
            return np.full(len(places), UNKNOWN * self.image)
        apart = np.linalg.norm(places[:, None, None] - self.joints, axis=3)  # N, P, K'
        return self.sizes[np.nanmin(apart, axis=2).argmin(axis=1)]


def _peak_distance(
    found: Sequence[Array], threshold: float, width_height: NDArray[np.float64], sizes: _PeopleSizes
) -> float:
    """The distance of two sets of peaks (N, 3), which hold those down to half of the threshold."""
    total = weights = 0.0
    for own, other in (found, found[::-1]):
        own = own[own[:, 2] >= threshold]
        places, others = own[:, :2] * width_height, other[:, :2] * width_height
        nearest = np.linalg.norm(places[:, None] - others, axis=2).min(axis=1)
        total += float((own[:, 2] * np.minimum(nearest / sizes.at(places), 1)).sum())
        weights += float(own[:, 2].sum())
    return total / weights
