"""Deleting a run: what goes with it, and what stays because somebody else needs it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiftyone as fo
from fiftyone.core.odm import get_db_conn

from . import runs
from .map_files import delete_maps
from .views import all_samples

HEATMAP = "fiftyone.core.labels.Heatmap"  # as the database calls it
SAMPLES_MEASURED = 50  # of whose files all others are estimated


def run_folders(dataset: fo.Dataset, record: runs.Record) -> list[Path]:
    """The folders of a run's map files that this dataset may delete.

    None of a clone's, which only refers to the files of the dataset that it was made from. Maps that were attached lie
    where they were; what was converted for them lies in the run's folder, as everything that the run made.
    """
    if record.dataset_id != runs.dataset_id(dataset):
        return []
    current = [record.folder] if record.folder else []
    return [folder for folder in (*current, *map(Path, record.previous)) if folder.is_dir()]


@dataclass(frozen=True)
class Extent:
    """What deleting a run removes.

    Attributes:
        fields: that are in the schema
        samples: with at least one of its maps
        files: map files of the run, an estimate
        bytes: of the files, an estimate
        folders: that hold them
    """

    fields: tuple[str, ...]
    samples: int
    files: int
    bytes: int
    folders: tuple[str, ...]


def extent(dataset: fo.Dataset, record: runs.Record) -> Extent:
    """Count the samples, and estimate the files from those of some samples: no folder is walked through."""
    fields = tuple(name for name in record.fields if name in dataset.get_field_schema())
    maps = sorted({*fields} & {*runs.heatmap_fields(dataset)})
    any_map: list[dict[str, Any]] = [{name: {"$ne": None}} for name in maps]
    with_maps = all_samples(dataset).match({"$or": any_map or [{"_id": None}]})
    samples = len(with_maps)
    folders = run_folders(dataset, record)
    inside = tuple(str(folder) + os.sep for folder in folders)
    files = size = seen = 0
    if maps and folders:
        measured = with_maps.take(SAMPLES_MEASURED, seed=51).values([f"{name}.map_path" for name in maps])
        for paths in zip(*measured, strict=True):
            seen += 1
            for path in paths:
                if path and path.startswith(inside):
                    files += 1
                    with contextlib.suppress(OSError):
                        size += os.stat(path).st_size
    scale = samples / max(seen, 1)
    return Extent(fields, samples, round(files * scale), round(size * scale), tuple(map(str, folders)))


def delete(dataset: fo.Dataset, label_field: str, delete_files: bool = True) -> Generator[int, None, None]:
    """Delete a run: its fields, colours, skeleton, the map files that it made, and its record.

    Files that the run did not make stay: attached originals, those of the dataset that this one is a clone of, and
    anything else in its folders.

    Yields:
        how many files are deleted so far

    Raises:
        ValueError: at once, if the label field has no run
    """
    record = runs.read_record(dataset, label_field)
    if record is None:
        known = ", ".join(runs.list_records(dataset)) or "there are none"
        raise ValueError(f"'{label_field}' is not the label field of a run of pose heatmaps ({known}).")
    return _delete(dataset, record, delete_files)


def _delete(dataset: fo.Dataset, record: runs.Record, delete_files: bool) -> Generator[int, None, None]:
    # Under another run id first, so that a run that goes on meanwhile sees that it is gone, and takes back what it
    # writes. Then fields: no sample ever refers to a file that is gone. The record last: when this is killed, the files
    # that are left are still known, and deleting again goes on from there.
    folders = run_folders(dataset, record)
    runs.save_record(dataset, replace(record, run_id=runs.new_run_id(), previous=tuple(map(str, folders))))
    present = [name for name in record.fields if name in dataset.get_field_schema()]
    runs.switch_off(dataset, record.fields)
    if present:
        dataset.delete_sample_fields(present)
    count = 0
    yield count
    if delete_files:
        names = {name.removeprefix(f"{record.label_field}_") for name in record.fields}
        for folder in folders:
            if is_shown(folder):
                continue
            for _ in delete_maps(folder, names):
                count += 1
                if count % 1000 == 0:
                    yield count
        if record.maps_dir and Path(record.maps_dir) == Path(runs.default_maps_dir(dataset)):
            with contextlib.suppress(OSError):
                Path(record.maps_dir).rmdir()
    dataset.delete_run(record.label_field)
    yield count


def is_shown(folder: Path) -> bool:
    """Whether a heatmap of a sample of any dataset, of this run or cloned or renamed, is a file below a folder."""
    database = get_db_conn()
    inside = {"$regex": "^" + re.escape(str(folder) + os.sep)}
    for dataset in database["datasets"].find({"sample_fields.embedded_doc_type": HEATMAP}):
        names = [field["db_field"] for field in dataset["sample_fields"] if field.get("embedded_doc_type") == HEATMAP]
        conditions = [{f"{name}.map_path": inside} for name in names]
        if database[dataset["sample_collection_name"]].find_one({"$or": conditions}, ["_id"]):
            return True
    return False
