"""An index of poses: embeddings of samples and of people, handed to FiftyOne Brain.

An index is known by its key: it writes ``<key>_embedding`` to samples and ``<key>_people`` (a detection for each
person, with an embedding of their own). All that is done with embeddings is FiftyOne Brain's.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import fiftyone as fo
import fiftyone.brain as fob
import fiftyone.core.utils as fou
import numpy as np
from bson import Binary, ObjectId
from numpy.typing import NDArray
from pymongo import UpdateOne

from . import records, skeletons
from .embeddings import embedding, floored, person_box, person_maps
from .inference import runs, views
from .reading import SampleMaps, map_joints, read_maps
from .sources import SIZE, size_for

KIND = "poses"
# What an index cannot be continued with, as people call it.
CHANGES = {
    "label_field": "maps (another label field)",
    "run_id": "maps (they were made anew since)",
    "joints": "joints",
    "people": "choice of people",
}
VISUALIZATIONS = ("pca", "umap")
BATCH = 100  # samples written at once
MAX_LISTED = 100


@dataclass(frozen=True)
class Choices:
    """What an index is to have.

    Attributes:
        label_field: of the run whose maps are embedded
        key: prefix of the fields and of the brain runs
        people: also index every person; needs the run's keypoints
        visualization: ``"pca"``, ``"umap"`` (needs umap-learn), or None
        uniqueness: also compute ``<key>_uniqueness``
        duplicates: also mark samples whose cosine distance to another one is at most this; None = no
        backend: of FiftyOne Brain's similarity; None = its default
    """

    label_field: str = "pose"
    key: str = "poses"
    people: bool = True
    visualization: str | None = "pca"
    uniqueness: bool = True
    duplicates: float | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if self.visualization not in (None, *VISUALIZATIONS):
            raise ValueError(f"visualization is '{self.visualization}'; it must be pca, umap, or None.")
        if self.visualization == "umap" and importlib.util.find_spec("umap") is None:
            raise ValueError("visualization='umap' needs the package umap-learn: pip install umap-learn, or use 'pca'.")
        if self.duplicates is not None and not 0 < self.duplicates < 1:
            raise ValueError(f"duplicates is {self.duplicates}; it must be a cosine distance between 0 and 1, or None.")
        backend = self.backend or fob.brain_config.default_similarity_backend
        if self.backend not in (None, *fob.brain_config.similarity_backends):
            known = ", ".join(fob.brain_config.similarity_backends)
            raise ValueError(f"backend is '{self.backend}'; FiftyOne Brain knows {known}.")
        if self.duplicates is not None and backend != "sklearn":
            raise ValueError(f"FiftyOne Brain finds duplicates with backend='sklearn' only, not with '{backend}'.")


@dataclass
class Progress:
    """How far an index is, and how it went at the end.

    Attributes:
        total: samples to embed
        done, failed: samples finished
        skipped: samples that were embedded already
        empty: of those done, how many have maps that show nothing
        failures: up to 100 (file, reason)
        seconds: since it began
        step: what is being done
        samples, people: how many are in the index, at the end
        duplicates: how many samples have a near duplicate, at the end
        brain_keys: of the runs of FiftyOne Brain
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    empty: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    step: str = "embeddings"
    samples: int = 0
    people: int = 0
    duplicates: int | None = None
    brain_keys: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for people."""
        people = f" and {self.people} people" if self.people else ""
        parts = [f"{self.samples} samples{people} can be searched by pose, after {self.seconds:.0f} s"]
        if self.empty:
            parts.append(f"the maps of {self.empty} show nothing")
        if self.duplicates is not None:
            parts.append(f"{self.duplicates} have a near duplicate")
        if self.failed:
            parts.append(f"{self.failed} failed (see the status field)")
        return ", ".join(parts) + "."


def fields_of(choices: Choices) -> dict[str, type]:
    """The fields that an index writes, with their types."""
    names: dict[str, type] = {"embedding": fo.VectorField, "status": fo.StringField}
    names |= {"people": fo.Detections} if choices.people else {}
    names |= {"uniqueness": fo.FloatField} if choices.uniqueness else {}
    names |= {"near_duplicate": fo.BooleanField} if choices.duplicates else {}
    return {runs.field_name(choices.key, name): kind for name, kind in names.items()}


def problems(view: fo.core.collections.SampleCollection, choices: Choices) -> list[str]:
    """What keeps an index from being made, as sentences that say what to do. Changes nothing."""
    target = views.target_problem(view)
    if target:
        return [target]
    dataset: fo.Dataset = view._dataset
    try:
        map_joints(dataset, choices.label_field)
    except ValueError as error:
        return [str(error)]
    keypoints = runs.field_name(choices.label_field, "keypoints")
    if choices.people and not dataset.has_field(keypoints):
        return [
            f"There is no field '{keypoints}' with people. Run generate_heatmaps with keypoints, or index samples only."
        ]
    problem = records.check_key(dataset, choices.key, fields_of(choices))
    record = records.read_record(dataset, choices.key)
    if record is not None and record.kind != KIND:
        problem = f"The key '{choices.key}' holds something else: {record.kind}. Choose another key."
    elif record is not None:
        now = _settings(dataset, choices)
        changed = [what for name, what in CHANGES.items() if record.settings.get(name) != now[name]]
        if changed:
            problem = (
                f"The index '{choices.key}' was made with other {', '.join(changed)}. Choose another key, or delete "
                "that index first, with delete_evaluation."
            )
    taken = [name for name in _brain_keys(choices) if record is None and name in dataset.list_brain_runs()]
    if taken:
        problem = f"The dataset has a brain run '{taken[0]}' already; choose another key."
    return [problem] if problem else []


def _brain_keys(choices: Choices) -> list[str]:
    """The brain runs of an index: similarity, visualization, uniqueness."""
    keys = [choices.key, *([f"{choices.key}_people"] if choices.people else [])]
    keys += [f"{key}_map" for key in keys] if choices.visualization else []
    return keys + ([f"{choices.key}_uniqueness"] if choices.uniqueness else [])


def _settings(dataset: fo.Dataset, choices: Choices) -> dict[str, Any]:
    record = runs.read_record(dataset, choices.label_field)
    return {
        "label_field": choices.label_field,
        "run_id": record.run_id if record else None,
        "joints": list(map_joints(dataset, choices.label_field)),
        "people": choices.people,
    }


def index(
    view: fo.core.collections.SampleCollection,
    choices: Choices,
    *,
    skip_existing: bool = True,
    num_readers: int | None = None,
    progress: bool | Callable | None = None,
) -> Progress:
    """Index the poses of a view. See :func:`process`."""
    steps = process(view, choices, skip_existing=skip_existing, num_readers=num_readers)
    state = next(steps)
    with fou.ProgressBar(total=state.total, progress=progress) as bar:
        for state in steps:
            bar.set_iteration(state.done + state.failed)
    return state


def process(
    view: fo.core.collections.SampleCollection,
    choices: Choices,
    *,
    skip_existing: bool = True,
    num_readers: int | None = None,
) -> Generator[Progress, None, None]:
    """Embed the poses of a view, then make FiftyOne Brain's index of all samples that have an embedding.

    Args:
        view: a dataset or view of images; it chooses samples, all of whose people count
        choices: what the index is to have
        skip_existing: leave out the samples that were embedded; those with an error are tried again
        num_readers: threads that decode maps; None = one per core

    Yields:
        the state, the same object each time: before the first batch, after each batch and each step, and at the end

    Raises:
        ValueError: before anything is written, if something cannot work
    """
    started = time.monotonic()
    found = problems(view, choices)
    if found:
        raise ValueError(" ".join(found))
    dataset: fo.Dataset = view._dataset
    fields = fields_of(choices)
    old = records.read_record(dataset, choices.key)
    _declare(dataset, choices, fields)
    settings = _settings(dataset, choices)
    record = records.Record(
        key=choices.key,
        kind=KIND,
        fields=tuple(dict.fromkeys((*(old.fields if old else ()), *fields))),
        settings=settings,
        brain_keys=tuple(dict.fromkeys((*(old.brain_keys if old else ()), *_brain_keys(choices)))),
    )
    records.save_record(dataset, record)
    status = runs.field_name(choices.key, "status")
    view = views.whole_samples(view)
    todo = view.match({status: {"$ne": runs.DONE}}) if skip_existing else view
    state = Progress(total=len(todo), brain_keys=tuple(_brain_keys(choices)))
    state.skipped = len(view) - state.total
    yield state
    for _ in _embed(todo, choices, record, state, num_readers):
        state.seconds = time.monotonic() - started
        yield state
    for brain_key in set(record.brain_keys) & set(dataset.list_brain_runs()):
        dataset.delete_brain_run(brain_key)  # of an earlier call, which had fewer samples
    for step in _use_brain(dataset, choices, state):
        state.step, state.seconds = step, time.monotonic() - started
        yield state
    dataset.reload()
    state.seconds = time.monotonic() - started
    yield state


def _declare(dataset: fo.Dataset, choices: Choices, fields: dict[str, type]) -> None:
    runs.declare(dataset, fields)
    people = f"{runs.field_name(choices.key, 'people')}.detections.embedding"
    if choices.people and not dataset.has_field(people):
        # Declared, so that the App leaves vectors out of the pages that it loads.
        dataset.add_sample_field(people, fo.VectorField)


# --- embeddings


def _embed(
    todo: fo.core.collections.SampleCollection,
    choices: Choices,
    record: records.Record,
    state: Progress,
    num_readers: int | None,
) -> Generator[None, None, None]:
    """Yields after each batch that was written."""
    joints = record.settings["joints"]
    dataset: fo.Dataset = todo._dataset
    keypoints = runs.field_name(choices.label_field, "keypoints")
    failed: list[tuple[str, str, str]] = []

    def report(sample_id: str, filepath: str, problem: str) -> None:
        failed.append((sample_id, filepath, problem))

    fields = [*SIZE, *([keypoints] if choices.people else [])]
    maps = read_maps(todo, choices.label_field, joints, report, fields, num_readers)
    embedder = _Embedder(dataset, choices, joints)
    embedded = (_update(sample.sample_id, embedder.document(sample)) for sample in maps)
    more = True
    while more:
        batch = list(itertools.islice(embedded, BATCH))
        more = len(batch) == BATCH
        missing = [_update(sample_id, embedder.nothing(problem)) for sample_id, _, problem in failed]
        records.write(dataset, record, batch + missing)
        state.done += len(batch)
        state.empty = embedder.empty
        state.failed += len(failed)
        state.failures += [(path, problem) for _, path, problem in failed][: MAX_LISTED - len(state.failures)]
        failed.clear()
        yield


def _update(sample_id: str, values: dict[str, Any]) -> UpdateOne:
    return UpdateOne({"_id": ObjectId(sample_id)}, {"$set": {**values, "last_modified_at": datetime.now(UTC)}})


class _Embedder:
    """From maps to what the database holds.

    Args:
        dataset: the samples'
        choices: what the index is to have
        joints: in the order of the maps
    """

    def __init__(self, dataset: fo.Dataset, choices: Choices, joints: Sequence[str]):
        self.choices = choices
        self.keypoints = runs.field_name(choices.label_field, "keypoints")
        self.empty = 0  # samples whose maps show nothing
        record = runs.read_record(dataset, choices.label_field)
        self.order = skeletons.twins(joints, record).tolist()
        names = record.joints if record and record.joints else tuple(joints)
        # of a keypoint label, in the order of the maps; one too many where people have no such joint
        self.points = [names.index(joint) if joint in names else len(names) for joint in joints]

    def document(self, sample: SampleMaps) -> dict[str, Any]:
        """The fields of a sample."""
        sample = replace(sample, maps=floored(sample.maps))
        (width, height), (rows, columns) = size_for(sample), sample.maps.shape[1:]
        aspect = (width / columns) / (height / rows)
        vector = embedding(sample.maps, self.order, aspect)
        self.empty += vector is None
        values: dict[str, Any] = {"embedding": _vector(vector), "status": runs.DONE}
        if self.choices.people:
            values["people"] = {"_cls": "Detections", "detections": list(self._people(sample, aspect))}
        return {runs.field_name(self.choices.key, name): value for name, value in values.items()}

    def nothing(self, problem: str) -> dict[str, Any]:
        """The fields of a sample whose maps cannot be read."""
        names = ["embedding", *(["people"] if self.choices.people else [])]
        values = {**dict.fromkeys(names), "status": problem}
        return {runs.field_name(self.choices.key, name): value for name, value in values.items()}

    def _people(self, sample: SampleMaps, aspect: float) -> Generator[dict[str, Any], None, None]:
        for person in (sample.fields.get(self.keypoints) or {}).get("keypoints") or []:
            given = np.array(person["points"], float).reshape(-1, 2)
            points = np.array([given[place] if place < len(given) else (np.nan, np.nan) for place in self.points])
            box = person_box(points)
            if box is None:
                continue
            vector = embedding(person_maps(sample.maps, points, aspect), self.order, aspect)
            if vector is None:
                continue
            label = fo.Detection(label="person", bounding_box=box, confidence=person.get("score"))
            yield {**label.to_dict(), "_id": ObjectId(), "embedding": _vector(vector)}


def _vector(values: NDArray[np.float32] | None) -> Binary | None:
    return None if values is None else Binary(fou.serialize_numpy_array(values))


# --- FiftyOne Brain


def _use_brain(dataset: fo.Dataset, choices: Choices, state: Progress) -> Generator[str, None, None]:
    """Yields what was done."""
    key, embeddings = choices.key, runs.field_name(choices.key, "embedding")
    people = runs.field_name(key, "people")
    everything = views.all_samples(dataset).match({runs.field_name(key, "status"): runs.DONE})
    samples = everything.match({embeddings: {"$ne": None}})
    state.samples = len(samples)
    state.people = everything.count(f"{people}.detections") if choices.people else 0
    if state.samples:
        yield from _index(samples, choices, state)
    if state.people:
        similar = {"patches_field": people, "embeddings": "embedding"}
        of_people = fob.compute_similarity(everything, brain_key=f"{key}_people", backend=choices.backend, **similar)
        yield "similarity of people"
        if choices.visualization and state.people > 2:
            fob.compute_visualization(
                everything,
                patches_field=people,
                similarity_index=of_people,
                method=choices.visualization,
                brain_key=f"{key}_people_map",
                progress=False,
            )
            yield "visualization of people"


def _index(samples: fo.DatasetView, choices: Choices, state: Progress) -> Generator[str, None, None]:
    key, embeddings = choices.key, runs.field_name(choices.key, "embedding")
    similarity = fob.compute_similarity(samples, embeddings=embeddings, brain_key=key, backend=choices.backend)
    yield "similarity"
    if choices.visualization and state.samples > 2:
        fob.compute_visualization(
            samples,
            similarity_index=similarity,
            method=choices.visualization,
            brain_key=f"{key}_map",
            progress=False,
        )
        yield "visualization"
    if choices.uniqueness:
        fob.compute_uniqueness(samples, f"{key}_uniqueness", similarity_index=similarity, progress=False)
        yield "uniqueness"
    if choices.duplicates:
        fob.compute_near_duplicates(samples, choices.duplicates, similarity_index=similarity, progress=False)
        near = set(similarity.neighbors_map)
        near |= {other for neighbors in similarity.neighbors_map.values() for other, _ in neighbors}
        field_name = runs.field_name(key, "near_duplicate")
        samples.set_field(field_name, False).save(field_name)
        samples.select(list(near)).set_field(field_name, True).save(field_name)
        state.duplicates = len(near)
        yield "near duplicates"
