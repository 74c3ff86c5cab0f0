"""The samples that people choose: whether a run can work on them, and reading and writing them in bulk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, cast

import fiftyone as fo
from bson import ObjectId
from fiftyone.core.stages import ViewStage
from pymongo import UpdateOne
from pymongo.errors import AutoReconnect

logger = logging.getLogger(__name__)
T = TypeVar("T")

PAGE = 1000  # samples asked of the database at once
PATIENCE = 120  # seconds for a database to come back
COUNTING = (fo.Limit, fo.Skip, fo.Take)  # stages that let samples through by their number


def target_problem(view: fo.core.collections.SampleCollection) -> str | None:
    """Why a run cannot work on such a view, with what to do instead; None if it can."""
    if view._is_dynamic_groups:
        return "This view groups samples by a field. Run on view.flatten(), or choose the whole dataset as the target."
    if view.media_type == "group":
        return (
            "This is a grouped dataset. Choose the slice with the images first, for example "
            "view.select_group_slices('left'), and run on that view."
        )
    if view.media_type == "video":
        return (
            "This is a video dataset. Make a dataset of its frames first, for example "
            "dataset.to_frames(sample_frames=True).clone('frames'), and run on that."
        )
    if isinstance(view, fo.DatasetView) and view._is_generated:
        return (
            "This view shows patches, frames or clips. Run on the samples themselves, or on a dataset made from the "
            "view with clone()."
        )
    if view.media_type not in ("image", None):
        return f"Pose heatmaps need images; this view holds {view.media_type} samples."
    if not len(view.limit(1)):
        return "There is no sample in this view. Clear its filters, or choose another view."
    return None


def all_samples(dataset: fo.Dataset) -> fo.DatasetView:
    """All samples of a dataset: of a grouped one ``dataset.match()``, ``count()`` and so on see the active slice."""
    return dataset.select_group_slices(_allow_mixed=True) if dataset.media_type == "group" else dataset.view()


def whole_samples(view: fo.core.collections.SampleCollection) -> fo.DatasetView:
    """The same samples with all of their fields, also those that the view leaves out."""
    hiding = (fo.SelectFields, fo.ExcludeFields)
    return add_stages(view._dataset.view(), (stage for stage in view.view()._stages if not isinstance(stage, hiding)))


def add_stages(view: fo.DatasetView, stages: Iterable[ViewStage]) -> fo.DatasetView:
    for stage in stages:
        view = view.add_stage(stage)
    return view


def pages(view: fo.core.collections.SampleCollection) -> Iterator[tuple[str, str]]:
    """Ids and files of a view in the order of ids, a page at a time.

    No list of all samples is made, and no database cursor stays open while the network works, which would time out.
    Only of a view that is limited to a number of samples the ids are listed: what its stages let through may change
    with what a run writes.
    """
    if isinstance(view, fo.DatasetView) and any(isinstance(stage, COUNTING) for stage in view._stages):
        ids = sorted(map(ObjectId, view.values("id")))
        for start in range(0, len(ids), PAGE):
            yield from patiently(partial(_files, view._dataset, ids[start : start + PAGE]))
        return
    last = None
    while True:
        rest = view if last is None else view.match({"_id": {"$gt": ObjectId(last)}})
        page, filepaths = patiently(partial(rest.sort_by("id").limit(PAGE).values, ["id", "filepath"]))
        yield from zip(page, filepaths, strict=True)
        if len(page) < PAGE:
            return
        last = page[-1]


def _files(dataset: fo.Dataset, ids: list[ObjectId]) -> list[tuple[str, str]]:
    found = dataset._sample_collection.find({"_id": {"$in": ids}}, ["filepath"]).sort("_id")
    return [(str(sample["_id"]), sample["filepath"]) for sample in found]


def bulk_write(dataset: fo.Dataset, updates: Sequence[UpdateOne]) -> None:
    """Write several fields of many samples at once; each update names its sample by ``_id``."""
    # FiftyOne has no public bulk write of several fields; set_values() would be one per field.
    if updates:
        ids = [str(update._filter["_id"]) for update in updates]
        patiently(lambda: dataset._bulk_write(list(updates), ids=ids))


def change(values: dict[str, Any], cleared: Iterable[str] = ()) -> dict[str, Any]:
    """What to do to a sample: set these fields, and unset others.

    Unset and not null: where those have left the schema, FiftyOne could not load the sample any more.
    """
    update: dict[str, Any] = {"$set": {**values, "last_modified_at": datetime.now(UTC)}}
    unset = dict.fromkeys({*cleared} - {*values}, "")
    return {**update, "$unset": unset} if unset else update


def take_back(dataset: fo.Dataset, updates: Sequence[UpdateOne]) -> None:
    """Unset what updates have set: fields that have left the schema keep FiftyOne from loading a sample."""
    undo = []
    for update in updates:
        document = cast(dict[str, dict[str, Any]], update._doc)
        names = [name for name in document["$set"] if name != "last_modified_at"]
        undo.append(
            UpdateOne(update._filter, {"$unset": dict.fromkeys(names, "")}, array_filters=update._array_filters)
        )
    bulk_write(dataset, undo)


def patiently(call: Callable[[], T]) -> T:
    """Call the database; where it cannot be reached, again until it is back. The call must be safe to repeat.

    Raises:
        ConnectionError: if it does not come back within two minutes
    """
    deadline = None
    while True:
        try:
            return call()
        except AutoReconnect as error:
            if deadline is None:
                deadline = time.monotonic() + PATIENCE
                logger.warning("The database cannot be reached; waiting for it up to %d seconds.", PATIENCE)
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"The run stopped because the database could not be reached for {PATIENCE} seconds. Start the "
                    "database and run again: finished samples are kept."
                ) from error
            time.sleep(1)
