"""How far the joints nearby tell a body from a speck: the gate of `training/export.py`.

Looks at the peaks that a network raises on held-out photos (see `dataset.split`), because on the photos that it was
trained with it has learned to stay dark. A logistic regression on the evidence around each peak.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from torch import Tensor
from torch.nn import functional

from inference.context import CELL, ContextGate, evidence
from inference.network import HigherHRNet
from training.calibrate import RADIUS
from training.dataset import PERSON_MARGIN, Photo, grown, labelled
from training.evaluate import SEGMENT, infer, strip_without_people

Array = NDArray[np.floating]
REACH = 0.25  # of the input's short side
LOWEST = 0.05  # peaks below are not looked at
# What all peaks of a kind weigh together: on joints, where nobody is in the picture, and away from those who are there.
# Joints weigh little: people are found on the maps before the gate, and what it dims there is dimmed for the eye only.
WEIGHTS = {"joint": 0.2, "person-free": 1.0, "background": 0.4}
UNIT = 0.2  # of evidence, to which
DECAY = 0.001  # of the squared weights is meant


def fit_context_gate(network: HigherHRNet, photos: Iterable[Photo], input_size: int) -> ContextGate:
    """The gate that tells best whether a peak lies on a joint, or where nobody is.

    Args:
        network: in eval mode, without a gate
        photos: that it was not trained on, with and without people
        input_size: short side in pixels
    """
    reach = round(REACH * input_size / (2 * CELL))  # maps are half as large
    kinds: dict[str, list[Array]] = {kind: [] for kind in WEIGHTS}
    for photo in photos:
        image = photo.image()
        if not photo.record["persons"] and not photo.record["ignore"]:
            kinds["person-free"].append(peaks(*infer(network, image, input_size), reach)[0])
            continue
        around, joints, places = peaks(*infer(network, image, input_size), reach)
        on_joint, away = whose(joints, places, photo.record)
        kinds["joint"].append(around[on_joint])
        kinds["background"].append(around[away])
        strip = strip_without_people(photo)
        if strip:
            x0, y0, x1, y1 = strip
            kinds["person-free"].append(peaks(*infer(network, image[y0:y1, x0:x1], input_size), reach)[0])
    found = {kind: np.concatenate(arrays) for kind, arrays in kinds.items()}
    shares = np.concatenate([np.full(len(rows), WEIGHTS[kind] / max(1, len(rows))) for kind, rows in found.items()])
    hits = np.concatenate([np.full(len(rows), kind == "joint") for kind, rows in found.items()])
    return fit_gate(np.concatenate(list(found.values())), hits, shares / shares.sum(), reach)


def peaks(maps: Tensor, tags: Tensor, scale: float, reach: int) -> tuple[Array, NDArray[np.integer], Array]:
    """The peaks of what :func:`training.evaluate.infer` gave, with the evidence within ``reach`` cells of them.

    Returns:
        the evidence around each of N peaks (N, K), its joint (N,), its place (N, 2) in photo pixels
    """
    is_peak = (maps == functional.max_pool2d(maps, 3, 1, 1)) & (maps > LOWEST)
    joints, rows, columns = torch.nonzero(is_peak, as_tuple=True)
    around = evidence(maps[None], reach).permute(0, 3, 1, 2)
    fine = functional.interpolate(around, scale_factor=CELL, mode="bilinear")[0]
    places = torch.stack([columns, rows], dim=1).numpy()
    return fine[:, rows, columns].T.numpy(), joints.numpy(), (places + 0.5) / scale


def whose(joints: NDArray[np.integer], places: Array, record: dict) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of N peaks lie on a labelled joint, and which away from all people: (N,) each."""
    on_joint, away = np.zeros(len(joints), bool), np.ones(len(joints), bool)
    for person in labelled(record):
        radius = RADIUS * np.sqrt(SEGMENT * person["bbox"][2] * person["bbox"][3])
        labels = np.reshape(person["keypoints"], (-1, 3))[joints]  # of each peak's own joint
        on_joint |= (labels[:, 2] > 0) & (np.hypot(*(places - labels[:, :2]).T) <= radius)
    for box in (*record["ignore"], *[person["bbox"] for person in record["persons"]]):
        x, y, w, h = grown(box, 0, PERSON_MARGIN)
        away &= ((places < (x, y)) | (places > (x + w, y + h))).any(axis=1)
    return on_joint, away & ~on_joint


def fit_gate(values: Array, hits: NDArray[np.bool_], shares: Array, reach: int) -> ContextGate:
    """Logistic regression with weights of at least 0.

    Args:
        values: (N, K) evidence
        hits: (N,) whether a body is there
        shares: (N,) what each counts, 1 together
        reach: within which the evidence was found, cells
    """
    units = values.astype(float) / UNIT

    def loss(parameters: Array) -> tuple[float, Array]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = units @ weights + bias
        wrong = -(shares * np.where(hits, log_expit(logits), log_expit(-logits))).sum() + DECAY * (weights**2).sum()
        slopes = shares * (expit(logits) - hits)
        return wrong, np.append(units.T @ slopes + 2 * DECAY * weights, slopes.sum())

    start = np.zeros(values.shape[1] + 1)
    bounds = [(0, None)] * values.shape[1] + [(None, None)]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return ContextGate(tuple((best[:-1] / UNIT).round(3).tolist()), round(float(best[-1]), 3), reach)
