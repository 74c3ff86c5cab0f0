"""What poses people take: the prior that grouping uses, from labelled people."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from inference.joints import COCO
from inference.pose_prior import PosePrior
from training.dataset import Photo

LEAST_SIDE = 48  # pixels, root of the box area: places of smaller people's joints are rough
LEAST_VARIANCE = 1e-3  # of labels' own errors


def fit_pose_prior(photos: Iterable[Photo]) -> PosePrior:
    """Mean and covariance of the people all of whose joints are labelled, and of their mirror images.

    Raises:
        ValueError: if there are fewer than two such people
    """
    poses = []
    for photo in photos:
        for person in photo.record["persons"]:
            labels = np.array(person["keypoints"], float).reshape(-1, 3)
            width, height = person["bbox"][2:]
            if width * height < LEAST_SIDE**2 or not (labels[:, 2] > 0).all():
                continue
            joints = labels[:, :2] - labels[:, :2].mean(axis=0)
            joints /= np.sqrt((joints**2).sum(axis=1).mean())
            poses += [joints, joints[list(COCO.flip)] * (-1, 1)]
    if len(poses) < 4:
        raise ValueError("Fewer than two people have labels for all joints; a pose prior needs more.")
    flat = np.array(poses).reshape(len(poses), -1)
    covariance = np.cov(flat.T) + LEAST_VARIANCE * np.eye(flat.shape[1])
    return PosePrior.from_arrays(flat.mean(axis=0).reshape(-1, 2), covariance)
