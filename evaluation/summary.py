"""The figures of a whole evaluation, from what it wrote to the samples, and the samples behind each figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import fiftyone as fo
from bson import ObjectId

from . import coco, records
from .inference import runs, views
from .matching import FOUND, NOTHING, SIZES, STATUSES, UNLABELLED
from .reading import nested
from .sources import Image, Sources
from .truth import SOURCES, Labels

BLOCK = 200  # samples asked of the database at once
EDGES = [k / 10 for k in range(11)]  # of the bins of peak values
NOT_FOUND = "not found"  # of images in the annotations


def size_of(area: float) -> str:
    """COCO's word for a person's size."""
    return next((name for name, limit in SIZES.items() if area <= limit), "large")  # NaN is below nothing


def summarise(dataset: fo.Dataset, key: str, sources: Sources) -> dict[str, Any]:
    """The figures of all samples that an evaluation is done with; plain values. See docs/evaluation.md."""
    counts, precision = _Counts(key, sources), coco.AveragePrecision(sources.sigmas)
    seen: set[int] = set()
    for number, (filepath, fields) in enumerate(_documents(dataset, key, sources)):
        try:
            image = sources.image(fields, filepath)
            labels = sources.labels(fields, image)
        except ValueError:  # its labels or its file were removed since
            continue
        counts.add(fields, image, labels)
        image_id = image.coco_id if sources.annotations else number
        stored = fields[sources.people_field] if sources.people_field else None  # None: nobody was looked for
        if stored is not None and image_id is not None and image_id not in seen:
            seen.add(image_id)
            people = coco.results(stored, sources.people_columns, image.wh)
            precision.add(image_id, _annotations(sources, image, labels), people)
    return {**counts.results(), "images_for_ap": len(seen), "figures": precision.figures() if seen else None}


def _documents(dataset: fo.Dataset, key: str, sources: Sources) -> Iterator[tuple[str, dict[str, Any]]]:
    """File and fields of each sample that is done."""
    fields = [*sources.fields, *(runs.field_name(key, name) for name in ("stray_peaks", "worst"))]
    done = views.all_samples(dataset).match({runs.field_name(key, "status"): runs.DONE})
    pages = views.pages(done)
    while block := list(islice(pages, BLOCK)):
        query = {"_id": {"$in": [ObjectId(sample_id) for sample_id, _ in block]}}
        for document in dataset._sample_collection.find(query, ["filepath", *fields]).sort("_id"):
            yield document["filepath"], {name: nested(document, name) for name in fields}


def _annotations(sources: Sources, image: Image, labels: Labels) -> list[dict[str, Any]]:
    """The people of an image as COCO annotations: those of the file where there is one."""
    if sources.annotations:
        return [coco.chosen_joints(person, sources.annotated) for person in image.annotations]
    truth = labels.truth
    people = zip(truth.points, truth.areas.tolist(), truth.boxes, strict=True)
    ignored = [coco.ignored(box, len(sources.pairing.names)) for box in truth.ignored]
    return [coco.annotation(*person) for person in people] + ignored


class _Counts:
    """Counts over samples, people and joints."""

    def __init__(self, key: str, sources: Sources):
        self.key = key
        self.sources = sources
        self.samples = 0
        self.people = 0
        self.areas: Counter[str] = Counter()
        self.found_by: Counter[str] = Counter()
        self.worst: Counter[str] = Counter()
        self.statuses: Counter[tuple[str, str, str]] = Counter()  # joint, size, status
        self.seen_as: Counter[tuple[str, str]] = Counter()  # joint, joint
        self.true: Counter[int] = Counter()  # bins of peak values
        self.stray: Counter[int] = Counter()
        self.stray_joints: Counter[tuple[str, str]] = Counter()  # joint, kind

    def add(self, fields: dict[str, Any], image: Image, labels: Labels) -> None:
        names, columns = self.sources.pairing.names, self.sources.pairing.columns
        self.samples += 1
        self.found_by[image.found_by or NOT_FOUND] += 1
        self.worst[fields[runs.field_name(self.key, "worst")] or ""] += 1
        for peak in (fields[runs.field_name(self.key, "stray_peaks")] or {}).get("keypoints", []):
            self.stray_joints[peak["label"], peak["kind"]] += 1
            self.stray[_bin(peak["confidence"][0])] += 1
        wanted = {label_id: source for label_id, source in zip(labels.ids, labels.sources, strict=True)}
        for person in (fields[self.sources.gt_field] or {}).get("keypoints", []):
            if person["_id"] not in wanted or runs.field_name(self.key, "status") not in person:  # labelled since
                continue
            self.people += 1
            self.areas[wanted[person["_id"]]] += 1
            statuses, seen_as, peaks = (
                person[runs.field_name(self.key, name)] for name in ("status", "seen_as", "peak")
            )
            size = size_of(person[runs.field_name(self.key, "area")])
            for name, column in zip(names, columns, strict=True):
                if statuses[column] == UNLABELLED:
                    continue
                self.statuses[name, size, statuses[column]] += 1
                self.seen_as[name, seen_as[column]] += 1
                if statuses[column] == FOUND:
                    self.true[_bin(peaks[column])] += 1

    def results(self) -> dict[str, Any]:
        names = self.sources.pairing.names
        statuses = {
            size: {name: [self.statuses[name, size, status] for status in STATUSES] for name in names} for size in SIZES
        }
        labelled = sum(self.statuses.values())
        found = sum(count for (_, _, status), count in self.statuses.items() if status == FOUND)
        return {
            "samples": self.samples,
            "people": self.people,
            "labelled_joints": labelled,
            "recall": found / labelled if labelled else None,
            "joints": list(names),
            "joints_named_by": self.sources.pairing.named_by,
            "statuses": statuses,  # size, joint, count of each of STATUSES
            "seen_as": {name: [self.seen_as[name, other] for other in (*names, NOTHING)] for name in names},
            "reliability": [
                {"from": low, "to": high, "true": self.true[number], "stray": self.stray[number]}
                for number, (low, high) in enumerate(pairwise(EDGES))
            ],
            "stray_peaks": {name: _of(self.stray_joints, name) for name in names},
            "worst": {kind: count for kind, count in self.worst.most_common() if kind},
            "areas_from": {source: self.areas[source] for source in SOURCES},
            "annotations_found_by": dict(self.found_by) if self.sources.annotations else None,
        }


def _of(counts: Counter[tuple[str, str]], name: str) -> dict[str, int]:
    return {kind: count for (other, kind), count in counts.items() if other == name}


def _bin(value: float) -> int:
    return min(int(value * 10 + 1e-9), 9)


def sentences(results: dict[str, Any]) -> str:
    """The most important figures, for people."""
    parts = [f"{results['people']} people in {results['samples']} images"]
    if results["recall"] is not None:
        parts[0] += f", {results['recall']:.1%} of {results['labelled_joints']} labelled joints found"
    figures = results["figures"]
    if figures and figures["ap"] >= 0:
        parts.append(f"AP {figures['ap']:.3f}, AP50 {figures['ap50']:.3f}, AR {figures['ar']:.3f}")
    else:
        parts.append(f"no AP: {_why_no_ap(results)}")
    if results["people"]:
        areas = ", ".join(f"{count} from {source}" for source, count in results["areas_from"].items() if count)
        parts.append(f"Areas: {areas}".replace("from estimated", "estimated"))
    if results["annotations_found_by"]:
        found = ", ".join(f"{count} by {how}" for how, count in results["annotations_found_by"].items())
        parts.append(f"Images in the annotations: {found}".replace("by not found", "not found"))
    return ". ".join(parts) + "."


def _why_no_ap(results: dict[str, Any]) -> str:
    found = results["annotations_found_by"]
    if found is not None and not set(found) - {NOT_FOUND}:
        return "no image was found in the annotations"
    return "nobody is labelled" if results["figures"] else "the run stored no people of these joints"


# --- the samples behind a figure


def select(
    dataset: fo.Dataset,
    key: str,
    joint: str | None = None,
    status: str | Sequence[str] | None = None,
    size: str | None = None,
    seen_as: str | None = None,
    stray: tuple[float, float] | None = None,
    kind: str | None = None,
    worst: str | None = None,
) -> fo.DatasetView:
    """The samples behind a figure of an evaluation.

    Args:
        dataset: with the evaluation
        key: of the evaluation
        joint: of the maps; None = any
        status: with a labelled joint of this status, or one of these
        size: of its person
        seen_as: with a labelled joint at whose place this joint's map is the highest; ``"nothing"`` = no map
        stray: with a stray peak whose value is from one number up to another
        kind: of that stray peak
        worst: whose most frequent mistake is this

    Returns:
        the view, the samples with the most mistakes first
    """
    record = records.read_record(dataset, key)
    if record is None:
        raise ValueError(f"There is no evaluation '{key}'.")
    names, columns, gt_field = (record.settings[name] for name in ("joints", "columns", "gt_field"))
    pairs = [(name, column) for name, column in zip(names, columns, strict=True) if joint in (None, name)]
    conditions: list[dict[str, Any]] = [{runs.field_name(key, "status"): runs.DONE}]
    person: dict[str, Any] = {}
    if size:
        limits = [0.0, *SIZES.values()]
        place = list(SIZES).index(size)
        person[f"{key}_area"] = {"$gt": limits[place]}
        if limits[place + 1] < float("inf"):  # which JSON, and so the App, cannot hold
            person[f"{key}_area"]["$lte"] = limits[place + 1]
    if status or seen_as:
        wanted: dict[str, Any] = {}
        if status:
            wanted[f"{key}_status"] = {"$in": [status] if isinstance(status, str) else list(status)}
        if seen_as:
            wanted[f"{key}_seen_as"] = seen_as
        of_joint = [{f"{name}.{column}": value for name, value in wanted.items()} for _, column in pairs]
        person["$or"] = of_joint
    if person:
        conditions.append({f"{gt_field}.keypoints": {"$elemMatch": person}})
    if stray or kind:
        peak: dict[str, Any] = {"label": joint} if joint else {}
        if stray:
            upper = "$lte" if stray[1] >= 1 else "$lt"  # the highest bin has 1 itself
            peak |= {"confidence": {"$elemMatch": {"$gte": stray[0], upper: stray[1]}}}
        peak |= {"kind": kind} if kind else {}
        conditions.append({f"{key}_stray_peaks.keypoints": {"$elemMatch": peak}})
    if worst:
        conditions.append({f"{key}_worst": worst})
    # not all_samples(), whose media type nothing but the App's grid takes
    samples = dataset.select_group_slices(media_type="image") if dataset.media_type == "group" else dataset.view()
    return samples.match({"$and": conditions}).sort_by(f"{key}_mistakes", reverse=True)
