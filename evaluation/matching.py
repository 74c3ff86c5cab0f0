"""The maps of one image against its labelled people: peaks, and what became of each labelled joint.

Pure functions of arrays. Places are pixels of the image, sizes of people the square roots of their areas. Thresholds
and names are explained in docs/evaluation.md.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.floating]
Indices = NDArray[np.integer]

THRESHOLD = 0.2  # value from which on a local maximum counts, as in benchmarks.accuracy
RADIUS = 0.15  # of the root of the person's area: a peak that near is at its joint, as in benchmarks.accuracy
SHIFT = 0.75  # of the root of the person's area: a stray peak that near is taken for the joint, moved
MATCHED_OKS = 0.1  # below it a person of the model and a labelled one are not the same
SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}  # COCO's; areas up to, pixels^2

FOUND, SHIFTED, SWAPPED, TAKEN, MISSED = "found", "shifted", "swapped", "taken", "missed"
STATUSES = (FOUND, SHIFTED, SWAPPED, TAKEN, MISSED)
UNLABELLED = "unlabelled"
NOTHING = "nothing"  # is seen where no map reaches the threshold
FALSE = "false"  # of a stray peak that explains no joint
NOBODY = 1e6  # a cost that no assignment would choose


@dataclass(frozen=True)
class Truth:
    """The labelled people of an image.

    Attributes:
        points: (P, K, 2) pixels of the image, NaN = not labelled
        areas: (P,) pixels^2
        boxes: (P, 4) left, top, right, bottom, pixels; a peak in it of a joint that this person has no label of is
            nobody's mistake
        ignored: (B, 4) boxes where no peak is a mistake: crowds, and people without labelled joints
    """

    points: Floats
    areas: Floats
    boxes: Floats
    ignored: Floats

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(P, K)"""
        return ~np.isnan(self.points[..., 0])


@dataclass(frozen=True)
class Peaks:
    """Local maxima of maps.

    Attributes:
        joints: (N,) whose map
        places: (N, 2) x and y, pixels of the image
        values: (N,) 0 to 1
    """

    joints: Indices
    places: Floats
    values: Floats


@dataclass(frozen=True)
class Verdict:
    """What became of the labelled joints of an image.

    Attributes:
        statuses: (P, K) of :data:`STATUSES`, or ``"unlabelled"``
        values: (P, K) the joint's map at its place
        distances: (P, K) from the joint to its own peak where it is found or shifted, else to the nearest one of its
            map, in roots of the person's area; NaN = no peak
        peaks: (P, K) the value of that peak
        seen_as: (P, K) the joint whose map is highest at that place, -1 where none reaches the threshold
        stray: peaks that are not at a joint of theirs, and not where peaks are ignored
        kinds: for each stray peak, whether it is a joint ``"shifted"``, one of the other side ``"swapped"``, or
            ``"false"``
    """

    statuses: NDArray[np.object_]
    values: Floats
    distances: Floats
    peaks: Floats
    seen_as: Indices
    stray: Peaks
    kinds: list[str] = field(default_factory=list)


def find_peaks(maps: NDArray[np.float32], image_wh: tuple[float, float], threshold: float = THRESHOLD) -> Peaks:
    """Local maxima of at least a threshold.

    A peak is the largest value within a hundredth of the map's longer side, at least 2 pixels. A plateau is one peak,
    at its first pixel.

    Args:
        maps: (K, h, w) 0 to 1
        image_wh: width and height of the image
        threshold: 0 to 1
    """
    _, height, width = maps.shape
    reach = reach_of(height, width)
    framed = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)), constant_values=-1)
    flat = framed.reshape(-1)
    found = np.flatnonzero(flat >= threshold)
    values = flat[found]
    steps = itertools.product(range(-reach, reach + 1), repeat=2)
    # Near neighbours first: hardly any pixel passes the comparison with them.
    for dy, dx in sorted(steps, key=lambda step: abs(step[0]) + abs(step[1])):
        offset = dy * framed.shape[2] + dx
        if offset:
            others = flat[found + offset]
            keep = others < values if offset < 0 else others <= values
            found, values = found[keep], values[keep]
    first = _first_of_plateaus(framed, found)
    found, values = found[first], values[first]
    joints, ys, xs = np.unravel_index(found, framed.shape)
    scale = np.array(image_wh) / (width, height)
    places = (np.stack([xs, ys], axis=1) - reach + 0.5) * scale
    return Peaks(joints, places, values)


def reach_of(height: int, width: int) -> int:
    """How far around a pixel of a map there is nothing higher if it is a peak."""
    return max(2, round(max(height, width) / 100))


def _first_of_plateaus(maps: NDArray[np.float32], found: Indices) -> NDArray[np.bool_]:
    """Which peaks, flat indices in their order, are the first of their plateau: a wide one has several."""
    first = np.ones(len(found), bool)
    joints, ys, xs = np.unravel_index(found, maps.shape)
    values = maps.reshape(-1)[found]
    seen: dict[tuple[int, float], list[int]] = {}
    for number, (joint, value) in enumerate(zip(joints.tolist(), values.tolist(), strict=True)):
        seen.setdefault((joint, value), []).append(number)
    for (joint, value), numbers in seen.items():
        if len(numbers) > 1:  # seldom: peaks of equal height
            parts = label(maps[joint] == value, np.ones((3, 3)))[0]
            at = parts[ys[numbers], xs[numbers]]
            first[numbers] = False
            first[np.array(numbers)[np.unique(at, return_index=True)[1]]] = True
    return first


def values_at(maps: NDArray[np.float32], places: Floats, image_wh: tuple[float, float]) -> Floats:
    """The values (N, K) of all maps at N places (x, y in pixels of the image), interpolated."""
    _, height, width = maps.shape
    ys, xs = ((places / image_wh) * (width, height) - 0.5).T[::-1]
    ys, xs = ys.clip(0, height - 1), xs.clip(0, width - 1)
    top, left = ys.astype(np.intp), xs.astype(np.intp)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    fy, fx = ys - top, xs - left
    upper = maps[:, top, left] * (1 - fx) + maps[:, top, right] * fx
    lower = maps[:, bottom, left] * (1 - fx) + maps[:, bottom, right] * fx
    return (upper * (1 - fy) + lower * fy).T


def judge(
    maps: NDArray[np.float32],
    truth: Truth,
    twins: Indices,
    image_wh: tuple[float, float],
    threshold: float = THRESHOLD,
    radius: float = RADIUS,
) -> Verdict:
    """Compare the maps of an image with its labels.

    Args:
        maps: (K, h, w) 0 to 1
        truth: of the same K joints
        twins: (K,) the joint of the other side; itself for joints in the middle
        image_wh: width and height of the image
        threshold: value from which on a local maximum counts
        radius: in roots of the person's area: a peak that near is at its joint
    """
    labelled = truth.labelled
    peaks = find_peaks(maps, image_wh, threshold)
    statuses = np.full(labelled.shape, UNLABELLED, object)
    values, distances, nearest = np.full((3, *labelled.shape), np.nan)
    seen_as = np.full(labelled.shape, -1)
    if labelled.any():
        at_places = values_at(maps, truth.points[labelled], image_wh)
        best = at_places.argmax(axis=1)
        values[labelled] = at_places[np.arange(len(best)), np.nonzero(labelled)[1]]
        seen_as[labelled] = np.where(at_places.max(axis=1) >= threshold, best, -1)

    # (P, N): how far each peak is from the label of the same joint, and of the joint of the other side
    apart, mirrored = (_distances(truth, peaks, joints) for joints in (peaks.joints, twins[peaks.joints]))
    at_joint: NDArray[np.bool_] = np.any(apart <= radius, axis=0)
    kinds: list[str | None] = [None] * len(peaks.values)
    for joint in np.flatnonzero(labelled.any(axis=0)):
        people, own = np.flatnonzero(labelled[:, joint]), np.flatnonzero(peaks.joints == joint)
        near = apart[np.ix_(people, own)]
        if len(own):
            distances[people, joint] = near.min(axis=1)
            nearest[people, joint] = peaks.values[own[near.argmin(axis=1)]]
        rows, columns = assign(near, radius)
        distances[people[rows], joint] = near[rows, columns]
        nearest[people[rows], joint] = peaks.values[own[columns]]
        statuses[people, joint] = np.where((near <= radius).any(axis=1), TAKEN, MISSED)
        statuses[people[rows], joint] = FOUND

        lost = people[statuses[people, joint] == MISSED]
        free = own[~at_joint[own]]
        moved = dict(zip(*assign(apart[np.ix_(lost, free)], SHIFT), strict=True))
        other = np.flatnonzero((peaks.joints == twins[joint]) & ~at_joint & (twins[joint] != joint))
        for row, person in enumerate(lost):
            swapped = other[mirrored[person, other] <= radius]
            peak = free[moved[row]] if row in moved else None
            if len(swapped) and (peak is None or mirrored[person, peak] <= radius):
                statuses[person, joint] = SWAPPED
                kinds[swapped[mirrored[person, swapped].argmin()]] = SWAPPED
            elif peak is not None:
                statuses[person, joint] = SHIFTED
                distances[person, joint], nearest[person, joint] = apart[person, peak], peaks.values[peak]
                kinds[peak] = kinds[peak] or SHIFTED
    stray = np.array([not at_joint[n] and (kinds[n] is not None or not _ignored(truth, peaks, n)) for n in _all(peaks)])
    chosen = np.flatnonzero(stray)
    return Verdict(
        statuses,
        values,
        distances,
        nearest,
        seen_as,
        Peaks(peaks.joints[chosen], peaks.places[chosen], peaks.values[chosen]),
        [kinds[n] or FALSE for n in chosen],
    )


def _all(peaks: Peaks) -> range:
    return range(len(peaks.values))


def _distances(truth: Truth, peaks: Peaks, joints: Indices) -> Floats:
    """From each person's label of the joints (N,) to the peaks: (P, N), in roots of areas; infinite without a label."""
    apart = np.linalg.norm(truth.points[:, joints] - peaks.places, axis=2) / np.sqrt(truth.areas)[:, None]
    return np.where(np.isnan(apart), np.inf, apart)


def assign(distances: Floats, limit: float) -> tuple[Indices, Indices]:
    """Pairs of rows and columns no further apart than a limit: as many as there can be, then the nearest."""
    if not distances.size:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    rows, columns = linear_sum_assignment(np.where(distances <= limit, distances, NOBODY))
    near = distances[rows, columns] <= limit
    return rows[near], columns[near]


def _ignored(truth: Truth, peaks: Peaks, number: int) -> bool:
    """Whether a peak lies where it may well be right: in a crowd, or on a person without a label of that joint."""
    x, y = peaks.places[number]
    unlabelled = truth.boxes[~truth.labelled[:, peaks.joints[number]]]
    left, top, right, bottom = np.concatenate([truth.ignored, unlabelled]).T
    return bool(((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any())


# --- people


def oks(truth: Truth, people: Floats, sigmas: Floats) -> Floats:
    """The object keypoint similarity of labelled people and people of the model, as COCO defines it: (P, Q).

    Args:
        truth: of P people
        people: (Q, K, 2) pixels of the image, NaN = absent, which counts as infinitely far
        sigmas: (K,) COCO's constants
    """
    squares = ((truth.points[:, None] - people[None]) ** 2).sum(axis=3)  # P, Q, K
    spread = 2 * truth.areas[:, None, None] * (2 * sigmas) ** 2
    similar = np.nan_to_num(np.exp(-squares / spread))  # not labelled and absent: 0
    return similar.sum(axis=2) / np.maximum(truth.labelled.sum(axis=1), 1)[:, None]


def match_people(similarities: Floats) -> Floats:
    """The OKS of each labelled person with the model's person it is matched to, one to one: (P,), 0 = with nobody."""
    best = np.zeros(len(similarities))
    if similarities.size:
        rows, columns = linear_sum_assignment(-similarities)
        best[rows] = similarities[rows, columns]
    best[best < MATCHED_OKS] = 0
    return best
