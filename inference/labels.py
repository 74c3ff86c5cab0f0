"""Maps and people as FiftyOne labels."""

from __future__ import annotations

import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

from .geometry import Warp
from .grouping import People


def memory_heatmap(values: NDArray) -> fo.Heatmap:
    """A map (h, w), uint8 or float32, kept in the database with its explicit range."""
    return fo.Heatmap(map=values, range=[0, 255] if values.dtype == np.uint8 else [0, 1])


def file_heatmap(path: str) -> fo.Heatmap:
    """A map in a PNG file; without a range FiftyOne reads it as [0, 255]."""
    return fo.Heatmap(map_path=path)


def keypoints(people: People, warp: Warp) -> fo.Keypoints:
    """People as keypoints: points relative to the image, NaN where a joint is absent, with the heatmap's values."""
    joints = people.joints.astype(np.float64)
    points = warp.to_image(joints[:, :, :2]) / np.array(warp.image_wh)
    values = joints[:, :, 2]
    points[values <= 0] = np.nan
    values = np.where(values > 0, values, np.nan)
    return fo.Keypoints(
        keypoints=[
            fo.Keypoint(label="person", points=p.tolist(), confidence=v.tolist(), score=float(score))
            for p, v, score in zip(points, values, people.scores, strict=True)
        ]
    )
