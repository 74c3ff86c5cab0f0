"""What a peak's value means: the calibration of `training/export.py`.

Looks at the peaks that a network raises on held-out photos (see `dataset.split`): how many of those of about the same
value lie on a joint. A rising curve through that makes a calibrated value of 0.5 mean "one in two".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor
from torch.nn import functional

from inference.calibration import Calibration
from inference.network import HigherHRNet
from training.dataset import Photo, labelled
from training.evaluate import SEGMENT, infer

RADIUS = 0.15  # of the root of a person's area, as in the accuracy benchmark
LOWEST = 0.02  # peaks below are not looked at
KNOTS = np.array([0.1, 0.2, 0.3, 0.45, 0.65, 1.0])  # values of the network where the pieces of the curve end
FLATTEST = 0.05  # slope of a piece: the curve rises everywhere, so no two values become one
END_SLOPE = 0.2  # slope of the line to (1, 1) that the curve stays below: 8 bits still tell strong peaks apart


def fit(network: HigherHRNet, photos: Iterable[Photo], input_size: int) -> Calibration:
    """The rising curve from (0, 0) with the least squared error between a peak's value and whether it is on a joint.

    Args:
        network: in eval mode
        photos: that it was not trained on, with and without people
        input_size: short side in pixels
    """
    judged = []
    for photo in photos:
        maps, _, scale = infer(network, photo.image(), input_size)
        judged += list(judged_peaks(maps, scale, photo.record))
    values, hits = np.array(judged, float).reshape(-1, 2).T
    return fit_curve(values, hits)


def fit_curve(values: np.ndarray, hits: np.ndarray) -> Calibration:
    """The curve for N peaks: their values (N,) and whether they lie on a joint (N,), 0 or 1."""
    lengths = np.diff(KNOTS, prepend=0)
    passed = np.clip(values[:, None] - (KNOTS - lengths), 0, lengths)  # of each piece, by each value
    slopes = lsq_linear(passed, hits, bounds=(FLATTEST, np.inf)).x
    heights = np.minimum(np.cumsum(slopes * lengths), 1 - END_SLOPE * (1 - KNOTS))
    return Calibration(tuple(zip(KNOTS.tolist(), heights.round(4).tolist(), strict=True)))


def judged_peaks(maps: Tensor, scale: float, record: dict) -> Iterator[tuple[float, bool]]:
    """The peaks of a photo's network map, and whether each lies on a joint.

    Left out is what cannot be judged: peaks in crowds and people without joints (``ignore``), and those inside a
    person of whom that joint is not labelled.

    Args:
        maps: (K, h, w) of the photo
        scale: map pixels per photo pixel
        record: of the photo
    """
    peaks = (maps == functional.max_pool2d(maps, 5, 1, 2)) & (maps > LOWEST)
    joints, rows, columns = torch.nonzero(peaks, as_tuple=True)
    values = maps[joints, rows, columns].tolist()
    people = labelled(record)
    boxes = np.array([person["bbox"] for person in people]).reshape(-1, 4)
    points = np.array([person["keypoints"] for person in people], float).reshape(len(people), len(maps), 3)
    radius = RADIUS * np.sqrt(SEGMENT * boxes[:, 2] * boxes[:, 3])
    ignored = np.array(record["ignore"]).reshape(-1, 4)
    for k, value, y, x in zip(joints.tolist(), values, rows.tolist(), columns.tolist(), strict=True):
        place = (np.array([x, y]) + 0.5) / scale
        seen = points[:, k, 2] > 0
        hit = (np.hypot(*(points[:, k, :2] - place).T) <= radius) & seen
        if hit.any():
            yield value, True
        elif not _inside(place, ignored).any() and not (_inside(place, boxes) & ~seen).any():
            yield value, False


def _inside(place: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    return ((place >= boxes[:, :2]) & (place <= boxes[:, :2] + boxes[:, 2:])).all(axis=1)
