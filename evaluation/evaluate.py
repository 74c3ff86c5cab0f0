"""A run of `evaluate_heatmaps`: the stored maps of a view against labelled people.

First every sample is judged and written, in batches: what became of each joint goes to the labels, counts to the
sample. Then the figures of the whole are made from what was written. So a run that was killed goes on where it stopped,
and the figures are always those of what the dataset shows.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.utils as fou
from bson import ObjectId
from pymongo import UpdateOne

from . import matching, records, summary, verdicts
from .inference import runs, views
from .matching import RADIUS, THRESHOLD
from .reading import SampleMaps, read_maps
from .sources import Sources, pair_joints
from .truth import Annotations
from .verdicts import JOINT_ATTRIBUTES, attributes, fields

KIND = "ground truth"
BATCH = 100  # samples written at once
MAX_LISTED = 100


@dataclass(frozen=True)
class Settings:
    """What an evaluation compares.

    Attributes:
        label_field: of the run whose maps are judged
        gt_field: a field of ``fo.Keypoints``
        key: prefix of all that is written
        annotations: a COCO keypoint file with areas and crowds of the same people
        joints: joints of the labels and the joints of the maps that they are (None = not compared), where the names do
            not tell
        threshold: value from which on a local maximum of a map counts
        radius: in roots of the person's area: a peak that near is at its joint
    """

    label_field: str = "pose"
    gt_field: str = "ground_truth"
    key: str = "eval"
    annotations: str | None = None
    joints: Mapping[str, str | None] | None = None
    threshold: float = THRESHOLD
    radius: float = RADIUS

    def __post_init__(self) -> None:
        runs.check_label_field(self.label_field)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be above 0 and at most 1.")
        if not 0 < self.radius <= 1:
            raise ValueError(f"radius is {self.radius}; it must be above 0 and at most 1.")


@dataclass
class Progress:
    """How far an evaluation is, and how it went at the end.

    Attributes:
        total: samples to do
        done, failed: samples finished
        skipped: samples that were done already when it began
        failures: up to 100 (file, reason)
        seconds: since it began
        results: at the end, the figures of the whole; see docs/evaluation.md
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    results: dict[str, Any] | None = None

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.done} of {self.total} samples evaluated in {self.seconds:.0f} s"]
        if self.skipped:
            parts.append(f"{self.skipped} were already")
        if self.failed:
            parts.append(f"{self.failed} could not be (see their status field)")
        return ", ".join(parts) + "."


def find_sources(dataset: fo.Dataset, settings: Settings, annotations: Annotations | None) -> Sources:
    """What is compared.

    Raises:
        ValueError: if the labels' joints have no names, or none of the maps' or the annotations'
    """
    pairing = pair_joints(dataset, settings.label_field, settings.gt_field, settings.joints, annotations)
    return Sources(dataset, settings.label_field, settings.gt_field, pairing, annotations)


def problems(view: fo.core.collections.SampleCollection, settings: Settings, existing: str | None = None) -> list[str]:
    """What keeps an evaluation from starting, as sentences that say what to do; empty if nothing does."""
    target = views.target_problem(view)
    if target:
        return [target]
    dataset: fo.Dataset = view._dataset
    known = keypoint_fields(dataset)
    if settings.gt_field not in known:
        return [
            f"'{settings.gt_field}' is not a field of fo.Keypoints; the dataset's are {', '.join(known) or 'none'}."
        ]
    written = attributes(settings.key, settings.gt_field)
    wrong_key = records.check_key(dataset, settings.key, fields(settings.key), written)
    if wrong_key:
        return [wrong_key]
    try:
        sources = find_sources(dataset, settings, read_annotations(settings))
    except ValueError as error:
        return [str(error)]
    changed = _changes(dataset, settings, sources)
    if changed and existing != "replace":
        return [
            f"The evaluation '{settings.key}' was made with other settings: {', '.join(changed)}. Choose another key, "
            "or pass existing='replace' to evaluate everything anew."
        ]
    named = _named(view, records.read_record(dataset, settings.key)) if changed else None
    if named:
        return [
            f"The view goes by '{named}', which is deleted before '{settings.key}' is evaluated anew: nothing would be "
            "left of it. Pass another view, or choose another key."
        ]
    return []


def _named(view: fo.core.collections.SampleCollection, record: records.Record | None) -> str | None:
    """A field or attribute of an evaluation that a stage of a view names; None if there is none."""
    words = set(re.findall(r"\w+", json.dumps(view.view()._serialize(), default=str)))
    written = (*record.fields, *record.attributes) if record else ()
    return next((name for name in written if name.rpartition(".")[2] in words), None)


def read_annotations(settings: Settings) -> Annotations | None:
    """Raises ValueError if the file is not one of COCO keypoints."""
    if not settings.annotations:
        return None
    try:
        found = Path(settings.annotations).stat()
    except OSError as error:
        raise ValueError(f"The annotations {settings.annotations} cannot be read: {error.strerror}.") from error
    return _annotations(settings.annotations, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)  # the form asks at each change, and a file of COCO takes seconds
def _annotations(path: str, mtime_ns: int, size: int) -> Annotations:
    return Annotations(path)


def keypoint_fields(dataset: fo.Dataset) -> list[str]:
    """All keypoints fields of a dataset."""
    return list(dataset.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Keypoints))


def _recorded(dataset: fo.Dataset, settings: Settings, sources: Sources) -> dict[str, Any]:
    """All that decides what an evaluation writes."""
    run = runs.read_record(dataset, settings.label_field)
    return {
        "label_field": settings.label_field,
        "run_id": run.run_id if run else None,
        "gt_field": settings.gt_field,
        "annotations": settings.annotations,
        "annotations_sha256": sources.annotations.sha256 if sources.annotations else None,
        "joints": list(sources.pairing.names),
        "columns": list(sources.pairing.columns),
        "threshold": settings.threshold,
        "radius": settings.radius,
    }


def _changes(dataset: fo.Dataset, settings: Settings, sources: Sources) -> list[str]:
    record = records.read_record(dataset, settings.key)
    if record is None:
        return []
    old, now = record.settings, _recorded(dataset, settings, sources)
    changed = [name for name in now if name != "annotations" and old.get(name) != now[name]]  # a file may move
    named = ["annotations" if name == "annotations_sha256" else name for name in changed]
    return [f"{name} (was {old.get(name)!r}, now {now[name]!r})" for name in named]


def evaluate(
    view: fo.core.collections.SampleCollection,
    settings: Settings,
    skip_existing: bool = True,
    existing: str | None = None,
    progress: bool | None = None,
) -> Progress:
    """Run :func:`process` to its end, with a progress bar."""
    steps = process(view, settings, skip_existing, existing)
    state = next(steps)
    with fou.ProgressBar(total=state.total, progress=progress) as bar:
        for state in steps:
            bar.set_iteration(state.done + state.failed)
    return state


def process(
    view: fo.core.collections.SampleCollection,
    settings: Settings,
    skip_existing: bool = True,
    existing: str | None = None,
) -> Generator[Progress, None, None]:
    """Judge the maps of a view's samples and write what became of their joints.

    Args:
        view: a dataset or view of images; it chooses samples, all of whose labels count
        settings: what is compared
        skip_existing: leave out samples that are done
        existing: ``"replace"`` = if the key has an evaluation of other settings, delete it first

    Yields:
        the state, at the beginning, after each batch that was written, and with the results at the end

    Raises:
        ValueError: at the beginning, if it cannot work
    """
    started = time.monotonic()
    if existing not in (None, "replace"):
        raise ValueError(f"existing is '{existing}'; it must be None or 'replace'.")
    found = problems(view, settings, existing)
    if found:
        raise ValueError(" ".join(found))
    dataset: fo.Dataset = view._dataset
    sources = find_sources(dataset, settings, read_annotations(settings))
    if _changes(dataset, settings, sources):
        records.delete(dataset, settings.key)
    record = _declare(dataset, settings, sources)
    status = runs.field_name(settings.key, "status")
    view = views.whole_samples(view)
    todo = view.match({status: {"$ne": runs.DONE}}) if skip_existing else view
    state = Progress(total=len(todo))
    state.skipped = len(view) - state.total
    yield state
    judging = _Judge(dataset, settings, sources, state, record)
    for _ in judging.work_through(todo):
        state.seconds = time.monotonic() - started
        yield state
    state.results = summary.summarise(dataset, settings.key, sources)
    records.save_results(dataset, settings.key, state.results)
    dataset.reload()
    state.seconds = time.monotonic() - started
    yield state


def _declare(dataset: fo.Dataset, settings: Settings, sources: Sources) -> records.Record:
    """Make the record and the fields; the record first, so that fields are always known to be an evaluation's."""
    written = attributes(settings.key, settings.gt_field)
    recorded = _recorded(dataset, settings, sources)
    record = records.Record(settings.key, KIND, tuple(fields(settings.key)), tuple(written), recorded)
    records.save_record(dataset, record)
    runs.declare(dataset, fields(settings.key))
    schema = dataset.get_field_schema(flat=True)
    written[f"{runs.field_name(settings.key, 'stray_peaks')}.keypoints.kind"] = fo.StringField
    for path, kind in written.items():
        if path not in schema:
            per_joint = path.rpartition(".")[2].removeprefix(f"{settings.key}_") in JOINT_ATTRIBUTES
            dataset.add_sample_field(path, fo.ListField if per_joint else kind, subfield=kind if per_joint else None)
    return record


class _Judge:
    """Judges samples and writes what it found."""

    def __init__(
        self, dataset: fo.Dataset, settings: Settings, sources: Sources, state: Progress, record: records.Record
    ):
        self.dataset = dataset
        self.settings = settings
        self.sources = sources
        self.state = state
        self.record = record
        self._failed: list[UpdateOne] = []

    def work_through(self, todo: fo.DatasetView) -> Generator[None, None, None]:
        """Yields after each batch that was written."""
        sources = self.sources
        updates: list[UpdateOne] = []
        samples = read_maps(todo, self.settings.label_field, sources.pairing.names, self._note_failure, sources.fields)
        for sample in samples:
            try:
                updates.append(self._update(sample.sample_id, *self._judged(sample)))
                self.state.done += 1
            except ValueError as error:
                self._note_failure(sample.sample_id, sample.filepath, str(error))
            if len(updates) + len(self._failed) >= BATCH:
                self._write(updates)
                updates = []
                yield
        self._write(updates)
        yield

    def _write(self, updates: list[UpdateOne]) -> None:
        failed, self._failed = self._failed, []
        records.write(self.dataset, self.record, updates + failed)

    def _note_failure(self, sample_id: str, filepath: str, problem: str) -> None:
        self.state.failed += 1
        if len(self.state.failures) < MAX_LISTED:
            self.state.failures.append((filepath, problem))
        self._failed.append(self._update(sample_id, {"status": problem}, []))

    def _update(self, sample_id: str, values: dict[str, Any], people: list[tuple[Any, dict[str, Any]]]) -> UpdateOne:
        key, gt_field = self.settings.key, self.settings.gt_field
        cleared = dict.fromkeys(fields(key))  # also what an earlier evaluation left there
        written = {runs.field_name(key, name): value for name, value in values.items()}
        found = {
            f"{gt_field}.keypoints.$[p{number}].{runs.field_name(key, name)}": value
            for number, (_, person) in enumerate(people)
            for name, value in person.items()
        }
        return UpdateOne(
            {"_id": ObjectId(sample_id)},
            {"$set": {**cleared, **written, **found, "last_modified_at": datetime.now(UTC)}},
            array_filters=[{f"p{number}._id": label_id} for number, (label_id, _) in enumerate(people)] or None,
        )

    def _judged(self, sample: SampleMaps) -> tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]:
        """What is written: values of the sample, and of each labelled person by the id of its keypoints."""
        image = self.sources.image(sample.fields, sample.filepath)
        labels = self.sources.labels(sample.fields, image)
        verdict = matching.judge(
            sample.maps, labels.truth, self.sources.twins, image.wh, self.settings.threshold, self.settings.radius
        )
        people = self.sources.people(sample.fields, image)
        oks = None
        if people is not None:
            oks = matching.match_people(matching.oks(labels.truth, people, self.sources.sigmas))
        return (
            verdicts.of_sample(verdict, oks, self.sources, image.wh),
            verdicts.of_people(verdict, oks, self.sources, labels),
        )
