"""Quick finds: views of a run's samples by the values that it stored. The database does all the work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone as fo
from fiftyone import ViewField as F

from ..inference.joints import spoken
from .state import Run


def known(run: Run, joint_index: int | None, joint: str | None) -> Iterator[tuple[str, str, str]]:
    """The finds that the run's fields allow: name, label, and what it shows."""
    if "num_people" in run.others:
        yield "nobody", "Nobody found", "Samples in which no person was found"
        yield "crowd", "Most people", "Samples with people, those with most people first"
    if "confidence" in run.others:
        which = "people" if "num_people" in run.others else "maps"
        yield "unsure", "Least confident", f"Samples with {which}, those with the lowest peak first"
    if run.people and joint is not None and joint_index is not None:
        name = spoken(joint)
        yield "weakest", f"Weakest {name}", f"Samples with people, those whose {name} is missing or weak first"


def find(view: fo.DatasetView, run: Run, name: str, joint_index: int | None) -> fo.DatasetView:
    """The samples of a view that a find is after, in its order.

    Raises:
        ValueError: if the run lacks the field for it
    """
    people, confidence = run.others.get("num_people"), run.others.get("confidence")
    if name == "nobody" and people:
        return view.match(F(people) == 0)
    if name == "crowd" and people:
        return view.match(F(people) > 0).sort_by(people, reverse=True)
    if name == "unsure" and confidence:
        found = view.match(F(people) > 0) if people else view.match(F(confidence) != None)  # noqa: E711
        return found.sort_by(confidence)
    if name == "weakest" and run.people and joint_index is not None:
        persons = F(f"{run.people}.keypoints")
        value = F("confidence")[joint_index]
        # a joint that was not found is NaN, which is below every number
        return view.match(persons.length() > 0).sort_by(persons.map((value > 0).if_else(value, 0)).mean())
    raise ValueError(f"The run '{run.label_field}' has no field for the find '{name}'.")


def stages(view: list[dict[str, Any]] | None) -> list[Any]:
    """A view as the App sends it, without what the App adds to tell its stages apart: for comparing."""
    return [[stage.get("_cls"), stage.get("kwargs")] for stage in view or []]
