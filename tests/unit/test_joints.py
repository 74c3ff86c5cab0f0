"""Joint sets, built in and from JSON files."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from inference.joints import COCO, CROWDPOSE, JOINT_SETS, RESERVED_NAMES, JointSet
from inference.runs import KEYPOINTS_COLOR, MAX_COLOR

ALL = list(JOINT_SETS.values())
MIRROR = {
    "name": "mirror-3",
    "joints": ["head", "left_hand", "right_hand"],
    "flip": [0, 2, 1],
    "limbs": [[0, 1], [0, 2]],
}


def write(folder: Path, values: object) -> Path:
    path = folder / "joints.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("joint_set", ALL, ids=lambda joint_set: joint_set.name)
def test_a_mirrored_image_swaps_left_and_right_and_nothing_else(joint_set: JointSet) -> None:
    for joint, index in zip(joint_set.joints, joint_set.flip, strict=True):
        swapped = re.sub("^(left|right)_", lambda m: {"left": "right_", "right": "left_"}[m.group(1)], joint)
        assert joint_set.joints[index] == swapped


@pytest.mark.parametrize("joint_set", ALL, ids=lambda joint_set: joint_set.name)
def test_skeletons_look_the_same_in_a_mirror_and_reach_every_joint(joint_set: JointSet) -> None:
    limbs = {frozenset(limb) for limb in joint_set.limbs}
    assert {frozenset(joint_set.flip[joint] for joint in limb) for limb in limbs} == limbs
    assert {joint for limb in limbs for joint in limb} == set(range(len(joint_set)))


@pytest.mark.parametrize("joint_set", ALL, ids=lambda joint_set: joint_set.name)
def test_every_joint_has_a_colour_of_its_own(joint_set: JointSet) -> None:
    colors = joint_set.colors
    assert list(colors) == list(joint_set.joints)
    assert len(set(colors.values())) == len(joint_set)
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors.values())


# Machado, Oliveira, Fernandes 2009, severity 1: what linear RGB becomes for people who lack a kind of cones
SIGHT = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def differences(colors: list[str], sight: str) -> np.ndarray:
    """CIEDE2000 between each two colours as they are seen; 2 is just noticeable, side by side."""
    values = np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in colors])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    return deltaE_ciede2000(lab[:, None], lab[None])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("joint_set", ALL, ids=lambda joint_set: joint_set.name)
def test_colours_stay_apart_for_colour_blind_people_too(joint_set: JointSet, sight: str) -> None:
    apart = differences([*joint_set.colors.values(), MAX_COLOR, KEYPOINTS_COLOR], sight)
    twins = [apart[joint, twin] for joint, twin in enumerate(joint_set.flip) if joint != twin]
    assert apart[np.triu_indices(len(apart), 1)].min() > (11 if sight == "normal" else 7)
    assert min(twins) > 17


def test_coco_is_in_the_order_of_the_published_channels() -> None:
    assert len(COCO) == 17
    assert COCO.joints[:3] == ("nose", "left_eye", "right_eye")
    assert COCO.joints[-2:] == ("left_ankle", "right_ankle")
    assert CROWDPOSE.joints[-2:] == ("head", "neck")
    assert [COCO.joints[k] for k in COCO.grouping_order[5:9]] == [
        "left_shoulder",
        "right_shoulder",
        "left_hip",
        "right_hip",
    ]


def test_a_joint_set_is_read_from_json(tmp_path: Path) -> None:
    joint_set = JointSet.from_json(write(tmp_path, MIRROR))
    assert joint_set.joints == ("head", "left_hand", "right_hand")
    assert joint_set.flip == (0, 2, 1)
    assert joint_set.limbs == ((0, 1), (0, 2))
    assert joint_set.grouping_order == (0, 1, 2)  # where the file does not say
    assert joint_set.sigmas == (0.079,) * 3
    named = {**MIRROR, "joints": ["nose", "left_wrist", "right_wrist"], "flip": [], "limbs": []}
    assert JointSet.from_json(write(tmp_path, named)).sigmas == (0.026, 0.062, 0.062), "COCO's"
    ordered = JointSet.from_json(write(tmp_path, {**MIRROR, "grouping_order": [2, 1, 0], "sigmas": [0.1, 0.2, 0.3]}))
    assert ordered.grouping_order == (2, 1, 0)
    assert ordered.sigmas == (0.1, 0.2, 0.3)
    hash(ordered)


def test_joints_can_be_named_and_flips_given_as_pairs(tmp_path: Path) -> None:
    by_name = {
        "name": "mirror-3",
        "joints": ["head", "left_hand", "right_hand"],
        "flip": [["left_hand", "right_hand"]],
        "limbs": [["head", "left_hand"], ["head", "right_hand"]],
    }
    assert JointSet.from_json(write(tmp_path, by_name)) == JointSet.from_json(write(tmp_path, MIRROR))
    with pytest.raises(ValueError, match=r"joints\.json: there is no joint 'tail' among its joints"):
        JointSet.from_json(write(tmp_path, {**by_name, "limbs": [["head", "tail"]]}))


@pytest.mark.parametrize("joint_set", ALL, ids=lambda joint_set: joint_set.name)
def test_a_built_in_joint_set_survives_json(joint_set: JointSet, tmp_path: Path) -> None:
    assert JointSet.from_json(write(tmp_path, dataclasses.asdict(joint_set))) == joint_set


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_joint_cannot_take_the_name_of_another_field(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**MIRROR, "joints": [name, "left_hand", "right_hand"]})
    with pytest.raises(ValueError, match=f"cannot have a joint named '{name}'.* none of confidence, keypoints, max"):
        JointSet.from_json(path)


def test_the_reserved_names_are_the_fields_of_a_run_that_are_no_joints() -> None:
    assert {"max", "keypoints", "confidence", "num_people", "status"} == RESERVED_NAMES


@pytest.mark.parametrize("name", ["Left Hand", "left-hand", "", "1st", "_hand", "händ", "a.b", "left_hand\n"])
def test_joint_names_must_do_as_field_names(name: str) -> None:
    with pytest.raises(ValueError, match="use lower-case letters, digits and underscores"):
        JointSet("three", (name, "b", "c"), (0, 1, 2), (), (0, 1, 2), (0.1,) * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": ["head", "hand", "hand"]}, "names a joint twice"),
        ({"flip": [0, 2]}, "'flip' must list each of 0 to 2 once"),
        ({"flip": [0, 1, 1]}, "'flip' must list each of 0 to 2 once"),
        ({"grouping_order": [0, 1, 3]}, "'grouping_order' must list each of 0 to 2 once"),
        ({"sigmas": [0.1]}, "'sigmas' must have 3 numbers"),
        ({"sigmas": [0.1, 0.1, 0]}, "'sigmas' must be numbers above 0"),
        ({"sigmas": [0.1, 0.1, "0.1"]}, "'sigmas' must be numbers above 0"),
        ({"limbs": [[0, 3]]}, "'limbs' must be pairs of joint indices below 3"),
        ({"limbs": [[-1, 0]]}, "'limbs' must be pairs of joint indices below 3"),
    ],
)
def test_a_joint_set_that_does_not_add_up_says_what_is_wrong(
    change: dict[str, list], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        JointSet.from_json(write(tmp_path, {**MIRROR, **change}))
    assert "mirror-3" in str(error.value)


@pytest.mark.parametrize("missing", ["name", "joints", "flip", "limbs"])
def test_a_file_that_lacks_a_key_says_what_it_needs(missing: str, tmp_path: Path) -> None:
    path = write(tmp_path, {key: value for key, value in MIRROR.items() if key != missing})
    with pytest.raises(
        ValueError, match=rf"joints\.json is not a joint set .*'{missing}'.*name, joints, flip and limbs"
    ):
        JointSet.from_json(path)


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[1, 2]", "null", '{"name": "x", "joints": 3, "flip": [], "limbs": []}', '{"limbs": [[1]]}'],
)
def test_a_file_of_another_kind_is_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"joints\.json is not a joint set"):
        JointSet.from_json(write(tmp_path, text))


def test_limbs_that_are_no_pairs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"joints\.json is not a joint set|pairs of joint indices"):
        JointSet.from_json(write(tmp_path, {**MIRROR, "limbs": [[0, 1, 2]]}))
