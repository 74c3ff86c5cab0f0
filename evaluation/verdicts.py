"""What an evaluation writes: names and types of fields and attributes, and their values for one sample.

Their meaning is explained in docs/evaluation.md.
"""

from __future__ import annotations

from typing import Any

import fiftyone as fo
import numpy as np

from . import matching
from .inference import runs
from .matching import FALSE, FOUND, MISSED, SHIFTED, SWAPPED, TAKEN, Floats, Verdict
from .sources import Pairing, Sources
from .truth import Labels

DIGITS = 4

FIELDS: dict[str, type] = {
    "recall": fo.FloatField,
    "missed": fo.IntField,
    "shifted": fo.IntField,
    "swapped": fo.IntField,
    "taken": fo.IntField,
    "false_peaks": fo.IntField,
    "mistakes": fo.IntField,
    "worst": fo.StringField,
    "distance": fo.FloatField,
    "oks": fo.FloatField,
    "stray_peaks": fo.Keypoints,
    "status": fo.StringField,
}
JOINT_ATTRIBUTES: dict[str, type] = {  # one value per point
    "status": fo.StringField,
    "value": fo.FloatField,
    "distance": fo.FloatField,
    "oks_distance": fo.FloatField,
    "peak": fo.FloatField,
    "seen_as": fo.StringField,
}
PERSON_ATTRIBUTES: dict[str, type] = {"area": fo.FloatField, "area_from": fo.StringField, "oks": fo.FloatField}


def fields(key: str) -> dict[str, type]:
    """The sample fields of an evaluation, with their types."""
    return {runs.field_name(key, name): kind for name, kind in FIELDS.items()}


def attributes(key: str, gt_field: str) -> dict[str, type]:
    """The attributes of labels that an evaluation writes, as paths, with the types of their values."""
    every = {**JOINT_ATTRIBUTES, **PERSON_ATTRIBUTES}
    return {f"{gt_field}.keypoints.{runs.field_name(key, name)}": kind for name, kind in every.items()}


# --- the values of one sample


def of_sample(verdict: Verdict, oks: Floats | None, sources: Sources, image_wh: tuple[float, float]) -> dict[str, Any]:
    """The values of a sample's fields, by the ends of their names.

    Args:
        verdict: on its maps
        oks: (P,) of its people, 0 = matched with nobody; None = the run has no people
        sources: what is compared
        image_wh: width and height of its image
    """
    counts = {status: int((verdict.statuses == status).sum()) for status in matching.STATUSES}
    labelled = sum(counts.values())
    counts[FALSE] = verdict.kinds.count(FALSE)
    mistakes = {kind: count for kind, count in counts.items() if kind != FOUND}
    matched = oks[oks > 0] if oks is not None else np.zeros(0)
    seen = np.isin(verdict.statuses, (FOUND, SHIFTED))
    return {
        "recall": counts[FOUND] / labelled if labelled else None,
        "missed": counts[MISSED],
        "shifted": counts[SHIFTED],
        "swapped": counts[SWAPPED],
        "taken": counts[TAKEN],
        "false_peaks": counts[FALSE],
        "mistakes": sum(mistakes.values()),
        "worst": max(mistakes, key=lambda kind: mistakes[kind]) if any(mistakes.values()) else None,
        "distance": round(float(verdict.distances[seen].mean()), DIGITS) if seen.any() else None,
        "oks": round(float(matched.mean()), DIGITS) if len(matched) else None,
        "stray_peaks": _stray(verdict, sources.pairing, image_wh).to_dict(),
        "status": runs.DONE,
    }


def _stray(verdict: Verdict, pairing: Pairing, image_wh: tuple[float, float]) -> fo.Keypoints:
    peaks = verdict.stray
    points = (peaks.places / image_wh).round(DIGITS + 1)
    return fo.Keypoints(
        keypoints=[
            fo.Keypoint(
                label=pairing.names[joint],
                points=[point],
                confidence=[round(value, DIGITS)],
                kind=kind,
            )
            for joint, point, value, kind in zip(
                peaks.joints, points.tolist(), peaks.values.tolist(), verdict.kinds, strict=True
            )
        ]
    )


def of_people(
    verdict: Verdict, oks: Floats | None, sources: Sources, labels: Labels
) -> list[tuple[Any, dict[str, Any]]]:
    """The values of the attributes of each labelled person, by the ends of their names, with the id of its label."""
    names = [*sources.pairing.names, matching.NOTHING]  # -1 = nothing
    columns, count = sources.pairing.columns, len(sources.pairing.labels)
    made = []
    for p, label_id in enumerate(labels.ids):
        seen = zip(verdict.seen_as[p], labels.truth.labelled[p], strict=True)
        seen_as = [names[k] if labelled else matching.UNLABELLED for k, labelled in seen]
        numbers = {
            "value": verdict.values[p],
            "distance": verdict.distances[p],
            "oks_distance": verdict.distances[p] / (2 * sources.sigmas),
            "peak": verdict.peaks[p],
        }
        values: dict[str, Any] = {
            name: _spread(np.round(each, DIGITS).tolist(), columns, count, float("nan"))
            for name, each in numbers.items()
        }
        values["status"] = _spread(verdict.statuses[p].tolist(), columns, count, matching.UNLABELLED)
        values["seen_as"] = _spread(seen_as, columns, count, matching.UNLABELLED)
        values["area"] = round(float(labels.truth.areas[p]), 2)
        values["area_from"] = labels.sources[p]
        values["oks"] = round(float(oks[p]), DIGITS) if oks is not None else None
        made.append((label_id, values))
    return made


def _spread(values: list[Any], columns: tuple[int, ...], count: int, nothing: Any) -> list[Any]:
    """Values of the joints that are compared, in a list with one value for each point of a label."""
    spread = [nothing] * count
    for column, value in zip(columns, values, strict=True):
        spread[column] = value
    return spread
