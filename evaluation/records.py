"""The record of an evaluation: a FiftyOne run, with what it wrote, how it was made, and its results.

An evaluation is known by its key: all that it writes starts with ``<key>_``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import fiftyone as fo
from fiftyone.core.odm import get_db_conn
from pymongo import UpdateOne

from .inference import runs, views

METHOD = "pose-heatmaps-evaluation"  # tells these records from other FiftyOne runs
LABELS_LOOKED_AT = 1000  # samples
DELETED = "deleted"  # the kind of a record whose fields are being deleted


@dataclass(frozen=True)
class Record:
    """What an evaluation wrote, and how it was made.

    Attributes:
        key: prefix of all that it wrote
        kind: what was done, such as ``"ground truth"``
        fields: of samples that it wrote
        attributes: of labels that are somebody else's, as paths, such as ``"ground_truth.keypoints.eval_status"``
        settings: all that decides what the values are
        brain_keys: of the runs of FiftyOne Brain that it made
    """

    key: str
    kind: str
    fields: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    brain_keys: tuple[str, ...] = ()


def read_record(dataset: fo.Dataset, key: str) -> Record | None:
    """The record of an evaluation, or None where the key has none."""
    if key not in dataset.list_runs():
        return None
    config = dataset.get_run_info(key).config
    if getattr(config, "made_by", None) != METHOD:
        return None
    plain = runs.plain(config.record)
    lists = ("fields", "attributes", "brain_keys")
    return Record(**{**plain, **{name: tuple(plain.get(name, ())) for name in lists}})


def list_records(dataset: fo.Dataset, kind: str | None = None) -> dict[str, Record]:
    """All evaluations of a dataset, or all of a kind, by key."""
    records = {key: read_record(dataset, key) for key in dataset.list_runs(made_by=METHOD)}
    return {key: record for key, record in records.items() if record and kind in (None, record.kind)}


def save_record(dataset: fo.Dataset, record: Record) -> None:
    """Write a record, in place of an older one of the same key; results stay.

    Raises:
        ValueError: if the key belongs to a run of something else
    """
    taken = record.key in dataset.list_runs()
    if taken and read_record(dataset, record.key) is None:
        raise ValueError(f"The dataset has another run with the key '{record.key}'; choose another key.")
    config = dataset.init_run(made_by=METHOD, record=runs.plain(asdict(record)))
    if taken:
        dataset.update_run_config(record.key, config)
    else:
        dataset.register_run(record.key, config)


def save_results(dataset: fo.Dataset, key: str, results: dict[str, Any]) -> None:
    """Keep results, plain values that JSON knows, with the record."""
    dataset.save_run_results(key, dataset.init_run_results(key, results=results), overwrite=True, cache=False)


def load_results(dataset: fo.Dataset, key: str) -> dict[str, Any] | None:
    """The results of an evaluation, or None where it did not come to its end."""
    loaded = dataset.load_run_results(key, cache=False, load_view=False)
    return None if loaded is None else loaded.results


def write(dataset: fo.Dataset, record: Record, updates: Sequence[UpdateOne]) -> None:
    """Write to samples, as long as the evaluation is there, with the same settings.

    Raises:
        RuntimeError: if it was deleted or replaced meanwhile; what was written is taken back then
    """
    views.bulk_write(dataset, updates)
    # Asked for every batch: FiftyOne would load the dataset anew.
    where = {"_dataset_id": dataset._doc.id, "key": record.key, "config.record.kind": record.kind}
    same = {name: value for name, value in record.settings.items() if name != "annotations"}  # a file may move
    where |= {f"config.record.settings.{name}": value for name, value in runs.plain(same).items()}
    if not views.patiently(lambda: get_db_conn()["runs"].count_documents(where, limit=1)):
        views.take_back(dataset, updates)
        raise RuntimeError(
            f"'{record.key}' was deleted or replaced meanwhile, so this stopped. Start it again if it is still wanted."
        )


def delete(dataset: fo.Dataset, key: str) -> list[str]:
    """Delete all that an evaluation wrote, and its record.

    Returns:
        the fields and attributes that were deleted

    Raises:
        ValueError: if there is no such evaluation
    """
    record = read_record(dataset, key)
    if record is None:
        known = ", ".join(list_records(dataset)) or "there are none"
        raise ValueError(f"'{key}' is not the key of an evaluation of pose heatmaps ({known}).")
    save_record(dataset, replace(record, kind=DELETED))  # whoever still writes sees it, and takes it back
    for brain_key in set(record.brain_keys) & set(dataset.list_brain_runs()):
        dataset.delete_brain_run(brain_key)
    present = [name for name in (*record.fields, *record.attributes) if dataset.has_field(name)]
    runs.switch_off(dataset, record.fields)
    if present:
        dataset.delete_sample_fields(present)
    dataset.delete_run(key)
    return present


def check_key(dataset: fo.Dataset, key: str, fields: Iterable[str], attributes: Iterable[str] = ()) -> str | None:
    """Why a key cannot be that of a new evaluation which writes these fields, as a sentence; None if it can.

    Args:
        attributes: of labels that it writes, too, as paths
    """
    if not key.isidentifier() or key.startswith("_"):
        return f"'{key}' cannot be a key: use letters, digits and underscores, starting with a letter."
    record = read_record(dataset, key)
    if record is None and key in dataset.list_runs():
        return f"The dataset has another run with the key '{key}'; choose another key."
    taken = [name for name in fields if dataset.has_field(name) and (record is None or name not in record.fields)]
    if taken:
        return f"The dataset has a field '{taken[0]}' that is not of an evaluation '{key}'; choose another key."
    new = [name for name in attributes if record is None or name not in record.attributes]
    # Not the schema: FiftyOne keeps attributes of labels that are not declared. Not all samples: a form asks, too.
    some = views.all_samples(dataset).limit(LABELS_LOOKED_AT)
    given = new and some.match({"$or": [{name: {"$exists": True}} for name in new]})
    if given and given.limit(1).count():
        return f"Labels have attributes '{key}_…' that are not of an evaluation '{key}'; choose another key."
    return None
