"""What a run adds to a dataset: fields, colours, skeleton, and the record that says how the maps came about.

A run is known by its label field: its fields are ``<label_field>_max``, ``<label_field>_<joint>`` and so on, and its
record is the FiftyOne run of that key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fiftyone as fo
from bson import ObjectId
from fiftyone.core.odm import create_field, get_db_conn

from .joints import JOINT_SETS, RESERVED_NAMES, JointSet
from .map_files import run_folder
from .views import patiently

MAX_COLOR = "#39ff14"  # stands out on skin, clothes, sky and grass alike, which red does not
KEYPOINTS_COLOR = "#ff4fd8"  # and on the maximum map
DONE = "done"
FLIP = "flip"  # stands for the mirrored image where runs are compared
METHOD = "pose-heatmaps"  # tells this plugin's records from other FiftyOne runs


@dataclass(frozen=True)
class Record:
    """How a run was made; kept as a FiftyOne run whose key is the label field.

    Attributes:
        label_field: prefix of the run's fields
        run_id: names the folder of the run's map files
        dataset_id: the dataset that owns the files (a clone only refers to them)
        fields: names of the fields that the run writes, and those that only a replaced one had
        replaced: of them, the latter: they go when no sample has anything there any more
        joints: the joint names, in the order of the keypoints
        flip, sigmas: of the joint set, in that order; empty where it is not known, then names tell
        settings: all that decides what the maps look like, and the weights' SHA-256
        versions: of FiftyOne and torch when the run began
        previous: other folders that hold maps which some sample refers to: of replaced runs, and of this one before its
            folder or storage was changed
        adopted: True if the maps were made by something else; of their files only converted ones are this plugin's
    """

    label_field: str
    run_id: str
    dataset_id: str
    fields: tuple[str, ...]
    joints: tuple[str, ...]
    flip: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    settings: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    previous: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    adopted: bool = False

    @property
    def maps_dir(self) -> str | None:
        return self.settings.get("maps_dir")

    @property
    def folder(self) -> Path | None:
        """Of the run's map files."""
        return run_folder(self.maps_dir, self.run_id) if self.maps_dir else None


def field_name(label_field: str, name: str) -> str:
    return f"{label_field}_{name}"


def declared_fields(
    label_field: str, joints: Iterable[str], maximum: bool = True, keypoints: bool = True
) -> dict[str, type]:
    """The fields of a run with their types: an embedded document for labels, a field class for plain values."""
    names: dict[str, type] = {"max": fo.Heatmap} if maximum else {}
    names |= dict.fromkeys(joints, fo.Heatmap)
    if keypoints:
        names |= {"keypoints": fo.Keypoints, "num_people": fo.IntField}
    names |= {"confidence": fo.FloatField, "status": fo.StringField}
    return {field_name(label_field, name): kind for name, kind in names.items()}


def conflicts(dataset: fo.Dataset, fields: dict[str, type]) -> list[str]:
    """A sentence for each field that exists with another type."""
    schema = dataset.get_field_schema()
    problems = []
    for name, kind in fields.items():
        if name not in schema:
            continue
        present = schema[name]
        there = present.document_type if isinstance(present, fo.EmbeddedDocumentField) else type(present)
        if there is not kind:
            problems.append(
                f"The dataset has a field '{name}' of type {there.__name__}, but the run writes {kind.__name__} there. "
                "Choose another label field, or rename or delete that field."
            )
    return problems


def unknown_values(dataset: fo.Dataset, fields: Iterable[str], record: Record | None) -> list[str]:
    """Those of the fields that hold something, in one sample at least, and that the record does not know."""
    schema, known = dataset.get_field_schema(), record.fields if record else ()
    names = [name for name in fields if name in schema and name not in known]
    # Empty ones may be what a killed run has declared: the record is written after the fields, before any value.
    found = names and dataset._sample_collection.find_one({"$or": [{name: {"$ne": None}} for name in names]}, names)
    return [name for name in names if found and found.get(name) is not None]


def check_label_field(label_field: str) -> None:
    """Raises ValueError if a label field cannot be used as a prefix of field names."""
    if not label_field.isidentifier() or label_field.startswith("_"):
        raise ValueError(
            f"'{label_field}' cannot be a label field: use letters, digits and underscores, starting with a letter."
        )
    if label_field == FLIP:
        raise ValueError(f"'{FLIP}' cannot be a label field: compare_runs calls the mirrored image so.")


def declare(dataset: fo.Dataset, fields: dict[str, type]) -> None:
    """Add the fields to the dataset's schema.

    Raises:
        ValueError: if a field exists with another type
    """
    problems = conflicts(dataset, fields)
    if problems:
        raise ValueError(" ".join(problems))
    schema = dataset.get_field_schema()
    new = {}
    for name, kind in fields.items():
        if name not in schema:
            label = issubclass(kind, fo.Label)
            new[name] = create_field(
                name, fo.EmbeddedDocumentField if label else kind, embedded_doc_type=kind if label else None
            )
    # All at once: the public add_sample_field() loads the dataset anew for each field, a second for those of a run.
    dataset._merge_sample_field_schema(new)
    for name in (name for name, kind in fields.items() if kind is fo.Keypoints):
        if dataset.get_field(f"{name}.keypoints.score") is None:
            dataset.add_sample_field(f"{name}.keypoints.score", fo.FloatField)


def style(dataset: fo.Dataset, label_field: str, joint_set: JointSet | None, fields: Iterable[str]) -> None:
    """Give a run's fields their colours and skeleton, and switch its maximum map on in the App.

    What people chose stays; the way of colouring is set only where the dataset has no colour scheme.
    """
    fields = set(fields)
    keypoints = field_name(label_field, "keypoints")
    colors = {field_name(label_field, "max"): MAX_COLOR, keypoints: KEYPOINTS_COLOR}
    if joint_set is not None:
        colors |= {field_name(label_field, joint): color for joint, color in joint_set.colors.items()}
        if keypoints in fields:
            dataset.skeletons[keypoints] = fo.KeypointSkeleton(
                labels=list(joint_set.joints), edges=[list(limb) for limb in joint_set.limbs]
            )
    config = dataset.app_config
    scheme = config.color_scheme or fo.ColorScheme(color_by="field")
    chosen = list(scheme.fields or [])
    new = fields - {entry["path"] for entry in chosen}
    scheme.fields = chosen + [{"path": path, "fieldColor": color} for path, color in colors.items() if path in new]
    config.color_scheme = scheme
    _switch_on(dataset, label_field, fields)
    dataset.save()


def field_colors(dataset: fo.Dataset) -> dict[str, str]:
    """The colours of the dataset's fields, as far as somebody chose them."""
    scheme = dataset.app_config.color_scheme
    entries = (scheme.fields if scheme else None) or []
    return {entry["path"]: entry["fieldColor"] for entry in entries if entry.get("fieldColor")}


def _switch_on(dataset: fo.Dataset, label_field: str, fields: set[str]) -> None:
    shown = {field_name(label_field, "max"), field_name(label_field, "keypoints")} & fields
    active = dataset.app_config.active_fields or fo.DatasetAppConfig.default_active_fields(dataset)
    if active.exclude:
        hidden = [name for name in fields - shown if name not in active.paths]
        active.paths = [path for path in active.paths if path not in shown] + sorted(hidden)
    else:
        active.paths = list(active.paths) + sorted(shown - set(active.paths))
    dataset.app_config.active_fields = active


def switch_off(dataset: fo.Dataset, fields: Iterable[str]) -> None:
    fields = set(fields)
    config = dataset.app_config
    if config.color_scheme and config.color_scheme.fields:
        config.color_scheme.fields = [e for e in config.color_scheme.fields if e["path"] not in fields]
    if config.active_fields:
        config.active_fields.paths = [path for path in config.active_fields.paths if path not in fields]
    for name in fields & set(dataset.skeletons):
        del dataset.skeletons[name]
    dataset.save()


# --- the record


def read_record(dataset: fo.Dataset, label_field: str) -> Record | None:
    """The record of a run, or None where the label field has none."""
    if label_field not in dataset.list_runs():
        return None
    config = dataset.get_run_info(label_field).config
    if getattr(config, "made_by", None) != METHOD:
        return None
    values = {name: plain(getattr(config, name)) for name in Record.__dataclass_fields__ if hasattr(config, name)}
    for name in ("fields", "joints", "flip", "sigmas", "previous", "replaced"):
        values[name] = tuple(values.get(name, ()))
    return Record(**values)


def list_records(dataset: fo.Dataset) -> dict[str, Record]:
    """All runs of this plugin on a dataset, by label field."""
    records = {key: read_record(dataset, key) for key in dataset.list_runs()}
    return {key: record for key, record in records.items() if record is not None}


def save_record(dataset: fo.Dataset, record: Record) -> None:
    """Write a record, in place of an older one of the same label field.

    Raises:
        ValueError: if the key belongs to a run of something else
    """
    key = record.label_field
    if key in dataset.list_runs() and read_record(dataset, key) is None:
        raise ValueError(taken_problem(key))
    config = dataset.init_run(made_by=METHOD, **plain(asdict(record)))
    if key in dataset.list_runs():
        dataset.update_run_config(key, config)
    else:
        dataset.register_run(key, config)


def is_current(record: Record) -> bool:
    """Whether the label field still holds this run: it may be replaced or deleted while a process works on it."""
    # Asked for every batch: FiftyOne would load the dataset anew.
    where = {"_dataset_id": ObjectId(record.dataset_id), "key": record.label_field, "config.run_id": record.run_id}
    return patiently(lambda: get_db_conn()["runs"].count_documents(where, limit=1)) > 0


def verdicts(record: Record) -> tuple[str, ...]:
    """The status fields of evaluations, comparisons and indices of a run: to be emptied where its maps change.

    Then these samples are judged anew by the next call.
    """
    names = [{f"config.record.settings.{name}": record.label_field} for name in ("label_field", "other_field")]
    where = {"_dataset_id": ObjectId(record.dataset_id), "$or": names}
    found = patiently(lambda: list(get_db_conn()["runs"].find(where, ["key"])))
    return tuple(field_name(run["key"], "status") for run in found)


def gone(label_field: str) -> str:
    """What is told to a process whose run was replaced or deleted by another one."""
    return (
        f"The run of '{label_field}' that this one belongs to was replaced or deleted meanwhile, so it stopped. "
        "Start it again if its maps are still wanted."
    )


def taken_problem(key: str) -> str:
    """Why a label field cannot be the key of a run: something else's run has it."""
    return f"The dataset has another run with the key '{key}'; choose another label field."


def plain(value: Any) -> Any:
    """Plain dicts and lists: no tuples, which become lists in the database, and none of mongoengine's containers."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def new_run_id() -> str:
    return str(ObjectId())


def default_maps_dir(dataset: fo.Dataset) -> str:
    """The root of a dataset's map files where nobody chose another."""
    name = dataset.name.replace("/", "-").replace("\\", "-")  # FiftyOne allows them, also as the first character
    return str(Path(fo.config.default_dataset_dir) / "pose-heatmaps" / name)


def dataset_id(dataset: fo.Dataset) -> str:
    return str(dataset._doc.id)  # FiftyOne has no public name for it


def differences(record: Record, settings: dict) -> list[str]:
    """The settings in which a record differs from a call, as ``name (was a, now b)``."""
    # Runs of earlier versions did not write their precision down, which was the machine's choice.
    recorded = {"precision": settings.get("precision"), **record.settings}
    return [
        f"{name} (was {recorded.get(name)!r}, now {value!r})"
        for name, value in settings.items()
        if recorded.get(name) != value
    ]


# --- fields that are there already


def heatmap_fields(dataset: fo.Dataset) -> list[str]:
    """All heatmap fields of a dataset."""
    return list(dataset.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap))


def _owner(name: str, label_field: str, schema: Iterable[str]) -> str | None:
    """The label field that a heatmap field belongs to: this one, or another that something in the schema shows.

    Beside the label field ``zoo_flip``, ``zoo_flip_nose`` is not the joint "flip_nose" of ``zoo``; but beside
    ``zoo_left``, ``zoo_left_wrist`` is a joint of ``zoo``.
    """
    ends = ((path, f"_{end}") for path in schema for end in RESERVED_NAMES)  # which no joint is called
    others = {path.removesuffix(end) for path, end in ends if path.endswith(end)}
    possible = sorted((prefix for prefix in {label_field, *others} if name.startswith(f"{prefix}_")), key=len)
    joints = {joint for known in JOINT_SETS.values() for joint in known.joints}
    named = (prefix for prefix in possible if name.removeprefix(f"{prefix}_") in joints)
    return next(named, possible[-1] if possible else None)


def adopt(
    dataset: fo.Dataset,
    label_field: str,
    joint_set: JointSet | None = None,
    *,
    fields: Iterable[str] | None = None,
    run_id: str | None = None,
    **settings: object,
) -> Record:
    """Give fields that came by ``apply_model`` or ``attach_heatmaps`` their record, skeleton and colours.

    Args:
        dataset: with heatmap fields ``<label_field>_…``
        label_field: their prefix
        joint_set: what the fields show; None = the built-in set that has most of their names, if any has more than half
        fields: the fields; None = all with that prefix that belong to no other record or label field
        run_id: of the folder ``<maps_dir>/<run id>`` of files that deleting the run may delete; None = a new one
        settings: what is known about how the maps were made

    Raises:
        ValueError: if the prefix cannot be a label field, or the dataset has no heatmap field of it
    """
    check_label_field(label_field)
    schema = dataset.get_field_schema()
    if fields is None:
        others = {name for key, other in list_records(dataset).items() if key != label_field for name in other.fields}
        extras = [field_name(label_field, name) for name in ("keypoints", "num_people", "confidence", "status")]
        found = [name for name in heatmap_fields(dataset) if _owner(name, label_field, schema) == label_field]
        fields = [name for name in (*found, *extras) if name in schema and name not in others]
    fields = tuple(dict.fromkeys(fields))
    heatmaps = heatmap_fields(dataset)
    suffixes = {name.removeprefix(f"{label_field}_") for name in fields if name in heatmaps}
    if not suffixes:
        raise ValueError(
            f"The dataset has no heatmap field '{label_field}_…' without a record; its heatmap fields are "
            f"{', '.join(heatmaps) or 'none'}."
        )
    if joint_set is None:
        named = suffixes - {"max"}
        joint_set = max(JOINT_SETS.values(), key=lambda known: len(named & {*known.joints}))
        if 2 * len(named & {*joint_set.joints}) <= len(named):  # other joints, of which some have the same name
            joint_set = None
    record = Record(
        label_field=label_field,
        run_id=run_id or new_run_id(),
        dataset_id=dataset_id(dataset),
        fields=fields,
        joints=joint_set.joints if joint_set else (),
        flip=joint_set.flip if joint_set else (),
        sigmas=joint_set.sigmas if joint_set else (),
        settings=dict(settings),
        adopted=True,
    )
    save_record(dataset, record)
    style(dataset, label_field, joint_set, record.fields)
    return record


def counts(view: fo.core.collections.SampleCollection, label_field: str) -> tuple[int, int]:
    """How many samples of a view have the run's maps, and how many have an error instead."""
    # Not count_values(): an error names its file, so that a million of them would not fit one document.
    status = field_name(label_field, "status")
    return view.match({status: DONE}).count(), view.match({status: {"$nin": [DONE, None]}}).count()
