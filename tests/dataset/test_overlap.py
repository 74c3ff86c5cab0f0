"""Calls that meet on one label field: beside each other, after maps of another origin, and while a run is deleted."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest

from inference import pipeline, recording, removal, runs

GENERATE = "@pose-heatmaps/higherhrnet/generate_heatmaps"


def settings(maps_dir: Path | None, *maps: str, **more: object) -> pipeline.Settings:
    folder = maps_dir and str(maps_dir)
    return pipeline.Settings(maps=maps or ("max",), maps_dir=folder, **{"input_size": 64, "batch_size": 1, **more})


def finish(steps: object) -> pipeline.Progress:
    *_, state = steps
    return state


def test_a_run_that_ends_leaves_the_fields_that_another_one_is_about_to_write(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 2)
    one = pipeline.process(made.limit(1), settings(tmp_path, "max"))
    next(one)
    other = pipeline.process(made.skip(1), settings(tmp_path, "nose"), existing="append")
    next(other)  # has declared its field, and written nothing
    finish(one)
    finish(other)
    made.reload()
    assert [sample.pose_nose is not None for sample in made] == [False, True]


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_a_run_that_is_deleted_meanwhile_stops_and_leaves_nothing(
    storage: str, dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 12)
    steps = pipeline.process(made, settings(tmp_path if storage == "files" else None, storage=storage))
    while next(steps).done < 2:
        pass
    deletion = removal.delete(made, "pose")
    next(deletion)  # the fields are gone, the record is not
    with pytest.raises(RuntimeError, match="replaced or deleted meanwhile"):
        finish(steps)
    for _ in deletion:
        pass
    made.reload()
    assert [name for name in made.get_field_schema() if name.startswith("pose_")] == []
    assert [name for name in made.first().to_mongo_dict() if name.startswith("pose_")] == []
    assert not made.list_runs()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_samples_can_be_loaded_after_a_field_of_the_run_left_the_schema(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 3)
    pipeline.run(made, settings(tmp_path, "max", "nose", "left_eye"), progress=False)
    made.delete_sample_field("pose_left_eye")
    assert pipeline.run(made, settings(tmp_path, "max"), existing="replace", progress=False).done == 3
    made.reload()
    assert [sample.pose_status for sample in made] == ["done"] * 3
    assert not made.has_field("pose_nose")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"max.png"}

    Path(tmp_path / "damaged.jpg").write_bytes(b"no image")
    made.add_samples([fo.Sample(filepath=str(tmp_path / "damaged.jpg"))], progress=False)
    pipeline.run(made, settings(tmp_path, "nose"), existing="append", progress=False)
    made.delete_sample_field("pose_nose")
    pipeline.run(made, settings(tmp_path, "max"), existing="append", progress=False)
    assert "is not an image" in [sample.pose_status for sample in made][-1]


def test_shards_that_replace_a_run_write_no_field_that_another_one_has_removed(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 4)
    pipeline.run(made.limit(2), settings(tmp_path, "max", "nose"), progress=False)
    slow = pipeline.process(made.skip(2), settings(tmp_path, "max"), existing="replace")
    next(slow)
    pipeline.run(made.limit(2), settings(tmp_path, "max"), progress=False)  # removes the field
    made.reload()
    assert not made.has_field("pose_nose")
    finish(slow)
    made.reload()
    assert [sample.pose_status for sample in made] == ["done"] * 4


def test_files_that_a_cloned_field_shows_outlive_their_run(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    pipeline.run(made, settings(tmp_path), progress=False)
    made.clone_sample_field("pose_max", "before")
    pipeline.run(made, settings(tmp_path, flip=True), existing="replace", progress=False)
    made.reload()
    before, after = made.values(["before.map_path", "pose_max.map_path"])
    assert not {*before} & {*after}
    assert all(Path(path).is_file() for path in (*before, *after))

    foo.get_operator("@pose-heatmaps/higherhrnet/delete_heatmaps")(made, "pose")
    assert [Path(path).is_file() for path in (*before, *after)] == [True] * 2 + [False] * 2


@pytest.mark.parametrize("existing", [None, "replace"])
def test_the_key_of_another_run_is_refused_before_anything_is_written(
    dataset: Callable, photos: Path, tmp_path: Path, existing: str | None
):
    made = dataset([photos / "rocket.jpg"])
    made.set_values("eval_status", ["done"])
    made.register_run("eval", made.init_run(something="else"))
    with pytest.raises(ValueError, match="another run with the key 'eval'; choose another label field"):
        pipeline.run(made, settings(tmp_path, label_field="eval"), existing=existing, progress=False)
    with pytest.raises(ValueError, match="another run with the key 'eval'; choose another label field"):
        foo.get_operator("@pose-heatmaps/higherhrnet/attach_heatmaps")(made, str(photos), "eval", progress=False)
    made.reload()
    assert made.values("eval_status") == ["done"]
    assert not made.has_field("eval_max")


def test_maps_without_a_run_are_neither_taken_over_nor_lost(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    made.set_values("pose_max", [fo.Heatmap(map=np.full((4, 4), 9, np.uint8)) for _ in range(2)])
    made.set_values("pose_status", ["done", "done"])
    for existing in (None, "append"):
        with pytest.raises(ValueError, match=r"'pose' has maps that no run is known for.*adopt them"):
            pipeline.run(made, settings(tmp_path), existing=existing, progress=False)
    assert made.list_runs() == []
    assert pipeline.run(made, settings(tmp_path), existing="replace", progress=False).done == 2
    assert made.first().pose_max.map_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keypoints", fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5)])])),
        ("confidence", 0.5),
        ("num_people", 3),
        ("status", "reviewed"),
    ],
)
def test_the_users_own_fields_are_not_lost(name: str, value: object, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    made.set_values(f"pose_{name}", [None, value])
    refused = rf"values in pose_{name} that no run of 'pose' is known for.*Choose another label field"
    for existing in (None, "append"):
        with pytest.raises(ValueError, match=refused):
            pipeline.run(made, settings(tmp_path), existing=existing, progress=False)
    assert made.list_runs() == []
    assert made.values(f"pose_{name}") == [None, value]
    ctx = foo.ExecutionContext({"dataset_name": made.name, "params": {}}, operator_uri=GENERATE)
    form = str(foo.get_operator(GENERATE).resolve_input(ctx).to_json())
    assert f"values in pose_{name} that no run of 'pose' is known for" in form
    assert "Make them anew" in form
    assert pipeline.run(made, settings(tmp_path, label_field="other"), progress=False).done == 2
    assert pipeline.run(made, settings(tmp_path), existing="replace", progress=False).done == 2
    assert made.values(f"pose_{name}")[1] != value


def test_fields_that_a_run_does_not_know_are_not_lost_when_it_goes_on(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    pipeline.run(made.limit(1), settings(tmp_path, keypoints=False), progress=False)
    made.set_values("pose_num_people", [1, 2])
    with pytest.raises(ValueError, match="values in pose_num_people that no run of 'pose' is known for"):
        pipeline.run(made, settings(tmp_path), existing="append", progress=False)
    assert pipeline.run(made, settings(tmp_path, keypoints=False), progress=False).done == 1
    assert made.values("pose_num_people") == [1, 2]


def test_fields_of_a_run_whose_record_was_deleted_or_that_were_cloned_are_not_lost(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"])
    pipeline.run(made, settings(tmp_path), progress=False)
    made.clone_sample_field("pose_keypoints", "before_keypoints")
    with pytest.raises(ValueError, match="values in before_keypoints that no run of 'before' is known for"):
        pipeline.run(made, settings(tmp_path, label_field="before"), progress=False)
    made.delete_run("pose")
    with pytest.raises(ValueError, match="'pose' has maps that no run is known for"):
        pipeline.run(made, settings(tmp_path), progress=False)


def test_fields_that_a_killed_run_has_declared_are_taken_without_a_question(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 2)
    runs.declare(made, runs.declared_fields("pose", ["nose"]))  # its record and its values come after
    assert pipeline.run(made.limit(1), settings(tmp_path), progress=False).done == 1
    runs.declare(made, runs.declared_fields("pose", ["left_eye"]))
    assert pipeline.run(made, settings(tmp_path, "max", "left_eye"), existing="append", progress=False).done == 1


def test_append_with_other_joints_keeps_what_samples_have(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    pipeline.run(made.limit(1), settings(tmp_path, "max"), progress=False)
    more = settings(tmp_path, "nose")
    assert pipeline.run(made, more, existing="append", progress=False).skipped == 1
    state = pipeline.run(made, more, existing="append", skip_existing=False, progress=False)
    assert state.done == 2
    assert [Path(path).is_file() if path else None for path in made.values("pose_max.map_path")] == [True, None]
    assert all(Path(path).is_file() for path in made.values("pose_nose.map_path"))


def test_a_sample_that_is_full_already_costs_itself_only(dataset: Callable, photos: Path):
    made = dataset([photos / "astronaut.jpg"] * 3)
    made.set_values("notes", ["", "x" * 16_760_000, ""])
    state = pipeline.run(
        made, settings(None, "max", "joints", storage="memory", dtype="float32", floor=0.0), progress=False
    )
    assert (state.done, state.failed) == (2, 1)
    first, full, last = made.values("pose_status")
    assert first == last == "done"
    assert "do not fit MongoDB's 16 MB" in full
    assert made.values("pose_max.map")[1] is None


def test_finished_samples_are_skipped_in_a_view_that_hides_the_fields(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    pipeline.run(made.limit(1), settings(tmp_path), progress=False)
    hiding = made.select_fields()
    context = foo.ExecutionContext(
        {
            "dataset_name": made.name,
            "view": hiding._serialize(),
            "params": {"view_target": "CURRENT_VIEW", "maps": "max", "maps_dir": str(tmp_path), "input_size": 64},
        },
        operator_uri=GENERATE,
    )
    form = str(foo.get_operator(GENERATE).resolve_input(context).to_json())
    assert "1 image (1 image done already)" in form
    assert pipeline.run(hiding, settings(tmp_path), progress=False).skipped == 1
    assert made.values("pose_status") == ["done", "done"]


def test_nobody_enters_while_the_record_is_changed_however_long_that_takes(
    dataset: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recording, "LEASE", 3)
    made = dataset([photos / "rocket.jpg"])
    order = []

    def enter() -> None:
        with recording._one_at_a_time(made):
            order.append("entered")

    other = threading.Thread(target=enter)
    with recording._one_at_a_time(made):
        other.start()
        time.sleep(7)
        order.append("left")
    other.join(timeout=20)
    assert order == ["left", "entered"]
