"""What a peak's value means: `python -m training.calibrate --data DIR --name higherhrnet-lite-coco`.

Looks at the peaks that a network raises on held-out photos (see `dataset.split`): how many of those of about the same
value lie on a joint. A monotone curve through that is what makes a calibrated value of 0.5 mean "one in two".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inference.network import HigherHRNet
from training.dataset import Photo, labelled
from training.evaluate import COCO_LONG_SIDE, SEGMENT, infer

RADIUS = 0.15  # of the root of a person's area, as in the accuracy benchmark
LOWEST = 0.02  # peaks below are not looked at


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
