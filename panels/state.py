"""What a dataset has to show and what the App shows of it: nothing here draws, and nothing is remembered.

The App's active fields are the only truth about what is shown. The panels derive everything from them, so that they
agree with the sidebar whoever changed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import fiftyone as fo

from ..inference.joints import JOINT_SETS
from ..inference.runs import Record, heatmap_fields, list_records

# How a word of a joint's name begins: not what is inside of it, or "forearm" and "rear" would be an ear.
HEAD = ("nose", "eye", "ear", "head", "forehead", "neck", "chin", "mouth", "face")
ARMS = ("shoulder", "elbow", "forearm", "wrist", "hand", "thumb", "finger", "forefinger")
LEGS = ("hip", "midhip", "knee", "ankle", "foot", "forefoot", "toe", "heel", "pelvis")
PARTS = {"head": HEAD, "arms": ARMS, "legs": LEGS}
SIDES = ("left", "right")


@dataclass(frozen=True)
class Run:
    """The maps of one label field, as far as they are in the dataset's schema.

    Attributes:
        label_field: prefix of the fields
        maximum: the field of the maximum map, or None
        joints: joint name to field, in the order of the joint set
        others: field names of the run that are no maps, by their suffix
        order: the joints as the people's points and values have them
        title: the model, for people
        adopted: True if something else made the maps: not all samples that have them need have a status
    """

    label_field: str
    maximum: str | None
    joints: dict[str, str]
    others: dict[str, str]
    order: tuple[str, ...]
    title: str
    adopted: bool = False

    @property
    def people(self) -> str | None:
        """The field of the skeletons."""
        return self.others.get("keypoints")

    def index(self, joint: str) -> int | None:
        """The joint's place among a person's points."""
        return self.order.index(joint) if joint in self.order else None

    @property
    def maps(self) -> list[str]:
        return [*([self.maximum] if self.maximum else []), *self.joints.values()]


def find_runs(dataset: fo.Dataset) -> dict[str, Run]:
    """The runs that still have maps, by label field. Fields that were deleted or renamed are left out."""
    maps = set(heatmap_fields(dataset))
    schema = set(dataset.get_field_schema())
    runs = {key: _run(record, maps, schema) for key, record in list_records(dataset).items()}
    return {key: run for key, run in runs.items() if run.maps}


def _run(record: Record, maps: set[str], schema: set[str]) -> Run:
    prefix = f"{record.label_field}_"
    names = {name.removeprefix(prefix): name for name in record.fields if name in schema}
    found = [name for name in names if names[name] in maps and name != "max"]
    known = [joint for joint in record.joints if joint in found]
    joints = [*known, *(name for name in found if name not in record.joints)]
    return Run(
        label_field=record.label_field,
        maximum=names["max"] if names.get("max") in maps else None,
        joints={joint: names[joint] for joint in joints},
        others={name: path for name, path in names.items() if path not in maps},
        order=record.joints,
        title=_title(record),
        adopted=record.adopted,
    )


def _title(record: Record) -> str:
    settings = record.settings
    parts = [str(settings.get("model") or "attached maps")]
    if settings.get("input_size"):
        parts.append(f"input size {settings['input_size']}")
    if settings.get("flip"):
        parts.append("flip")
    if len(settings.get("scales") or ()) > 1:
        parts.append(f"{len(settings['scales'])} scales")
    if settings.get("precision") == "bfloat16":
        parts.append("bfloat16")
    return ", ".join(parts)


def without_record(dataset: fo.Dataset) -> dict[str, list[str]]:
    """Heatmap fields that belong to no run, by the label field under which they could be adopted, if it has none."""
    recorded = {name for record in list_records(dataset).values() for name in record.fields}
    suffixes = sorted({"max", *(joint for known in JOINT_SETS.values() for joint in known.joints)}, key=len)[::-1]
    groups: dict[str, list[str]] = {}
    taken = dataset.list_runs()
    for name in heatmap_fields(dataset):
        suffix = next((suffix for suffix in suffixes if name.endswith(f"_{suffix}")), name.rpartition("_")[2])
        prefix = name.removesuffix(f"_{suffix}")
        if name not in recorded and prefix != name and prefix not in taken:
            groups.setdefault(prefix, []).append(name)
    return groups


def last_made(dataset: fo.Dataset, keys: Iterable[str]) -> str:
    """The newest of some FiftyOne runs; their keys come in alphabetical order."""
    return max(keys, key=lambda key: dataset.get_run_info(key).timestamp)


def part(joint: str) -> str:
    """The row of a joint: head, arms, legs, or body where its name tells nothing."""
    words = joint.split("_")
    return next((name for name, begins in PARTS.items() if any(word.startswith(begins) for word in words)), "body")


def side(joint: str) -> str:
    """The column of a joint: left, right, or middle."""
    return next((name for name in SIDES if joint.startswith(f"{name}_")), "middle")


def shown_joints(run: Run, active: Iterable[str]) -> list[str]:
    active = set(active)
    return [joint for joint, field in run.joints.items() if field in active]


def wanted_fields(run: Run, active: Sequence[str], maximum: bool, joints: Iterable[str]) -> list[str]:
    """The active fields that show these maps of a run; every field that is no map of the run stays as it is."""
    maps = set(run.maps)
    wanted = [run.maximum] if maximum and run.maximum else []
    wanted += [run.joints[joint] for joint in run.joints if joint in set(joints)]
    return [*(name for name in active if name not in maps), *wanted]


def neighbours(run: Run, shown: Sequence[str]) -> tuple[str, str]:
    """The joints before the first and after the last that is shown, round and round."""
    joints = list(run.joints)
    first = joints.index(shown[0]) if shown else 0
    last = joints.index(shown[-1]) if shown else -1
    return joints[first - 1], joints[(last + 1) % len(joints)]
