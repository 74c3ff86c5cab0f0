"""Splitting a run into parts that different processes work on.

A part is a range of ids, so that no list of a million ids is made or kept. That needs a view whose stages judge each
sample by itself and by nothing that the run changes; of other views the ids are written down, up to a limit.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass

import fiftyone as fo
from bson import ObjectId
from fiftyone.core.stages import ViewStage

from .views import add_stages

MAX_IDS = 100_000  # of a view whose samples have to be written down: 4 MB in all
# They give the same answer for a sample whatever others there are.
STAGES_PER_SAMPLE = (
    fo.Exclude,
    fo.ExcludeBy,
    fo.ExcludeFields,
    fo.ExcludeLabels,
    fo.Exists,
    fo.FilterField,
    fo.FilterKeypoints,
    fo.FilterLabels,
    fo.GeoWithin,
    fo.LimitLabels,
    fo.MapLabels,
    fo.MapValues,
    fo.Match,
    fo.MatchLabels,
    fo.MatchTags,
    fo.SelectBy,
    fo.SelectFields,
    fo.SelectLabels,
    fo.SetField,
    fo.SortBy,
)


@dataclass(frozen=True)
class Shard:
    """A part of a target.

    Attributes:
        view: whose stages are kept with the part
        first, last: ids between which its samples lie, both included; None if the view is the part
    """

    view: fo.DatasetView
    first: str | None = None
    last: str | None = None

    def select(self) -> fo.DatasetView:
        """The samples of the part: first the range of ids, then the view's filters."""
        if self.first is None or self.last is None:
            return self.view
        slices, filters = _stages(self.view)
        selected = _from_stages(self.view, slices).match(
            {"_id": {"$gte": ObjectId(self.first), "$lte": ObjectId(self.last)}}
        )
        return add_stages(selected, filters)


def split(view: fo.core.collections.SampleCollection, count: int, written: Iterable[str]) -> list[Shard]:
    """Split a target into at most ``count`` parts of nearly the same size that have no sample in common.

    Args:
        view: a dataset or view
        count: at least 1
        written: names of the fields that the run writes

    Raises:
        ValueError: if the samples of the view have to be written down and are too many
    """
    view = view.view()
    _, filters = _stages(view)
    if all(isinstance(stage, STAGES_PER_SAMPLE) for stage in filters) and not _mentioned(filters, written):
        bounds = {"first": {"$min": "$_id"}, "last": {"$max": "$_id"}}
        ranges = view._aggregate(
            post_pipeline=[
                {"$project": {"_id": True}},
                {"$bucketAuto": {"groupBy": "$_id", "buckets": count, "output": bounds}},
            ]
        )
        return [Shard(view, str(part["first"]), str(part["last"])) for part in ranges]
    base, ids = _ids(view)
    count = min(count, len(ids))
    cuts = [len(ids) * part // count for part in range(count + 1)] if count else []
    return [Shard(base.select(ids[start:stop])) for start, stop in itertools.pairwise(cuts)]


def written_down(view: fo.DatasetView, written: Iterable[str]) -> fo.DatasetView:
    """A view that stays the same whatever becomes of the fields that the run writes.

    Raises:
        ValueError: if its samples have to be written down and are too many
    """
    if not _mentioned(_stages(view)[1], written):
        return view
    base, ids = _ids(view)
    return base.select(ids)


def _ids(view: fo.DatasetView) -> tuple[fo.DatasetView, list[str]]:
    """The ids of a view, and what they are to be selected from."""
    ids = sorted(view.limit(MAX_IDS + 1).values("id"))
    if len(ids) > MAX_IDS:
        raise ValueError(
            f"This view has more than {MAX_IDS:,} samples, and they would change while the run works on them: it "
            "selects, limits, skips, takes or shuffles samples, or filters by what the run writes. Tag them first, "
            "view.tag_samples('todo'), and run on dataset.match_tags('todo')."
        )
    chosen = [stage for stage in view._stages if isinstance(stage, fo.SelectGroupSlices)]
    return _from_stages(view, chosen[-1:]), ids  # ids alone would be of a grouped dataset


def _stages(view: fo.DatasetView) -> tuple[list[ViewStage], list[ViewStage]]:
    """The stages that choose slices of a grouped dataset, which have to come first, and the others."""
    stages = list(view._stages)
    slices = list(itertools.takewhile(lambda stage: isinstance(stage, fo.SelectGroupSlices), stages))
    return slices, stages[len(slices) :]


def _from_stages(view: fo.DatasetView, stages: Iterable[ViewStage]) -> fo.DatasetView:
    return add_stages(view._dataset.view(), stages)


def _mentioned(stages: Iterable[ViewStage], written: Iterable[str]) -> bool:
    """Whether a stage may look at a field that the run writes."""
    text = json.dumps([stage._serialize(include_uuid=False) for stage in stages], default=str)
    return any(name in text for name in (*written, "last_modified_at"))
