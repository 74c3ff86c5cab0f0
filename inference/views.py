"""The samples that people choose: whether a run can work on them, and reading and writing them in bulk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import fiftyone as fo
from bson import ObjectId
from pymongo import UpdateOne

PAGE = 1000  # samples asked of the database at once
COUNTING = (fo.Limit, fo.Skip, fo.Take)  # stages that let samples through by their number


def target_problem(view: fo.core.collections.SampleCollection) -> str | None:
    """Why a run cannot work on such a view, with what to do instead; None if it can."""
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


def pages(view: fo.core.collections.SampleCollection) -> Iterator[tuple[str, str]]:
    """Ids and files of a view in the order of ids, a page at a time.

    No list of all samples is made, and no database cursor stays open while the network works, which would time out.
    Only of a view that is limited to a number of samples the ids are listed: what its stages let through may change
    with what a run writes.
    """
    if isinstance(view, fo.DatasetView) and any(isinstance(stage, COUNTING) for stage in view._stages):
        ids = sorted(map(ObjectId, view.values("id")))
        for start in range(0, len(ids), PAGE):
            query = {"_id": {"$in": ids[start : start + PAGE]}}
            for sample in view._dataset._sample_collection.find(query, ["filepath"]).sort("_id"):
                yield str(sample["_id"]), sample["filepath"]
        return
    last = None
    while True:
        rest = view if last is None else view.match({"_id": {"$gt": ObjectId(last)}})
        page, filepaths = rest.sort_by("id").limit(PAGE).values(["id", "filepath"])
        yield from zip(page, filepaths, strict=True)
        if len(page) < PAGE:
            return
        last = page[-1]


def bulk_write(dataset: fo.Dataset, updates: Sequence[UpdateOne]) -> None:
    """Write several fields of many samples at once; each update names its sample by ``_id``."""
    # FiftyOne has no public bulk write of several fields; set_values() would be one per field.
    if updates:
        dataset._bulk_write(list(updates), ids=[str(update._filter["_id"]) for update in updates])
