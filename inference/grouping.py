"""Heatmaps and tags to people: associative embedding (arXiv 1611.05424), as HigherHRNet's authors decode it.

Peaks of every joint are the candidates. Joint after joint, each candidate goes to the person whose mean tag is nearest;
a candidate that is near nobody starts a new person. Positions move a quarter pixel towards the higher neighbour, and a
joint that a person lacks is taken where the heatmap is high and the tag fits.

Weights may bring a pose prior. Then people give up joints that are not where a person's could be, and take those that
are. They may also bring a pose refiner, which then moves the joints to where all maps around the person say that they
are, and says how right it can be expected to be there: people are ranked by that, and copies of others, which
fragments of a person become by it, are dropped. Published weights have neither, and are decoded as published.

All this looks at the network's own values; where a gate or a calibration made other heatmaps of them, joints get those
heatmaps' values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from .enlarged import BLOCK, Array, Enlarged, Indices, TagMap
from .pose_prior import REACH, PosePrior
from .pose_refiner import NO_TAGS, PoseRefiner

REGROUPINGS = 3
NEARBY = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 21)]), axis=-1).reshape(-1, 2)
NEARBY = NEARBY[np.linalg.norm(NEARBY, axis=1) <= 1]  # places in a circle of radius 1
DARK = 1e-6  # value of a joint that is known from the others only
SAME_PLACE = 0.25  # of a person's size: deviation of the Gaussian by which two people's joints are compared
SAME_PERSON = 0.5  # two people are one where the mean of these over their joints is higher


@dataclass(frozen=True)
class GroupingConfig:
    """Settings of the grouping; the defaults are the published ones.

    Attributes:
        detection_threshold: value of the network's own maps above which a peak is a candidate
        tag_threshold: largest distance between a candidate's tag and a person's mean tag
        max_people: at most this many candidates per joint, and people
        window: a peak is the maximum of a window x window neighbourhood
        adjust: move joints a quarter pixel towards the higher neighbour
        refine: look for the joints that a person lacks
        min_mean: groups with a lower mean value over all K joints are left out, before missing joints are looked for
        min_score: people with a lower score are left out; see :class:`People` for what scores are
        prior: how a person's joints lie to each other; None = only tags decide, as published
        refiner: with a prior, and where missing joints are looked for, it moves the joints of people of whom enough fit
            the prior, gives these people their scores, and copies of people are dropped; None = joints stay at their
            maps' peaks
    """

    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    max_people: int = 30
    window: int = 5
    adjust: bool = True
    refine: bool = True
    min_mean: float = 0.0
    min_score: float = 0.0
    prior: PosePrior | None = None
    refiner: PoseRefiner | None = None


@dataclass(frozen=True)
class People:
    """The people of one image.

    Attributes:
        joints: (P, K, 3) float32: x and y in heatmap pixels (continuous), the heatmap's value there; value 0 = absent
        tags: (P, K) float32, the first tag at each joint when it was assigned
        scores: (P,) float32, mean value over all K joints before missing joints were looked for; of people whom a
            refiner judged, the OKS with a real person that can be expected of their pose, 0 to 1
    """

    joints: Array
    tags: Array
    scores: Array

    def __len__(self) -> int:
        return len(self.scores)


def group(
    heatmaps: Array,
    tags: Array,
    order: tuple[int, ...],
    config: GroupingConfig | None = None,
    shape: tuple[int, int] | None = None,
    own: Array | None = None,
) -> People:
    """Group the peaks of the heatmaps into people.

    Args:
        heatmaps: (K, h, w) float32
        tags: (T, h, w, D) float32, as in :class:`TagMap`
        order: the joints in the order of matching
        config: settings
        shape: (H, W) to enlarge the heatmaps to; people's joints are in pixels there. None = the heatmaps' own
        own: the network's own values, where gate or calibration made other heatmaps of them: people are found in these,
            but have the values that the heatmaps give them, also in means of values. None = the heatmaps are those

    Returns:
        the people, in the order in which they were found

    Raises:
        ValueError: if a tag at a peak is no number
    """
    config = config or GroupingConfig()
    shape = shape or (heatmaps.shape[1], heatmaps.shape[2])
    own = heatmaps if own is None else own
    # nobody there: the usual case in many datasets; no mean is above that of the highest values of all joints
    if own.max() <= config.detection_threshold or np.maximum(heatmaps.max(axis=(1, 2)), 0).mean() < config.min_mean:
        return People(*(np.zeros((0, *rest), np.float32) for rest in ((len(heatmaps), 3), (len(heatmaps),), ())))
    shown = Enlarged(heatmaps, shape)
    maps, tag_map = shown if own is heatmaps else Enlarged(own, shape), TagMap(tags, shape)
    candidates = _peaks(maps, tag_map, config)
    people = _match(candidates, order, config)
    if config.prior:
        for _ in range(REGROUPINGS):
            people = _regroup(people, candidates, order, config, config.prior)
    if config.adjust:
        _adjust(people, maps)
    means = people[:, :, 2].mean(axis=1)  # of the network's own values; joints that were not found count as 0
    scores = means.copy() if shown is maps else _values(people, shown).mean(axis=1)
    bright = scores >= config.min_mean
    people, means, scores = people[bright], means[bright], scores[bright]
    first_tags = people[:, :, 3].copy()
    kept = np.ones(len(people), bool)
    if config.refine and len(people):
        if config.prior:
            _look_near(people, maps, tag_map, config.prior)
        _refine(people, maps, tag_map)
        if config.prior and config.refiner:
            judged, expected = _move(people, own, tags, shape, config.prior, config.refiner)
            scores[judged] = expected
            kept[judged] = ~_copies(people[judged, :, :2], means[judged] * expected)
    kept &= scores >= config.min_score
    joints = people[kept, :, :3]
    if shown is not maps or config.refiner:
        joints[:, :, 2] = _values(joints, shown)
    return People(joints, first_tags[kept], scores[kept])


def _adjust(people: Array, maps: Enlarged) -> None:
    """Move joints a quarter pixel towards the higher neighbour, in place."""
    found, joints = np.nonzero(people[:, :, 2] > 0)
    xs, ys = people[found, joints, :2].astype(np.intp).T
    people[found, joints, :2] = _quarter(maps, joints, ys, xs)


def _move(
    people: Array, own: Array, tags: Array, shape: tuple[int, int], prior: PosePrior, refiner: PoseRefiner
) -> tuple[Indices, Array]:
    """Put joints where the refiner says, in place.

    Returns:
        the people (N,) whom it can judge, and the OKS (N,) to be expected of them
    """
    judged, places, expected = refiner.places(own, tags, people[:, :, :3], shape, prior)
    edge = np.nextafter(np.array(shape[::-1], np.float32), np.float32(0))
    people[judged, :, :2] = places.clip(0, edge)  # a joint beyond the image's edge is drawn at the edge
    people[judged, :, 2] = 1  # present; the value follows
    return judged, expected


def _copies(places: Array, ranking: Array) -> NDArray[np.bool_]:
    """Which people (P,) have nearly the pose of one of higher rank, who is no copy.

    Args:
        places: (P, K, 2) of their joints
        ranking: (P,); by the mean value over all K joints a fragment, which the refiner makes a copy, comes last
    """
    spread = places - places.mean(axis=1, keepdims=True)
    sizes = np.sqrt((spread**2).sum(axis=2).mean(axis=1))
    squares = ((places[:, None] - places) ** 2).sum(axis=3)
    larger = np.maximum(np.maximum(sizes[:, None], sizes), 1e-3)[:, :, None]
    same = np.exp(-squares / (2 * (SAME_PLACE * larger) ** 2)).mean(axis=2) > SAME_PERSON
    copies = np.zeros(len(places), bool)
    order = np.argsort(-ranking, kind="stable")
    for rank, person in enumerate(order):
        if not copies[person]:
            lower = order[rank + 1 :]
            copies[lower] |= same[person, lower]
    return copies


def _values(people: Array, maps: Enlarged) -> Array:
    """The maps' values (P, K) at the joints of people, hardly more than 0 where the maps are dark; 0 = absent."""
    values = np.zeros(people.shape[:2], np.float32)
    found, joints = np.nonzero(people[:, :, 2] > 0)
    xs, ys = people[found, joints, :2].astype(np.intp).T
    values[found, joints] = np.maximum(maps.at(joints, ys, xs), DARK)
    return values


def _within(positions: Indices, size: int) -> Indices:
    return np.minimum(np.maximum(positions, 0), size - 1)


def _peaks(maps: Enlarged, tag_map: TagMap, config: GroupingConfig) -> list[Array]:
    """The candidates of each joint, highest first: (N, 3 + D) = x, y, value, tags."""
    reach = config.window // 2
    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    found = {}
    for joint, top, left, values in maps.patches(config.detection_threshold, reach):
        ys, xs = np.nonzero((values == cv2.dilate(values, window)) & (values > config.detection_threshold))
        heights = values[ys, xs]
        best = heights.argsort(kind="stable")[::-1][: config.max_people]  # equal values: the later pixel, as published
        found[joint] = np.column_stack([xs[best] + left, ys[best] + top, heights[best]])
    counts = [len(found.get(joint, ())) for joint in range(maps.count)]
    places = np.concatenate([found[joint] for joint in sorted(found)])
    xs, ys = places[:, :2].astype(np.intp).T
    table = np.column_stack([places, tag_map.at(np.repeat(np.arange(maps.count), counts), ys, xs)]).astype(np.float32)
    if not np.isfinite(table).all():
        raise ValueError(NO_TAGS)
    return np.split(table, np.cumsum(counts)[:-1])


def _match(candidates: list[Array], order: tuple[int, ...], config: GroupingConfig) -> Array:
    """Candidates per joint -> people (P, K, 3 + D), zeros where a joint is absent."""
    total = sum(map(len, candidates))
    people = np.zeros((total, len(candidates), candidates[0].shape[1]), np.float32)
    tag_sums, tag_counts = np.zeros((total, candidates[0].shape[1] - 3), np.float32), np.ones((total, 1), np.float32)
    by_tag: dict[float, int] = {}  # a person is known by the first tag of the joint that started it, as published

    for joint in order:
        found = candidates[joint]
        known = min(len(by_tag), config.max_people)
        new: Iterable[int] = range(len(found))
        if known and len(found):
            distance = np.sqrt(((found[:, None, 3:] - (tag_sums[:known] / tag_counts[:known])) ** 2).sum(axis=2))
            cost = np.full((len(found), max(known, len(found))), 1e10)  # columns for "a new person"
            cost[:, :known] = np.round(distance) * 100 - found[:, 2:3]
            if config.prior:
                # As published, near tags are equally near, many ways to match cost the same, and the last bit of a sum
                # decides between them. Here, strong candidates are for strong people, and near tags are nearer.
                strength = _mean_found(people[:known, :, 2])
                cost[:, :known] += (found[:, 2:3] - strength) ** 2 / 10 + distance**2 / 100
            rows, columns = linear_sum_assignment(cost)
            near = columns < known
            near[near] = distance[rows[near], columns[near]] < config.tag_threshold
            people[columns[near], joint] = found[rows[near]]
            tag_sums[columns[near]] += found[rows[near], 3:]
            tag_counts[columns[near]] += 1
            new = rows[~near]
        for row in new:
            index = by_tag.setdefault(float(found[row, 3]), len(by_tag))
            people[index, joint] = found[row]
            tag_sums[index], tag_counts[index] = found[row, 3:], 1
    return people[: len(by_tag)]


def _mean_found(values: Array) -> Array:
    """The mean of each person's values (P, K) over the joints that were found: (P,)."""
    return values.sum(axis=1) / (values > 0).sum(axis=1)


def _posed(people: Array, prior: PosePrior) -> tuple[Indices, NDArray, NDArray, NDArray]:
    """People of whom enough joints fit one pose: their indices, where their joints are expected, sizes, mean tags."""
    expected, sizes, fits = prior.fit_robustly(people[:, :, :2].astype(float), people[:, :, 2].astype(float))
    known = np.flatnonzero(fits.any(axis=1))
    tags = (people[known, :, 3:] * fits[known, :, None]).sum(axis=1) / fits[known].sum(axis=1)[:, None]
    return known, expected[known], sizes[known], tags


def _regroup(
    people: Array, candidates: list[Array], order: tuple[int, ...], config: GroupingConfig, prior: PosePrior
) -> Array:
    """Give every candidate to the person whose tag and pose it fits best; match what is left by tags alone."""
    _, expected, sizes, tags = _posed(people, prior)
    result = np.zeros((len(tags), *people.shape[1:]), np.float32)
    left = []
    for joint, found in enumerate(candidates):
        off = np.linalg.norm(found[:, None, :2] - expected[:, joint], axis=2) / sizes  # candidates, people
        apart = np.linalg.norm(found[:, None, 3:] - tags, axis=2)
        cost = off**2 / 2 + apart**2 - found[:, 2:3]
        cost[(off > REACH) | (apart >= config.tag_threshold)] = np.inf
        nobody = np.full((len(found), len(found)), 1e3)  # costs more than any person
        rows, columns = linear_sum_assignment(np.hstack([np.minimum(cost, 1e6), nobody]))
        given = columns < len(tags)
        result[columns[given], joint] = found[rows[given]]
        left.append(np.delete(found, rows[given], axis=0))
    return np.concatenate([result[result[:, :, 2].any(axis=1)], _match(left, order, config)])


def _look_near(people: Array, maps: Enlarged, tag_map: TagMap, prior: PosePrior) -> None:
    """Fill in joints that people lack, in place, from where their poses let them be expected."""
    known, expected, sizes, tags = _posed(people, prior)
    lacking, joints = np.nonzero(people[known, :, 2] == 0)
    around = REACH * NEARBY
    offsets = sizes[lacking, None, None] * around
    xs, ys = np.floor(expected[lacking, joints][:, None] + offsets).astype(np.intp).transpose(2, 0, 1)
    height, width = maps.shape
    inside = (xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)
    xs, ys = _within(xs, width), _within(ys, height)
    values = maps.at(joints[:, None], ys, xs)
    apart = np.linalg.norm(tag_map.at(joints[:, None], ys, xs) - tags[lacking, None], axis=2)
    fit = values - (around**2).sum(axis=1) / 2 - apart**2
    fit[~inside | (values <= 0)] = -np.inf
    each, best = np.arange(len(joints)), fit.argmax(axis=1)
    there = np.isfinite(fit[each, best])
    places = np.column_stack([xs[each, best] + 0.5, ys[each, best] + 0.5, values[each, best]])
    people[known[lacking[there]], joints[there], :3] = places[there]


def _quarter(maps: Enlarged, joints: Indices, ys: Indices, xs: Indices) -> Array:
    """The centres (N, 2) of N pixels as x, y, moved a quarter pixel towards the higher neighbour on each axis."""
    height, width = maps.shape
    right = maps.at(joints, ys, _within(xs + 1, width)) > maps.at(joints, ys, _within(xs - 1, width))
    down = maps.at(joints, _within(ys + 1, height), xs) > maps.at(joints, _within(ys - 1, height), xs)
    return np.stack([xs + np.where(right, 0.75, 0.25), ys + np.where(down, 0.75, 0.25)], axis=1)


def _refine(people: Array, maps: Enlarged, tag_map: TagMap) -> None:
    """Fill in the joints that people lack, in place: the pixel with the largest value - round(tag distance)."""
    found, joints = np.nonzero(people[:, :, 2] > 0)
    xs, ys = people[found, joints, :2].astype(np.intp).T
    sums = np.zeros((len(people), tag_map.depth), np.float32)
    np.add.at(sums, found, tag_map.at(joints, ys, xs))
    means: Array = sums / np.bincount(found, minlength=len(people)).astype(np.float32)[:, None]

    lacking, joints = np.nonzero(people[:, :, 2] == 0)
    ys, xs = best_fits(maps, tag_map, joints, means[lacking])
    values = maps.at(joints, ys, xs)
    there = values > 0
    places = _quarter(maps, joints, ys, xs)
    people[lacking[there], joints[there], :3] = np.column_stack([places, values])[there]


def _block_pixels(rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """The pixels of N blocks: ys (N, BLOCK, 1), xs (N, 1, BLOCK)."""
    inside = np.arange(BLOCK)
    return (rows[:, None] * BLOCK + inside)[:, :, None], (columns[:, None] * BLOCK + inside)[:, None, :]


def best_fits(maps: Enlarged, tag_map: TagMap, joints: Indices, tags: Array) -> tuple[Indices, Indices]:
    """For N joints (N,) and tags (N, D): argmax of ``heatmap - round(|tags - tag|)``, without looking at every pixel.

    No pixel of a block can exceed the block's largest heatmap value less the distance to the block's nearest tag.
    So for all N at once the most promising block is looked at, then the next one, until none that is left can win.

    Returns:
        the rows and columns, (N,) each
    """
    highest = maps.block_bounds(np.maximum)  # rows, columns, K
    columns = highest.shape[1]
    highest = highest.reshape(-1, highest.shape[2]).T  # K, blocks
    ranked = np.argsort(-highest, axis=1)
    tag_bounds = tag_map.block_bounds()

    best = np.full(len(joints), -np.inf, np.float32)
    ys, xs = np.zeros((2, len(joints)), np.intp)
    left = np.arange(len(joints))
    start, stop = 0, 32
    while len(left) and start < ranked.shape[1]:
        # Among blocks with high heatmap values, the most promising one first, until none that is left can win.
        blocks = ranked[joints[left], start:stop]
        low, high = (bounds[blocks, tag_map.own(joints[left, None])] for bounds in tag_bounds)
        wanted = tags[left, None]
        gap = np.maximum(np.maximum(low - wanted, wanted - high), 0)  # N, blocks, D
        distance = np.sqrt((gap**2).sum(axis=-1))
        limits = highest[joints[left, None], blocks] - np.round(distance - 1e-4)  # 1e-4: rounding of float32
        searched = np.arange(len(left))
        while True:
            pick = limits[searched].argmax(axis=1)
            promising = limits[searched, pick] > best[left[searched]]
            searched, pick = searched[promising], pick[promising]
            if not len(searched):
                break
            limits[searched, pick] = -np.inf
            index = left[searched]
            y, x = _block_pixels(*np.divmod(blocks[searched, pick], columns))
            fit, y, x = _best_in_block(maps, tag_map, joints[index], tags[index], y, x)
            better = fit > best[index]
            index = index[better]
            best[index], ys[index], xs[index] = fit[better], y[better], x[better]
        # The other blocks are lower than this one.
        start, stop = stop, 4 * stop
        if start < ranked.shape[1]:
            left = left[highest[joints[left], ranked[joints[left], start]] > best[left]]
    return ys, xs


def _best_in_block(
    maps: Enlarged, tag_map: TagMap, joints: Indices, tags: Array, ys: Indices, xs: Indices
) -> tuple[Array, Indices, Indices]:
    """The largest ``heatmap - round(|tags - tag|)`` in each of N blocks, and its row and column: (N,) each."""
    joints = joints[:, None, None]
    distance = np.sqrt(((tag_map.at(joints, ys, xs) - tags[:, None, None]) ** 2).sum(axis=-1))
    ys, xs = _within(ys, maps.shape[0]), _within(xs, maps.shape[1])
    fit = (maps.at(joints, ys, xs) - np.round(distance)).reshape(len(joints), -1)
    each, winner = np.arange(len(joints)), fit.argmax(axis=1)
    return fit[each, winner], ys[each, winner // BLOCK, 0], xs[each, 0, winner % BLOCK]
