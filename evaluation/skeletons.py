"""Which joint of the labels is which of the maps, and what is known about joints by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

from .inference import joints, runs, views

BY_SKELETON = "its skeleton"  # where the names of joints come from


def label_names(
    dataset: fo.Dataset, field: str, label_field: str, annotated: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """The joint names of a keypoints field, and where they come from.

    FiftyOne's importer of COCO files sets no skeleton: then the names are those of the annotations, else those of the
    run, or of the only built-in joint set, that has as many joints.

    Args:
        field: with the labelled people
        label_field: of the run that they are compared with
        annotated: names in a COCO file with the same people

    Raises:
        ValueError: if nothing tells
    """
    skeleton = dataset.skeletons.get(field) or dataset.default_skeleton
    if skeleton and skeleton.labels:
        return tuple(skeleton.labels), BY_SKELETON
    if annotated:
        return tuple(annotated), "the annotations"
    samples = views.all_samples(dataset)
    first = samples.match({f"{field}.keypoints.0": {"$exists": True}}).limit(1).values(f"{field}.keypoints.points")
    count = len(first[0][0]) if first else 0
    run = runs.read_record(dataset, label_field)
    if run and count and count == len(run.joints):
        return run.joints, f"the run '{label_field}', which has as many joints"
    fitting = [joint_set for joint_set in joints.JOINT_SETS.values() if count == len(joint_set)]
    if len(fitting) == 1:
        return fitting[0].joints, f"{fitting[0].name}, which has as many joints"
    several = f", and {' and '.join(known.name for known in fitting)} have as many" if fitting else ""
    raise ValueError(
        f"The joints of '{field}' have no names{several}. Give the field its skeleton: "
        f"dataset.skeletons['{field}'] = fo.KeypointSkeleton(labels=[...], edges=[]); dataset.save()."
    )


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Names of labels and the joints that they mean, as far as the names tell: "Left Wrist" is left_wrist."""
    plain = {_plain(joint): joint for joint in known}
    return {name: plain[_plain(name)] for name in names if _plain(name) in plain}


def _plain(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    sides = {"l": "left", "r": "right"}
    return "".join(sorted((sides.get(word, word) for word in words), key=lambda word: word not in ("left", "right")))


def check_names(names: Sequence[str], mapping: Mapping[str, str], known: Sequence[str]) -> str | None:
    """Why a mapping from names of labels to joints of the maps cannot be used, as a sentence; None if it can."""
    for what, wrong, right in (
        ("labels have no joint", [name for name in mapping if name not in names], names),
        ("maps have no joint", [joint for joint in mapping.values() if joint not in known], known),
    ):
        if wrong:
            return f"The {what} {', '.join(wrong)}; they have {', '.join(right)}."
    if len(set(mapping.values())) < len(mapping):
        return "Two joints of the labels are mapped to the same joint of the maps; every one needs its own."
    return None if mapping else "No joint of the labels is mapped to a joint of the maps, so nothing can be compared."


def sigmas(names: Sequence[str], run: runs.Record | None = None) -> NDArray[np.float64]:
    """OKS constants (K,) of joints by their names: the run's, else the usual ones."""
    known = dict(zip(run.joints, run.sigmas, strict=True)) if run and run.sigmas else {}
    usual = joints.usual_sigmas(names)
    return np.array([known.get(name, sigma) for name, sigma in zip(names, usual, strict=True)])


def twins(names: Sequence[str], run: runs.Record | None = None) -> NDArray[np.intp]:
    """For each joint (K,) the index of the one of the other side, else its own.

    What the run's joint set says, or, of joints that it lacks, the name: left_… and right_….
    """
    sides = {"left": "right", "right": "left"}
    other = {name: re.sub(r"\b(left|right)(?=_)", lambda side: sides[side[0]], name) for name in names}
    if run and run.flip:
        other |= {joint: run.joints[k] for joint, k in zip(run.joints, run.flip, strict=True)}
    return np.array([names.index(other[name]) if other[name] in names else k for k, name in enumerate(names)], np.intp)
