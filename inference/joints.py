"""Joint sets: names, flip pairs, limbs, groups and colours.

A joint set says what the channels of a network mean. COCO-17, CrowdPose-14 and AI Challenger-14 are built in; others
are read from a JSON file, see :meth:`JointSet.from_json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Suffixes that a run adds to the label field next to `<label_field>_<joint>`.
RESERVED_NAMES = frozenset({"max", "keypoints", "confidence", "num_people", "status"})
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def spoken(joint: str) -> str:
    """A joint's name for people: left wrist."""
    return joint.replace("_", " ")


@dataclass(frozen=True)
class JointSet:
    """The joints of a pose network, in the order of its channels.

    Attributes:
        name: what the set is called, e.g. ``"coco-17"``
        joints: K joint names, lower case with underscores
        flip: K indices; ``flip[k]`` is the joint that joint k becomes in a mirrored image
        limbs: pairs of joint indices that a skeleton connects
        grouping_order: the order in which grouping meets the joints, most reliable first
        sigmas: K constants of the object keypoint similarity (OKS), as published with COCO
    """

    name: str
    joints: tuple[str, ...]
    flip: tuple[int, ...]
    limbs: tuple[tuple[int, int], ...]
    grouping_order: tuple[int, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.joints)
        for joint in self.joints:
            if joint in RESERVED_NAMES or not _NAME.fullmatch(joint):
                raise ValueError(
                    f"Joint set '{self.name}' cannot have a joint named '{joint}': use lower-case letters, digits "
                    f"and underscores, and none of {', '.join(sorted(RESERVED_NAMES))}."
                )
        if len(set(self.joints)) != count:
            raise ValueError(f"Joint set '{self.name}' names a joint twice; every joint needs a name of its own.")
        for what, order in (("flip", self.flip), ("grouping_order", self.grouping_order)):
            if sorted(order) != list(range(count)):
                raise ValueError(f"Joint set '{self.name}': '{what}' must list each of 0 to {count - 1} once.")
        if len(self.sigmas) != count:
            raise ValueError(f"Joint set '{self.name}': 'sigmas' must have {count} numbers, one per joint.")
        if not all(isinstance(sigma, (int, float)) and 0 < sigma < math.inf for sigma in self.sigmas):
            raise ValueError(f"Joint set '{self.name}': 'sigmas' must be numbers above 0, such as 0.079.")
        if any(len(limb) != 2 or min(limb) < 0 or max(limb) >= count for limb in self.limbs):
            raise ValueError(f"Joint set '{self.name}': 'limbs' must be pairs of joint indices below {count}.")

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def colors(self) -> dict[str, str]:
        """A colour ``#rrggbb`` per joint: warm on the person's left, cool on the right, neutral in the middle.

        Found by a search for colours that stay apart, the two of a pair most of all, for people with normal sight and
        for people who lack red, green or blue cones; a test computes it.
        """
        left = ("#ff6c6e", "#f9ef8a", "#d487a4", "#e21395", "#d09f00", "#e5c088", "#a1724a", "#f11d00")
        right = ("#8896ff", "#71d2ff", "#adffbe", "#2eab6e", "#278497", "#44bcb9", "#4694c1", "#6cf7fb")
        middle = ("#e0e4d6", "#b8ab94", "#8a7473")
        pools = {"left": iter(left * 9), "right": iter(right * 9), "": iter(middle * 9)}
        return {joint: next(pools[_side(joint)]) for joint in self.joints}

    @staticmethod
    def from_json(path: str | Path) -> JointSet:
        """Read a joint set from a JSON file.

        Its keys are ``name``, ``joints`` (in the order of the channels), ``flip`` (pairs of joints that change places
        in a mirrored image, or K indices as above), ``limbs`` (pairs of joints) and, if known, ``grouping_order`` and
        ``sigmas`` (else :func:`usual_sigmas`). Joints are given by name or by index.

        Raises:
            ValueError: if the file is not a joint set; the message says what is wrong with it
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            joints = tuple(values["joints"])

            def index(joint: str | int) -> int:
                if isinstance(joint, str) and joint not in joints:
                    raise ValueError(f"{path}: there is no joint '{joint}' among its joints.")
                return joints.index(joint) if isinstance(joint, str) else joint

            pairs = [tuple(map(index, pair)) for pair in values["flip"] if isinstance(pair, list)]
            mirrored = {**{one: other for one, other in pairs}, **{other: one for one, other in pairs}}
            flip = [mirrored.get(k, k) for k in range(len(joints))] if pairs or not values["flip"] else values["flip"]
            limbs: Any = tuple(tuple(map(index, limb)) for limb in values["limbs"])  # pairs, as JointSet checks
            return JointSet(
                name=str(values["name"]),
                joints=joints,
                flip=tuple(flip),
                limbs=limbs,
                grouping_order=tuple(map(index, values.get("grouping_order", range(len(joints))))),
                sigmas=tuple(values.get("sigmas", usual_sigmas(joints))),
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a joint set ({error}). It needs the keys name, joints, flip and limbs."
            ) from error


def _side(joint: str) -> str:
    return joint.split("_")[0] if joint.startswith(("left_", "right_")) else ""


# fmt: off
COCO = JointSet(
    name="coco-17",
    joints=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    flip=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
    limbs=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7),
        (6, 8), (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    grouping_order=(0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
        0.089, 0.089,
    ),
)

CROWDPOSE = JointSet(
    name="crowdpose-14",
    joints=(
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
        "head",
        "neck",
    ),
    flip=(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13),
    limbs=(
        (12, 13), (13, 0), (13, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7), (6, 8), (8, 10), (7, 9),
        (9, 11),
    ),
    grouping_order=(12, 13, 0, 1, 6, 7, 2, 3, 4, 5, 8, 9, 10, 11),
    sigmas=(
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079,
    ),
)

AI_CHALLENGER = JointSet(
    name="ai-challenger-14",
    joints=(
        "right_shoulder",
        "right_elbow",
        "right_wrist",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "right_hip",
        "right_knee",
        "right_ankle",
        "left_hip",
        "left_knee",
        "left_ankle",
        "head_top",
        "neck",
    ),
    flip=(3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8, 12, 13),
    limbs=(
        (0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11), (12, 13), (13, 0), (13, 3), (0, 6), (3, 9),
        (6, 9),
    ),
    grouping_order=(12, 13, 0, 3, 6, 9, 1, 4, 2, 5, 7, 10, 8, 11),
    sigmas=(
        0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089, 0.079, 0.079,
    ),
)

# fmt: on

JOINT_SETS = {joint_set.name: joint_set for joint_set in (COCO, CROWDPOSE, AI_CHALLENGER)}


def usual_sigmas(names: Sequence[str]) -> tuple[float, ...]:
    """OKS constants of joints by their names: COCO's, else those of another built-in set, else 0.079."""
    known = {
        joint: sigma
        for other in (*JOINT_SETS.values(), COCO)
        for joint, sigma in zip(other.joints, other.sigmas, strict=True)
    }
    return tuple(known.get(name, 0.079) for name in names)
