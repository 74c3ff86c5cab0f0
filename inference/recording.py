"""The record of a run, opened before its first sample and closed after its last one.

Several processes may do so at the same time: the shards of one call, or calls that overlap. One after the other looks
at the record and changes it, so that all of them write under one run id.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiftyone as fo
import torch
from bson import ObjectId
from fiftyone.core.odm import get_db_conn
from pymongo import ReturnDocument
from pymongo.errors import AutoReconnect, DuplicateKeyError

from . import removal, runs
from .checkpoints import ModelEntry, find_model
from .joints import JointSet
from .map_files import delete_maps
from .settings import Settings, find_maps
from .views import all_samples, patiently

LOCKS = "pose_heatmaps_locks"  # a collection of the database
LEASE = 60  # seconds after which the lock of a process that was killed is nobody's


def fields_of(settings: Settings, joint_set: JointSet) -> dict[str, type]:
    """The fields that a run writes, with their types."""
    maximum, joints = find_maps(settings.maps, joint_set)
    return runs.declared_fields(settings.label_field, joints, maximum, settings.keypoints)


def change_problem(dataset: fo.Dataset, settings: Settings, sha256: str | None, existing: str | None) -> str | None:
    """Why the maps of a label field cannot just be continued; without a hash, as far as the settings can tell."""
    old = runs.read_record(dataset, settings.label_field)
    if old is None and settings.label_field in dataset.list_runs():
        return runs.taken_problem(settings.label_field)
    if existing == "replace":
        return None
    if old and _is_foreign(old, dataset):
        origin = "were attached or adopted" if old.adopted else "came with the dataset that this one is a clone of"
        return f"The maps of '{settings.label_field}' {origin}. Choose another label field, or pass existing='replace'."
    joint_set = find_model(settings.model, settings.checkpoint).joint_set
    if old and old.joints != joint_set.joints:
        return (
            f"'{settings.label_field}' holds the maps of a run with other joints than those of '{settings.model}'. "
            "Choose another label field, or pass existing='replace' to make them anew."
        )
    unknown = _unknown_problem(dataset, settings, joint_set, old)
    if unknown or old is None:
        return unknown
    changed = runs.differences(old, {**settings.recorded(), "sha256": sha256 or old.settings.get("sha256")})
    if not changed or existing == "append":
        return None
    return (
        f"'{settings.label_field}' holds the maps of a run with other settings: {'; '.join(changed)}. Choose another "
        "label field, or pass existing='replace' to make them anew, or existing='append' to keep them and run on the "
        "other samples."
    )


def _unknown_problem(
    dataset: fo.Dataset, settings: Settings, joint_set: JointSet, record: runs.Record | None
) -> str | None:
    """Maps and labels that no run is known for must not be taken for this one's, nor be lost by it."""
    names = runs.unknown_values(dataset, fields_of(settings, joint_set), record)
    if not names:
        return None
    if record is None and {*names} & {*runs.heatmap_fields(dataset)}:
        return (
            f"'{settings.label_field}' has maps that no run is known for, as apply_model() makes them. Choose another "
            "label field, adopt them in the panel Pose heatmaps, or pass existing='replace' to make them anew."
        )
    return (
        f"The dataset has values in {', '.join(names)} that no run of '{settings.label_field}' is known for, such as "
        "labels of your own. Choose another label field, or pass existing='replace' to write over them."
    )


def _is_foreign(record: runs.Record, dataset: fo.Dataset) -> bool:
    """Whether the maps of a record were not made by a run on this dataset."""
    return record.adopted or record.dataset_id != runs.dataset_id(dataset)


def _is_changed(
    record: runs.Record, dataset: fo.Dataset, settings: Settings, joint_set: JointSet, sha256: str | None
) -> bool:
    """Whether a run made its maps in another way than these settings would."""
    recorded = {**settings.recorded(), "sha256": sha256 or record.settings.get("sha256")}
    other_joints = record.joints != joint_set.joints
    return _is_foreign(record, dataset) or other_joints or bool(runs.differences(record, recorded))


def starts_over(
    dataset: fo.Dataset, settings: Settings, joint_set: JointSet, sha256: str | None, existing: str | None
) -> bool:
    """Whether what counts as done is to be done again: it is replaced, or somebody has deleted a field of the run.

    Args:
        settings: resolved
        sha256: of the weights; None = the run's own
    """
    old = runs.read_record(dataset, settings.label_field)
    if old is None:
        return dataset.has_field(runs.field_name(settings.label_field, "status"))
    if _is_changed(old, dataset, settings, joint_set, sha256):
        return existing == "replace"
    # What only a replaced run had is deleted when this one ends.
    there = {*old.replaced, *dataset.get_field_schema()}
    return any(name in old.fields and name not in there for name in fields_of(settings, joint_set))


def written_fields(dataset: fo.Dataset, settings: Settings, joint_set: JointSet) -> set[str]:
    """The fields that a run writes or clears."""
    old = runs.read_record(dataset, settings.label_field)
    return {*fields_of(settings, joint_set), *(old.fields if old else ())}


def open_record(
    dataset: fo.Dataset,
    settings: Settings,
    entry: ModelEntry,
    sha256: str,
    existing: str | None = None,
    run_id: str | None = None,
) -> runs.Record:
    """Find or make the record of a run, and its fields in the schema.

    Args:
        settings: resolved
        entry: the model
        sha256: of its weights
        existing: as of :func:`.pipeline.process`
        run_id: the run that this one is a part of; None = whichever the label field has, or a new one

    Raises:
        ValueError: if the record does not let these settings continue, or is not that of ``run_id``
    """
    label_field, joint_set = settings.label_field, entry.joint_set
    fields = fields_of(settings, joint_set)
    recorded = {**settings.recorded(), "sha256": sha256}
    with _one_at_a_time(dataset):
        dataset.reload()  # another process may have changed it
        expect(dataset, label_field, run_id)
        old = runs.read_record(dataset, label_field)
        problem = change_problem(dataset, settings, sha256, existing)
        if problem:
            raise ValueError(problem)
        replaces = existing == "replace" and bool(old and _is_changed(old, dataset, settings, joint_set, sha256))
        people = _misfits(dataset, old, joint_set) if old and replaces else []
        known = {*old.fields} & {*dataset.get_field_schema()} if old else set()
        # Before a field that was deleted is there again, which tells that it has to be made again.
        if starts_over(dataset, settings, joint_set, sha256, existing):
            _undo(dataset, label_field, people)
        runs.declare(dataset, fields)
        # The looks of the others may have been changed by the user.
        fresh = [name for name in fields if name not in known or name in people]
        if fresh:
            runs.style(dataset, label_field, joint_set, fresh)
        if old and not replaces:
            record = replace(
                old,
                fields=tuple(dict.fromkeys((*old.fields, *fields))),
                replaced=tuple(name for name in old.replaced if name not in fields),
                flip=joint_set.flip,
                sigmas=joint_set.sigmas,
                settings=recorded,
            )
            record = replace(record, previous=_earlier_folders(old, record))
        else:
            previous = [str(folder) for folder in removal.run_folders(dataset, old)] if old else []
            record = runs.Record(
                label_field=label_field,
                run_id=runs.new_run_id(),
                dataset_id=runs.dataset_id(dataset),
                fields=tuple(dict.fromkeys((*fields, *(old.fields if old else ())))),
                joints=joint_set.joints,
                flip=joint_set.flip,
                sigmas=joint_set.sigmas,
                settings=recorded,
                versions={"fiftyone": fo.__version__, "torch": torch.__version__},
                previous=tuple(previous),
                replaced=tuple(name for name in (old.fields if old else ()) if name not in fields),
            )
        if record != old:
            runs.save_record(dataset, record)
        if replaces:  # what another process has done in between; from now on it sees that its run is gone
            _undo(dataset, label_field, people)
    return record


def _misfits(dataset: fo.Dataset, old: runs.Record, joint_set: JointSet) -> list[str]:
    """The fields with people of a run that is replaced, if its joints are others: no skeleton would fit them."""
    if old.joints == joint_set.joints:
        return []
    names = [runs.field_name(old.label_field, name) for name in ("keypoints", "num_people")]
    return [name for name in names if name in old.fields and dataset.has_field(name)]


def _undo(dataset: fo.Dataset, label_field: str, people: list[str]) -> None:
    """All that was done is to be done again; maps stay until then, and people unless they do not fit."""
    if dataset.has_field(runs.field_name(label_field, "status")):
        undo_done(dataset, label_field)
    if people:
        dataset.clear_sample_fields(people)


def _earlier_folders(old: runs.Record, record: runs.Record) -> tuple[str, ...]:
    """The folders of a run's maps from before it went on, perhaps in another folder or in the database."""
    earlier = dict.fromkeys((*old.previous, *([str(old.folder)] if old.folder else [])))
    return tuple(folder for folder in earlier if folder != str(record.folder))


def undo_done(dataset: fo.Dataset, label_field: str, sample_ids: Iterable[str] | None = None) -> None:
    """What was done, of all samples or of some, is to be done again; its maps stay until then."""
    status = runs.field_name(label_field, "status")
    which: dict[str, Any] = {status: runs.DONE}
    if sample_ids is not None:
        which["_id"] = {"$in": [ObjectId(one) for one in sample_ids]}
    all_samples(dataset).match(which).set_field(status, None).save(status)


def close_record(dataset: fo.Dataset, label_field: str) -> None:
    """Delete the files of replaced runs, and fields that only they had, once no sample refers to them."""
    record = runs.read_record(dataset, label_field)
    if record is None:
        return
    names = {name.removeprefix(f"{label_field}_") for name in record.fields}
    dropped = []
    for folder in record.previous:
        if not removal.is_shown(Path(folder)):
            for _ in delete_maps(Path(folder), names):
                pass
            dropped.append(folder)
    with _one_at_a_time(dataset):
        dataset.reload()
        latest = runs.read_record(dataset, label_field)
        if latest is None or latest.run_id != record.run_id:
            return
        kept = tuple(folder for folder in latest.previous if folder not in dropped)
        samples, gone = all_samples(dataset), [name for name in latest.replaced if not dataset.has_field(name)]
        unused = [name for name in latest.replaced if not kept and (name in gone or not samples.count(name))]
        present = [name for name in unused if name not in gone]
        if present:
            dataset.delete_sample_fields(present)
        fields, replaced = (
            tuple(name for name in names if name not in unused) for names in (latest.fields, latest.replaced)
        )
        closed = replace(latest, previous=kept, fields=fields, replaced=replaced)
        if closed != latest:
            runs.save_record(dataset, closed)


def expect(dataset: fo.Dataset, label_field: str, run_id: str | None) -> None:
    """Raises ValueError where a label field no longer holds the run that a shard is a part of."""
    record = runs.read_record(dataset, label_field)
    if run_id and (record is None or record.run_id != run_id):
        raise ValueError(runs.gone(label_field))


@contextmanager
def _one_at_a_time(dataset: fo.Dataset) -> Iterator[None]:
    """Keeps other processes from changing the record and the schema, on whichever machine they run."""
    locks, holder = get_db_conn()[LOCKS], ObjectId()
    free = {"$or": [{"$lt": ["$until", "$$NOW"]}, {"$eq": ["$holder", holder]}]}
    until = {"$dateAdd": {"startDate": "$$NOW", "unit": "second", "amount": LEASE}}
    taken: list[dict[str, Any]] = [
        {"$set": {"holder": {"$cond": [free, holder, "$holder"]}, "until": {"$cond": [free, until, "$until"]}}}
    ]

    def take() -> bool:
        try:
            after = locks.find_one_and_update(
                {"_id": dataset._doc.id}, taken, upsert=True, return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:  # two were the first at the same time
            return False
        return after["holder"] == holder

    def renew() -> None:
        while not over.wait(LEASE / 4):
            with suppress(AutoReconnect):  # then the next time
                take()

    while not patiently(take):
        time.sleep(0.1)
    over = threading.Event()
    renewing = threading.Thread(target=renew, name="lock", daemon=True)  # what is done meanwhile may take long
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        patiently(lambda: locks.delete_one({"_id": dataset._doc.id, "holder": holder}))
