"""Two runs compared, or one run with itself on mirrored images: where do they disagree? No labels are needed.

A comparison is known by its key: it writes ``<key>_distance`` and ``<key>_divergence`` to every sample, and the same
for each joint, so that sorting by one of them brings up where the runs disagree. :mod:`.disagreement` defines them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray
from pymongo import UpdateOne

from . import records
from .disagreement import THRESHOLD, disagreement
from .inference import load_mirrored, runs, views
from .reading import SampleMaps, map_joints, read_maps
from .sources import SIZE, size_for

KIND = "comparison"
FLIP = runs.FLIP  # in place of a second run: the same model on mirrored images
BATCH = 100  # samples written at once
MAX_LISTED = 100
DIGITS = 4


@dataclass
class Progress:
    """How far a comparison is, and how it went at the end.

    Attributes:
        total: samples to compare
        done, failed: samples finished
        skipped: samples that were compared already
        failures: up to 100 (file, reason)
        seconds: since it began
        results: at the end, see :func:`results`
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    results: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.done} of {self.total} samples were compared in {self.seconds:.0f} s"]
        if self.skipped:
            parts.append(f"{self.skipped} had been before")
        if self.failed:
            parts.append(f"{self.failed} failed (see the status field)")
        return ", ".join(parts) + "."


@dataclass(frozen=True)
class _Pair:
    """Two sets of maps of a sample, or why there are none."""

    sample_id: str
    filepath: str
    first: NDArray[np.float32] | None = None
    second: NDArray[np.float32] | None = None
    people: NDArray[np.floating] | None = None
    problem: str | None = None
    image_wh: tuple[float, float] | None = None


def fields_of(key: str, joints: Sequence[str]) -> dict[str, type]:
    """The fields that a comparison of these joints writes, with their types."""
    names = ["distance", "divergence"]
    names += [f"{measure}_{joint}" for measure in ("distance", "divergence") for joint in joints]
    numbers = {runs.field_name(key, name): fo.FloatField for name in names}
    words = {runs.field_name(key, name): fo.StringField for name in ("worst_joint", "status")}
    return {**numbers, **words}


def common_joints(dataset: fo.Dataset, label_field: str, other_field: str) -> tuple[str, ...]:
    """The joints that can be compared, in the order of the first run.

    Raises:
        ValueError: if a label field has no maps of joints, or the two have none in common
    """
    joints = map_joints(dataset, label_field)
    if other_field == FLIP:
        return joints
    others = map_joints(dataset, other_field)
    common = tuple(joint for joint in joints if joint in others)
    if not common:
        raise ValueError(
            f"'{label_field}' and '{other_field}' have no joint in common: the one has {', '.join(joints)}, the other "
            f"{', '.join(others)}."
        )
    return common


def problems(view: fo.core.collections.SampleCollection, label_field: str, other_field: str, key: str) -> list[str]:
    """What keeps a comparison from starting, as sentences that say what to do. Changes nothing."""
    target = views.target_problem(view)
    if target:
        return [target]
    dataset: fo.Dataset = view._dataset
    if other_field == FLIP and FLIP in runs.list_records(dataset):
        return [f"'{FLIP}' stands for mirrored images, but this dataset has a run of that name. Delete that run and "
                "make it again under another label field; or name it first, and the other run second."]  # fmt: skip
    if label_field == other_field:
        return [f"'{label_field}' would be compared with itself. Choose another run, or '{FLIP}' for mirrored images."]
    try:
        joints = common_joints(dataset, label_field, other_field)
    except ValueError as error:
        return [str(error)]
    record = runs.read_record(dataset, label_field)
    if other_field == FLIP and (record is None or record.adopted):
        return [f"The maps of '{label_field}' were attached, so there is no model that could look at mirrored images. "
                "Choose a run of generate_heatmaps, or another run to compare with."]  # fmt: skip
    found = [
        records.check_key(dataset, key, fields_of(key, joints)) or _difference(view, label_field, other_field, key)
    ]
    return [problem for problem in found if problem]


def _difference(view: fo.core.collections.SampleCollection, label_field: str, other_field: str, key: str) -> str | None:
    """Why a comparison of that key cannot just be continued."""
    record = records.read_record(view._dataset, key)
    if record is None:
        return None
    if record.kind != KIND:
        return f"The key '{key}' is that of another kind of evaluation; choose another key."
    settings = _settings(view._dataset, label_field, other_field)
    if record.settings != settings:
        was = f"'{record.settings['label_field']}' with '{record.settings['other_field']}'"
        again = " as they were then" if record.settings["label_field"] == label_field else ""
        return f"The key '{key}' holds a comparison of {was}{again}. Choose another key, or delete that one first."
    return None


def _settings(dataset: fo.Dataset, label_field: str, other_field: str) -> dict[str, Any]:
    run_ids = {name: getattr(runs.read_record(dataset, name), "run_id", None) for name in (label_field, other_field)}
    return {
        "label_field": label_field,
        "other_field": other_field,
        "run_ids": [run_ids[label_field], run_ids[other_field]],
        "joints": list(common_joints(dataset, label_field, other_field)),
        "threshold": THRESHOLD,
    }


def compare(
    view: fo.core.collections.SampleCollection,
    label_field: str,
    other_field: str,
    key: str,
    *,
    skip_existing: bool = True,
    num_readers: int | None = None,
    device: str | None = None,
    progress: bool | Callable | None = None,
) -> Progress:
    """Compare two runs. See :func:`process`."""
    steps = process(
        view, label_field, other_field, key, skip_existing=skip_existing, num_readers=num_readers, device=device
    )
    state = next(steps)
    with fou.ProgressBar(total=state.total, progress=progress) as bar:
        for state in steps:
            bar.set_iteration(state.done + state.failed)
    return state


def process(
    view: fo.core.collections.SampleCollection,
    label_field: str,
    other_field: str,
    key: str,
    *,
    skip_existing: bool = True,
    num_readers: int | None = None,
    device: str | None = None,
) -> Generator[Progress, None, None]:
    """Compare two runs sample by sample, step by step.

    Args:
        view: a dataset or view of images; it chooses samples, all of whose people count
        label_field: of the one run
        other_field: of the other run, or ``"flip"``: the first run's own model looks at each image and at its mirror
            image; the flip test, if the run had it, is left out then
        key: prefix of the fields
        skip_existing: leave out the samples that were compared; those with an error are tried again
        num_readers: threads that decode maps or images; None = automatic
        device: of the network, for ``"flip"``; None = the best there is

    Yields:
        the state, the same object each time: before the first batch, after each batch, and at the end

    Raises:
        ValueError: before anything is written, if something cannot work
    """
    started = time.monotonic()
    found = problems(view, label_field, other_field, key)
    if found:
        raise ValueError(" ".join(found))
    dataset: fo.Dataset = view._dataset
    settings = _settings(dataset, label_field, other_field)
    joints = tuple(settings["joints"])
    fields = fields_of(key, joints)
    status = runs.field_name(key, "status")
    view = views.whole_samples(view)
    todo = view
    if skip_existing and dataset.has_field(status):
        todo = view.match({status: {"$ne": runs.DONE}})
    state = Progress(total=len(todo))
    state.skipped = len(view) - state.total
    if other_field == FLIP:
        pairs = _flipped(todo, label_field, joints, num_readers, device)
    else:
        pairs = _paired(todo, label_field, other_field, joints, num_readers)
    runs.declare(dataset, fields)
    record = records.Record(key, KIND, tuple(fields), settings=settings)
    records.save_record(dataset, record)
    yield state
    # Never more than was counted: a view that filters by what this writes changes while it is read. A batch keeps what
    # is written, not the maps.
    pairs = itertools.islice(pairs, state.total)
    compared = ((_update(pair, key, joints, fields), pair.filepath, pair.problem) for pair in pairs)
    while batch := list(itertools.islice(compared, BATCH)):
        records.write(dataset, record, [update for update, _, _ in batch])
        failures = [(filepath, problem) for _, filepath, problem in batch if problem]
        state.done += len(batch) - len(failures)
        state.failed += len(failures)
        state.failures += failures[: MAX_LISTED - len(state.failures)]
        state.seconds = time.monotonic() - started
        yield state
    state.results = results(dataset, key, joints)
    records.save_results(dataset, key, state.results)
    dataset.reload()
    state.seconds = time.monotonic() - started
    yield state


def results(dataset: fo.Dataset, key: str, joints: Sequence[str]) -> dict[str, Any]:
    """What a comparison found, over all of its samples, aggregated by the database.

    Returns:
        ``samples``; the means ``distance`` and ``divergence``; and ``joints``: by joint the same, over the samples in
        which either run shows it, and their number
    """
    names = ["", *joints]
    paths = [[runs.field_name(key, "_".join(filter(None, (m, n)))) for m in ("distance", "divergence")] for n in names]
    asked = [stage for pair in paths for stage in (fo.Count(pair[0]), fo.Mean(pair[0]), fo.Mean(pair[1]))]
    done = views.all_samples(dataset).match({runs.field_name(key, "status"): runs.DONE})
    answers = done.aggregate(asked)
    table = {
        name: dict(zip(("samples", "distance", "divergence"), answers[3 * index : 3 * index + 3], strict=True))
        for index, name in enumerate(names)
    }
    whole = table.pop("")
    return {**whole, "joints": table}


# --- what is compared


def _paired(
    todo: fo.core.collections.SampleCollection,
    label_field: str,
    other_field: str,
    joints: Sequence[str],
    num_readers: int | None,
) -> Iterator[_Pair]:
    """The maps of two runs. Both are read in the order of ids, and each leaves out samples that it cannot read."""
    missing: list[_Pair] = []  # of the first run, not handed on yet
    other_missing: dict[str, str] = {}  # reasons by sample id

    def report(sample_id: str, filepath: str, problem: str) -> None:
        missing.append(_Pair(sample_id, filepath, problem=f"'{label_field}': {problem}"))

    def report_other(sample_id: str, filepath: str, problem: str) -> None:
        other_missing[sample_id] = f"'{other_field}': {problem}"

    def read(name: str, on_error: Callable[[str, str, str], None]) -> Iterator[SampleMaps]:
        return read_maps(todo, name, joints, on_error, [*_people_field(todo._dataset, name), *SIZE], num_readers)

    others = read(other_field, report_other)
    other = next(others, None)
    for one in read(label_field, report):
        yield from missing
        missing.clear()
        while other is not None and other.sample_id < one.sample_id:
            other = next(others, None)
        if other is not None and other.sample_id == one.sample_id:
            found = [points for maps in (one, other) for points in _people(maps.fields)]
            people, size = _stacked(found), size_for(one)
            yield _Pair(one.sample_id, one.filepath, one.maps, other.maps, people, image_wh=size)
        else:
            yield _Pair(one.sample_id, one.filepath, problem=other_missing.get(one.sample_id, "It is gone."))
        other_missing = {name: reason for name, reason in other_missing.items() if name > one.sample_id}
    yield from missing


def _flipped(
    todo: fo.core.collections.SampleCollection,
    label_field: str,
    joints: Sequence[str],
    num_readers: int | None,
    device: str | None,
) -> Iterator[_Pair]:
    """The maps of a run's model, and those of the mirrored images."""
    mirrored = load_mirrored()
    dataset = todo._dataset
    record = runs.read_record(dataset, label_field)
    predictor, joint_set = mirrored.load(record, device)  # at once, before anything is written
    people_field = _people_field(dataset, label_field)

    def pairs() -> Iterator[_Pair]:
        for seen in mirrored.look(views.pages(todo), predictor, joint_set, joints, num_readers):
            query = {"_id": ObjectId(seen.sample_id)}
            sample = dataset._sample_collection.find_one(query, people_field) if people_field else {}
            people = _stacked(_people(sample or {}))
            yield _Pair(seen.sample_id, seen.filepath, seen.plain, seen.mirrored, people, seen.problem)

    return pairs()


def _people_field(dataset: fo.Dataset, label_field: str) -> list[str]:
    name = runs.field_name(label_field, "keypoints")
    return [name] if dataset.has_field(name) else []


def _people(fields: dict[str, Any]) -> Iterator[NDArray[np.float64]]:
    """The places (K, 2) of each person's joints in keypoint labels as the database holds them."""
    for label in fields.values():
        if isinstance(label, dict):
            for person in label.get("keypoints") or []:
                yield np.array(person["points"], float).reshape(-1, 2)


def _stacked(people: Sequence[NDArray[np.float64]] | Iterator[NDArray[np.float64]]) -> NDArray[np.float64]:
    """People (P, K, 2), with NaN where one has fewer joints than another."""
    people = list(people)
    stacked = np.full((len(people), max(map(len, people), default=0), 2), np.nan)
    for row, points in zip(stacked, people, strict=True):
        row[: len(points)] = points
    return stacked


# --- what is written


def _update(pair: _Pair, key: str, joints: Sequence[str], fields: dict[str, type]) -> UpdateOne:
    values: dict[str, Any] = {"status": pair.problem or runs.DONE}
    if pair.problem is None:
        assert pair.first is not None
        assert pair.second is not None
        found = disagreement(pair.first, pair.second, pair.people, image_wh=pair.image_wh)
        values["distance"], values["divergence"] = (round(value, DIGITS) for value in found.overall())
        worst = found.worst()
        values["worst_joint"] = None if worst is None else joints[worst]
        for measure in ("distance", "divergence"):
            for joint, value in zip(joints, getattr(found, measure), strict=True):
                values[f"{measure}_{joint}"] = None if math.isnan(value) else round(float(value), DIGITS)
    written = {runs.field_name(key, name): value for name, value in values.items()}
    stamp = {"last_modified_at": datetime.now(UTC)}
    return UpdateOne({"_id": ObjectId(pair.sample_id)}, {"$set": {**dict.fromkeys(fields), **written, **stamp}})
