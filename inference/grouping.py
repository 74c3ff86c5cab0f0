"""Heatmaps and tags to people: associative embedding (arXiv 1611.05424), as HigherHRNet's authors decode it.

Peaks of every joint are the candidates. Joint after joint, each candidate goes to the person whose mean tag is nearest;
a candidate that is near nobody starts a new person. Positions move a quarter pixel towards the higher neighbour, and a
joint that a person lacks is taken where the heatmap is high and the tag fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float32]


@dataclass(frozen=True)
class GroupingConfig:
    """Settings of the grouping; the defaults are the published ones.

    Attributes:
        detection_threshold: heatmap value above which a peak is a candidate
        tag_threshold: largest distance between a candidate's tag and a person's mean tag
        max_people: at most this many candidates per joint, and people
        window: a peak is the maximum of a window x window neighbourhood
        adjust: move joints a quarter pixel towards the higher neighbour
        refine: look for the joints that a person lacks
    """

    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    max_people: int = 30
    window: int = 5
    adjust: bool = True
    refine: bool = True


@dataclass(frozen=True)
class People:
    """The people of one image.

    Attributes:
        joints: (P, K, 3) float32: x and y in heatmap pixels (continuous), heatmap value; value 0 = absent
        tags: (P, K) float32, the first tag at each joint when it was assigned
        scores: (P,) float32, mean value over all K joints before missing joints were looked for
    """

    joints: Array
    tags: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.scores)


class TagMap:
    """Tags at the resolution of the heatmaps, enlarged only where they are asked for.

    Args:
        tags: (T, h, w, D) float32: T = K, or 1 where all joints share a tag; D tags per pixel (flips and scales)
        shape: (H, W) of the heatmaps; larger than (h, w) means bilinear enlargement, ``align_corners=False``
    """

    def __init__(self, tags: Array, shape: tuple[int, int]):
        self.tags = tags
        self.factor = (tags.shape[1] / shape[0], tags.shape[2] / shape[1])
        self.same = tags.shape[1:3] == shape

    def at(self, joint: int, ys: NDArray[np.integer], xs: NDArray[np.integer]) -> Array:
        """Tags (N, D) of a joint at N heatmap pixels."""
        tags = self.tags[joint if len(self.tags) > 1 else 0]
        if self.same:
            return tags[ys, xs]
        y0, y1, fy = _neighbours(ys, self.factor[0], tags.shape[0])
        x0, x1, fx = _neighbours(xs, self.factor[1], tags.shape[1])
        top = tags[y0, x0] * (1 - fx) + tags[y0, x1] * fx
        bottom = tags[y1, x0] * (1 - fx) + tags[y1, x1] * fx
        return top * (1 - fy) + bottom * fy


def _neighbours(
    positions: NDArray[np.integer], factor: float, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    source = np.maximum((positions + 0.5) * factor - 0.5, 0).astype(np.float32)
    low = source.astype(np.intp)
    return low, np.minimum(low + 1, size - 1), (source - low)[:, None]


def group(
    heatmaps: Array,
    tags: Array,
    order: tuple[int, ...],
    config: GroupingConfig | None = None,
) -> People:
    """Group the peaks of the heatmaps into people.

    Args:
        heatmaps: (K, H, W) float32, contiguous
        tags: (T, h, w, D) float32; see :class:`TagMap`
        order: the joints in the order of matching
        config: settings

    Returns:
        the people, in the order in which they were found
    """
    config = config or GroupingConfig()
    tag_map = TagMap(tags, heatmaps.shape[1:])  # type: ignore[arg-type]
    candidates = [_peaks(heatmap, tag_map, joint, config) for joint, heatmap in enumerate(heatmaps)]
    people = _match(candidates, order, config)
    if not len(people):
        depth = 3 + tags.shape[3]
        people = np.zeros((0, len(heatmaps), depth), np.float32)
    if config.adjust:
        _adjust(people, heatmaps)
    scores = people[:, :, 2].mean(axis=1)
    first_tags = people[:, :, 3].copy()
    if config.refine and len(people):
        bounds = [_block_maxima(heatmap) for heatmap in heatmaps]
        for person in people:
            _refine(person, heatmaps, tag_map, bounds)
    return People(people[:, :, :3], first_tags, scores)


def _peaks(heatmap: Array, tag_map: TagMap, joint: int, config: GroupingConfig) -> Array:
    """The candidates of one joint, highest first: (N, 3 + D) = x, y, value, tags."""
    height, width = heatmap.shape
    flat = np.flatnonzero(heatmap > config.detection_threshold)
    if not len(flat):
        return np.zeros((0, 3 + tag_map.tags.shape[3]), np.float32)
    ys, xs = np.divmod(flat, width)
    values = heatmap[ys, xs]
    is_peak = np.ones(len(flat), bool)
    # Few pixels pass the threshold, so their neighbours are looked at one offset after another.
    reach = config.window // 2
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            y, x = np.clip(ys + dy, 0, height - 1), np.clip(xs + dx, 0, width - 1)
            is_peak &= heatmap[y, x] <= values
    ys, xs, values = ys[is_peak], xs[is_peak], values[is_peak]
    best = np.argsort(values, kind="stable")[::-1][: config.max_people]  # equal values: the later pixel, as published
    ys, xs, values = ys[best], xs[best], values[best]
    return np.concatenate([np.stack([xs, ys, values], axis=1), tag_map.at(joint, ys, xs)], axis=1).astype(np.float32)


def _match(candidates: list[Array], order: tuple[int, ...], config: GroupingConfig) -> Array:
    """Candidates per joint -> people (P, K, 3 + D), zeros where a joint is absent."""
    people: dict[float, Array] = {}  # keyed by the first tag of the joint that started the person
    seen_tags: dict[float, list[Array]] = {}

    def start(joint: int, candidate: Array) -> None:
        key = float(candidate[3])
        people.setdefault(key, np.zeros((len(candidates), len(candidate)), np.float32))[joint] = candidate
        seen_tags[key] = [candidate[3:]]

    for joint in order:
        found = candidates[joint]
        if not len(found):
            continue
        if not people:
            for candidate in found:
                start(joint, candidate)
            continue
        keys = list(people)[: config.max_people]
        means = np.array([np.mean(seen_tags[key], axis=0) for key in keys])
        distance = np.linalg.norm(found[:, None, 3:] - means[None], axis=2)
        cost = np.round(distance) * 100 - found[:, 2:3]
        surplus = max(0, len(found) - len(keys))
        cost = np.pad(cost, ((0, 0), (0, surplus)), constant_values=1e10)  # columns for "a new person"
        for row, column in zip(*linear_sum_assignment(cost), strict=True):
            if column < len(keys) and distance[row, column] < config.tag_threshold:
                people[keys[column]][joint] = found[row]
                seen_tags[keys[column]].append(found[row, 3:])
            else:
                start(joint, found[row])
    return np.array(list(people.values()), dtype=np.float32)


def _quarter(heatmap: Array, y: int, x: int) -> tuple[float, float]:
    """The centre of pixel (x, y), moved a quarter pixel towards the higher neighbour on each axis."""
    height, width = heatmap.shape
    right = heatmap[y, min(x + 1, width - 1)] > heatmap[y, max(x - 1, 0)]
    down = heatmap[min(y + 1, height - 1), x] > heatmap[max(y - 1, 0), x]
    return x + (0.75 if right else 0.25), y + (0.75 if down else 0.25)


def _adjust(people: Array, heatmaps: Array) -> None:
    for person, joint in np.argwhere(people[:, :, 2] > 0):
        x, y = people[person, joint, :2].astype(int)
        people[person, joint, :2] = _quarter(heatmaps[joint], y, x)


BLOCK = 16


def _block_maxima(heatmap: Array) -> Array:
    """The largest value in each 16 x 16 block: (ceil(H / 16), ceil(W / 16))."""
    height, width = heatmap.shape
    rows = np.maximum.reduceat(heatmap, np.arange(0, height, BLOCK), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, width, BLOCK), axis=1)


def _refine(person: Array, heatmaps: Array, tag_map: TagMap, bounds: list[Array]) -> None:
    """Fill in the joints that a person lacks, in place: the pixel with the largest value - round(tag distance)."""
    present = np.flatnonzero(person[:, 2] > 0)
    tags = [tag_map.at(joint, *person[joint, 1::-1].astype(np.intp)[:, None])[0] for joint in present]
    mean = np.mean(tags, axis=0)
    for joint in np.flatnonzero(person[:, 2] == 0):
        y, x = _best_fit(heatmaps[joint], tag_map, int(joint), mean, bounds[joint])
        value = heatmaps[joint, y, x]
        if value > 0:
            person[joint, :3] = (*_quarter(heatmaps[joint], y, x), value)


def _best_fit(heatmap: Array, tag_map: TagMap, joint: int, tag: Array, bounds: Array) -> tuple[int, int]:
    """argmax of ``heatmap - round(|tags - tag|)``, exactly, without looking at every pixel.

    The tag term only lowers a pixel, so no pixel of a block exceeds the block's largest heatmap value: blocks are
    looked at from the highest on, in growing portions, until none that is left can win.
    """
    height, width = heatmap.shape
    ranked = np.argsort(-bounds, axis=None)
    limits = bounds.ravel()[ranked]
    best, place, start, portion = -np.inf, (0, 0), 0, 8
    while start < len(ranked) and limits[start] > best:
        rows, columns = np.divmod(ranked[start : start + portion], bounds.shape[1])
        ys = (rows[:, None, None] * BLOCK + np.arange(BLOCK)[:, None]).clip(max=height - 1)
        xs = (columns[:, None, None] * BLOCK + np.arange(BLOCK)).clip(max=width - 1)
        ys, xs = (axis.ravel() for axis in np.broadcast_arrays(ys, xs))
        distance = np.sqrt(((tag_map.at(joint, ys, xs) - tag) ** 2).sum(axis=1))
        fit = heatmap[ys, xs] - np.round(distance)
        winner = int(fit.argmax())
        if fit[winner] > best:
            best, place = float(fit[winner]), (int(ys[winner]), int(xs[winner]))
        start, portion = start + portion, portion * 4
    return place


def enlarge(heatmaps: Array, shape: tuple[int, int]) -> Array:
    """Heatmaps (K, h, w) -> (K, H, W), bilinear, ``align_corners=False``, on the CPU."""
    size = (shape[1], shape[0])
    enlarged = np.empty((len(heatmaps), *shape), np.float32)
    for heatmap, target in zip(heatmaps, enlarged, strict=True):
        cv2.resize(heatmap, size, dst=target, interpolation=cv2.INTER_LINEAR)
    return enlarged
