"""What people type into settings and joint-set files, and what they are told."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from inference.joints import COCO, CROWDPOSE, RESERVED_NAMES, JointSet
from inference.settings import Settings, find_maps

WRONG = {
    "label_field": ("my field", "cannot be a label field"),
    "model": ("w99", "no model 'w99'"),
    "maps": (("max", "tail"), "tail"),
    "storage": ("cloud", "must be one of files, memory"),
    "resolution": ("huge", "must be one of network, image"),
    "dtype": ("int8", "must be one of uint8, float32"),
    "floor": (1.0, "at least 0 and below 1"),
    "precision": ("half", "must be one of float32, bfloat16"),
    "scales": ((0.7, 1), "multiple of half of the smallest"),
    "input_size": (32, "at least 64 pixels"),
    "batch_size": (0, "at least 1"),
    "num_readers": (-1, "at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_with_what_to_do(name: str):
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        Settings(**{name: value})


def test_flip_is_no_label_field_since_it_stands_for_the_mirrored_image():
    with pytest.raises(ValueError, match="compare_runs calls the mirrored image so"):
        Settings("flip")
    with pytest.raises(ValueError, match="at least one number above 0"):
        Settings(scales=())


def test_paths_become_absolute_since_a_worker_may_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(model="custom", checkpoint=Path("mine.pth"), maps_dir="maps")
    assert settings.checkpoint == str(tmp_path / "mine.pth")
    assert settings.maps_dir == str(tmp_path / "maps")


def test_float_maps_do_not_go_into_files():
    with pytest.raises(ValueError, match="storage='memory'"):
        Settings(dtype="float32")
    assert Settings(dtype="float32", storage="memory").dtype == "float32"


def test_maps_are_chosen_by_kind_and_by_joint():
    assert find_maps(("max", "joints"), COCO) == (True, COCO.joints)
    assert find_maps(("left_wrist", "nose"), COCO) == (False, ("nose", "left_wrist"))
    assert find_maps("max", COCO) == (True, ())
    with pytest.raises(ValueError, match="name 'max', 'joints'"):
        find_maps((), COCO)


def write(folder: Path, **changes: object) -> Path:
    """A joint-set file of three joints."""
    values = {
        "name": "robot",
        "joints": ["head", "left_hand", "right_hand"],
        "flip": [0, 2, 1],
        "limbs": [[0, 1], [0, 2]],
        **changes,
    }
    path = folder / "joints.json"
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return path


def test_a_joint_set_is_read_from_a_file(tmp_path: Path):
    robot = JointSet.from_json(write(tmp_path))
    assert robot.joints == ("head", "left_hand", "right_hand")
    assert robot.limbs == ((0, 1), (0, 2))
    assert robot.grouping_order == (0, 1, 2)
    assert len(set(robot.colors.values())) == 3
    for known in (COCO, CROWDPOSE):
        (tmp_path / "known.json").write_text(json.dumps(asdict(known)))
        assert JointSet.from_json(tmp_path / "known.json") == known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limbs": None}, "needs the keys name, joints, flip and limbs"),
        ({"flip": [0, 1, 1]}, "'flip' must list each of 0 to 2 once"),
        ({"limbs": [[0, 3]]}, "'limbs' must be pairs"),
        ({"grouping_order": [2, 1]}, "'grouping_order' must list"),
        ({"sigmas": [0.1]}, "'sigmas' must have 3 numbers"),
        ({"joints": ["head", "hand", "hand"]}, "names a joint twice"),
        ({"joints": ["head", "Left Hand", "right_hand"]}, "cannot have a joint named 'Left Hand'"),
        *[({"joints": ["head", name, "right_hand"]}, "cannot have a joint named") for name in sorted(RESERVED_NAMES)],
    ],
)
def test_a_wrong_joint_set_is_refused_with_what_is_wrong(changes: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        JointSet.from_json(write(tmp_path, **changes))


def test_a_file_that_is_no_joint_set_is_refused(tmp_path: Path):
    (tmp_path / "joints.json").write_text("{")
    with pytest.raises(ValueError, match="is not a joint set"):
        JointSet.from_json(tmp_path / "joints.json")


@pytest.mark.parametrize("joint_set", [COCO, CROWDPOSE], ids=lambda joint_set: joint_set.name)
def test_left_and_right_change_places_in_a_mirrored_image(joint_set: JointSet):
    for joint, mirrored in zip(joint_set.joints, joint_set.flip, strict=True):
        other = joint_set.joints[mirrored]
        assert other == joint.replace("left", "?").replace("right", "left").replace("?", "right")
