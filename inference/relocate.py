"""Map files whose folder was moved: the paths in the database follow, all at once and without looking at samples."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiftyone as fo

from . import runs
from .file_index import ARRAY
from .views import all_samples, patiently

SAMPLES_LOOKED_AT = 50


def root_of(record: runs.Record) -> str | None:
    """The folder that a run's maps lie in; of maps that were attached as they are, the folder with the originals."""
    return record.settings.get(_key(record))


def problems(dataset: fo.Dataset, label_field: str, maps_dir: str | Path) -> list[str]:
    """Why the maps of a run cannot be looked for in a folder, as sentences; empty if they can. Changes nothing."""
    record = runs.read_record(dataset, label_field)
    if record is None:
        known = ", ".join(runs.list_records(dataset)) or "there are none"
        return [f"'{label_field}' is not the label field of a run of pose heatmaps ({known})."]
    old, new = root_of(record), _absolute(maps_dir)
    if not old:
        return [f"The maps of '{label_field}' are in the database, not in files; there is nothing to relocate."]
    if new == old:
        return [f"The maps of '{label_field}' are looked for in {new} already."]
    if not Path(new).is_dir():
        return [f"There is no folder {new}. Move the maps there first, then relocate them."]
    maps = _maps(dataset, record)
    samples = all_samples(dataset)
    if not any(samples.match(_inside(maps, folder)).limit(1).count() for folder in (old, new)):
        return [f"No sample has maps of '{label_field}' below {old}; there is nothing to relocate."]
    somewhere = samples.match(_inside(maps, old)).take(SAMPLES_LOOKED_AT, seed=51)
    columns = somewhere.values([f"{name}.map_path" for name in maps])
    moved = [new + path[len(old) :] for column in columns for path in column if path and path.startswith(old + os.sep)]
    missing = [path for path in moved if not Path(path).is_file()]
    if missing:
        return [
            f"{new} does not hold the maps of '{label_field}': {missing[0]} is missing, as are {len(missing) - 1:,} of "
            f"{len(moved):,} others that were looked for. Choose the folder that {old} has become."
        ]
    return []


def relocate(dataset: fo.Dataset, label_field: str, maps_dir: str | Path) -> int:
    """Let the maps of a run be found in the folder that they were moved to. No file is touched.

    Where it is killed, some samples have their new paths and some do not; the next call changes the others.

    Args:
        dataset: that refers to the maps; a clone of it refers to them by itself
        label_field: of the run
        maps_dir: what the run's folder (``Record.maps_dir``) has become

    Returns:
        how many samples were changed

    Raises:
        ValueError: if the maps are not there
    """
    found = problems(dataset, label_field, maps_dir)
    if found:
        raise ValueError(" ".join(found))
    record = runs.read_record(dataset, label_field)
    assert record is not None
    old, new = str(root_of(record)), _absolute(maps_dir)
    maps = _maps(dataset, record)
    change = {name: _moved(name, old + os.sep, new + os.sep) for name in maps}
    collection = dataset._sample_collection
    changed = patiently(
        lambda: collection.update_many(_inside(maps, old), [{"$set": {**change, "last_modified_at": "$$NOW"}}])
    )
    key = _key(record)
    previous = tuple(
        new + folder.removeprefix(old) if _is_inside(folder, old) else folder for folder in record.previous
    )
    runs.save_record(dataset, replace(record, settings={**record.settings, key: new}, previous=previous))
    dataset.reload()
    return int(changed.modified_count)


def _key(record: runs.Record) -> str:
    """The setting that names the folder; NumPy files were converted, so that their maps lie where a run's do."""
    patterns = (record.settings.get("pattern") or "", record.settings.get("joint_pattern") or "")
    converted = any(pattern.endswith(ARRAY) for pattern in patterns)
    return "source" if record.adopted and not converted else "maps_dir"


def _absolute(folder: str | Path) -> str:
    return str(Path(folder).expanduser().absolute())


def _is_inside(folder: str, root: str) -> bool:
    return folder.startswith(root + os.sep)


def _maps(dataset: fo.Dataset, record: runs.Record) -> list[str]:
    return [name for name in runs.heatmap_fields(dataset) if name in record.fields]


def _inside(maps: list[str], root: str) -> dict[str, Any]:
    """Matches samples that have a map below a folder."""
    below = {"$regex": "^" + re.escape(root + os.sep)}
    conditions: list[dict[str, Any]] = [{f"{name}.map_path": below} for name in maps]
    return {"$or": conditions or [{"_id": None}]}


def _moved(name: str, old: str, new: str) -> dict[str, Any]:
    """A heatmap with another beginning of its path; as it is where the path begins otherwise, or is not there."""
    path = f"${name}.map_path"
    begins = {"$eq": [{"$indexOfCP": [{"$ifNull": [path, ""]}, {"$literal": old}]}, 0]}
    moved = {"$replaceOne": {"input": path, "find": {"$literal": old}, "replacement": {"$literal": new}}}
    return {"$cond": [begins, {"$mergeObjects": [f"${name}", {"map_path": moved}]}, f"${name}"]}
