"""Deleting a run removes what the run made, and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, Executor

from inference import pipeline, runs

REPOSITORY = Path(__file__).resolve().parent.parent.parent
URI = "@pose-heatmaps/higherhrnet/delete_heatmaps"


@pytest.fixture
def delete() -> foo.Operator:
    return foo.get_operator(URI)


def run(view: fo.core.collections.SampleCollection, label_field: str = "pose", maps_dir: Path | None = None) -> None:
    folder = maps_dir and str(maps_dir)
    settings = pipeline.Settings(label_field, maps=("max", "nose"), input_size=64, maps_dir=folder)
    pipeline.run(view, settings, progress=False)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def everything(dataset: fo.Dataset) -> dict[str, object]:
    """What a run may add to a dataset, apart from its samples."""
    dataset.reload()
    config = dataset.app_config
    return {
        "fields": list(dataset.get_field_schema(flat=True)),
        "runs": dataset.list_runs(),
        "skeletons": set(dataset.skeletons),
        "colors": [entry["path"] for entry in (config.color_scheme and config.color_scheme.fields) or []],
        "active": [path for path in (config.active_fields and config.active_fields.paths) or [] if "_" in path],
    }


def context(dataset: fo.Dataset, **params: object) -> ExecutionContext:
    request = {"dataset_name": dataset.name, "params": params}
    return ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)


def form_text(operator: foo.Operator, dataset: fo.Dataset, **params: object) -> str:
    parts = operator.resolve_input(context(dataset, **params)).type.properties.values()
    return " ".join(part.view.label for part in parts if part.view and part.view.label)


def test_all_that_the_run_made_goes_and_the_rest_stays(delete, dataset: Callable, photos: Path):
    made = dataset(photos)
    made.add_sample_field("pose_note", fo.StringField)
    made.skeletons = {"hands": fo.KeypointSkeleton(labels=["thumb", "wrist"], edges=[[0, 1]])}
    made.save()
    before = everything(made)
    default = Path(runs.default_maps_dir(made))
    run(made)
    run(made.limit(1), "pose_b")
    assert len(files_in(default)) == 14
    assert made.has_field("pose_keypoints")

    assert delete(made, "pose_b") == 2
    assert len(files_in(default)) == 12
    assert runs.counts(made, "pose") == (6, 0)
    assert delete(made.limit(2), "pose") == 12

    assert everything(made) == before
    assert not default.exists()


def test_files_that_the_run_did_not_make_stay(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    run(made, maps_dir=tmp_path / "maps")
    sample_folder = Path(made.first().pose_max.map_path).parent
    kept = {tmp_path / "maps" / "mine.png", sample_folder / "mask.png", sample_folder.parent.parent / "notes.txt"}
    for path in kept:
        path.write_text("not the run's")

    assert delete(made, "pose") == 2

    assert files_in(tmp_path / "maps") == kept
    assert made.list_runs() == []


def test_files_are_kept_on_request(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    run(made, maps_dir=tmp_path)
    files = files_in(tmp_path)
    assert delete(made, "pose", delete_files=False) == 0
    assert files_in(tmp_path) == files
    assert len(files) == 2
    assert not made.has_field("pose_max")


def test_a_clone_loses_its_run_and_the_original_keeps_its_files(
    delete, dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"])
    run(made, maps_dir=tmp_path)
    files = files_in(tmp_path)
    clone = made.clone(f"{made.name}-clone", persistent=True)
    try:
        assert "belong to the dataset that this one is a clone of" in form_text(delete, clone, label_field="pose")
        assert delete(clone, "pose") == 0
        assert not clone.has_field("pose_max")
        assert clone.list_runs() == []
    finally:
        clone.delete()
    assert files_in(tmp_path) == files
    assert made.first().pose_max.get_map() is not None
    assert runs.counts(made, "pose") == (1, 0)


@pytest.mark.parametrize("of_view", [False, True])
def test_files_that_a_clone_shows_stay_when_the_original_loses_its_run(
    delete, dataset: Callable, photos: Path, tmp_path: Path, of_view: bool
):
    made = dataset([photos / "rocket.jpg"])
    run(made, maps_dir=tmp_path)
    clone = (made.match({}) if of_view else made).clone(f"{made.name}-backup", persistent=True)
    paths = {Path(clone.first()[name].map_path) for name in ("pose_max", "pose_nose")}
    try:
        settings = pipeline.Settings(maps=("max", "nose"), input_size=128, maps_dir=str(tmp_path))
        pipeline.run(made, settings, existing="replace", progress=False)
        assert files_in(tmp_path) == paths | {Path(made.first()[name].map_path) for name in ("pose_max", "pose_nose")}
        assert delete(made, "pose") == 2
        assert files_in(tmp_path) == paths
    finally:
        fo.delete_dataset(clone.name)


def test_attached_originals_stay_and_converted_maps_go(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    before = everything(made)
    cv2.imwrite(str(tmp_path / "rocket.png"), np.full((4, 4), 9, np.uint8))
    np.save(tmp_path / "rocket_nose.npy", np.eye(4))
    attach = foo.get_operator("@pose-heatmaps/higherhrnet/attach_heatmaps")
    attach(made, str(tmp_path), joint_pattern="{stem}_{joint}.npy", range=(0, 1))
    converted = Path(made.first().pose_nose.map_path)
    assert converted.is_file()

    assert delete(made, "pose") == 1

    assert files_in(tmp_path) == {tmp_path / "rocket.png", tmp_path / "rocket_nose.npy"}
    assert not converted.parents[3].exists()
    assert everything(made) == before


def test_a_run_with_maps_in_the_database(delete, dataset: Callable, photos: Path):
    made = dataset([photos / "rocket.jpg"])
    before = everything(made)
    pipeline.run(made, pipeline.Settings(storage="memory", maps=("max",), input_size=64), progress=False)
    assert delete(made, "pose") == 0
    assert everything(made) == before


def test_unknown_runs_are_refused_and_those_there_are_listed(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    run(made, "mine", tmp_path)
    made.register_run("evaluation", made.init_run())
    for name in ("pose", "evaluation"):
        with pytest.raises(ValueError, match=rf"'{name}' is not the label field of a run of pose heatmaps \(mine\)"):
            delete(made, name)
    assert set(made.list_runs()) == {"mine", "evaluation"}


def test_killed_while_deleting_it_goes_on_from_there(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 3)
    run(made, maps_dir=tmp_path)
    code = (
        "import os, signal, sys, fiftyone as fo; from inference import map_files, removal, runs\n"
        "record = runs.read_record(fo.load_dataset(sys.argv[1]), 'pose')\n"
        "steps = removal.delete(fo.load_dataset(sys.argv[1]), 'pose')\n"
        "next(steps)\n"  # the fields are gone
        "next(map_files.delete_maps(removal.run_folders(fo.load_dataset(sys.argv[1]), record)[0], {'max', 'nose'}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.run([sys.executable, "-c", code, made.name], env=environment, timeout=100, check=False)
    assert killed.returncode == -signal.SIGKILL

    made.reload()
    assert not made.has_field("pose_max"), "no sample refers to a file that is gone"
    assert len(files_in(tmp_path)) == 5
    assert "the files that are left in" in form_text(delete, made, label_field="pose")
    assert delete(made, "pose") == 5
    assert files_in(tmp_path) == set()
    assert made.list_runs() == []


# --- from the App, and queued


def test_the_form_asks_with_what_will_go(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    assert "nothing to delete" in form_text(delete, made)
    run(made, maps_dir=tmp_path)
    text = form_text(delete, made, label_field="pose")
    size = sum(path.stat().st_size for path in files_in(tmp_path))
    assert "deletes 6 fields with the maps of 6 images" in text
    assert f"about 12 map files ({size / 1000:.1f} kB) in {tmp_path}" in text
    assert "cannot be undone" in text
    assert "map files (" not in form_text(delete, made, label_field="pose", delete_files=False)
    assert runs.counts(made, "pose") == (6, 0), "asking deletes nothing"


def test_from_the_app_the_deleted_fields_are_switched_off(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    run(made, maps_dir=tmp_path)
    ctx = context(made, label_field="pose", delete_files=True)
    ctx.request_params["active_fields"] = ["tags", "pose_max"]
    requests = {step.body.operator_uri: step.body.params for step in delete.execute(ctx)}
    assert requests["set_active_fields"] == {"fields": ["tags"]}
    assert "2 map files are deleted" in requests["notify"]["message"]
    assert files_in(tmp_path) == set()


def test_a_queued_operation_does_the_same(delete, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    run(made, maps_dir=tmp_path)
    assert delete(made, "pose", delegate=True).delegated
    assert len(files_in(tmp_path)) == 2
    (result,) = DelegatedOperationService().execute_queued_operations(operator=URI, dataset_name=made.name)
    assert result.error is None
    assert result.result["summary"] == "The run 'pose' and 2 map files are deleted."
    assert files_in(tmp_path) == set()
