"""A slice of a grouped dataset that is not the active one: FiftyOne's dataset.match() does not see it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService

from evaluation import summary
from inference import pipeline, removal, runs

URI = "@pose-heatmaps/higherhrnet/"


@pytest.fixture
def groups(dataset: Callable[..., fo.Dataset], photos: Path) -> fo.Dataset:
    """Four groups of an image and a video; "left", which nobody runs on, is the active slice."""
    made = dataset()
    made.add_group_field("group", default="left")
    for number, name in enumerate(("astronaut.jpg", "camera.png", "rocket.jpg", "coffee.png")):
        group = fo.Group()
        made.add_samples(
            [
                fo.Sample(filepath=f"/nowhere/{number}.mp4", group=group.element("left")),
                fo.Sample(filepath=str(photos / name), group=group.element("right"), tags=["all"]),
            ],
            progress=False,
        )
    return made


@pytest.fixture
def right(groups: fo.Dataset) -> fo.DatasetView:
    return groups.select_group_slices("right")


def run(view: fo.DatasetView, maps_dir: Path, existing: str | None = None, **more: object) -> pipeline.Progress:
    settings = pipeline.Settings(**{"maps": ("max", "nose"), "maps_dir": str(maps_dir), "input_size": 64, **more})
    return pipeline.run(view, settings, existing=existing, progress=False)


def maps(view: fo.DatasetView) -> list[Path]:
    view.reload()
    return [Path(path) for path in view.values("pose_max.map_path") if path]


def test_a_run_is_replaced(right: fo.DatasetView, tmp_path: Path):
    run(right, tmp_path)
    old = maps(right)
    state = run(right, tmp_path, existing="replace", flip=True)
    assert (state.done, state.skipped) == (4, 0)
    new = maps(right)
    assert len(new) == 4
    assert all(path.is_file() for path in new)
    assert not [path for path in old if path.is_file()]
    assert len([path for path in tmp_path.rglob("*.png")]) == 8


def test_a_run_whose_maps_go_on_elsewhere_keeps_the_earlier_ones(right: fo.DatasetView, tmp_path: Path):
    run(right.limit(2), tmp_path / "one")
    assert run(right, tmp_path / "two", existing="append").done == 2
    assert [path.is_file() for path in maps(right)] == [True] * 4


def test_a_run_is_moved_and_deleted(right: fo.DatasetView, tmp_path: Path):
    run(right, tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert foo.get_operator(f"{URI}relocate_heatmaps")(right, "pose", str(tmp_path / "new")) == 4
    assert all(path.is_file() for path in maps(right))
    record = runs.read_record(right._dataset, "pose")
    assert removal.extent(right._dataset, record).samples == 4
    foo.get_operator(f"{URI}delete_heatmaps")(right, "pose")
    assert not [path for path in tmp_path.rglob("*.png")]


def test_a_run_is_evaluated_compared_and_indexed(right: fo.DatasetView, tmp_path: Path):
    for sample, source in zip(right.skip(2), right.limit(2).values("filepath"), strict=True):  # all show people
        sample.filepath = str(tmp_path / f"mirrored-{Path(source).name}")
        cv2.imwrite(sample.filepath, cv2.imread(source)[:, ::-1])
        sample.save()
    run(right, tmp_path, maps=("max", "joints"), input_size=256)
    people = [
        fo.Keypoints(keypoints=[fo.Keypoint(label="person", points=np.full((17, 2), 0.4).tolist())]) for _ in range(4)
    ]
    right.set_values("people", people)
    dataset = right._dataset

    state = foo.get_operator(f"{URI}evaluate_heatmaps")(right, gt_field="people", progress=False)
    assert (state.done, state.results["people"], state.results["samples"]) == (4, 4, 4)
    assert state.results["figures"]["ap"] is not None
    worst = summary.select(dataset, "eval", worst=state.results["worst"] and max(state.results["worst"]))
    assert (worst.media_type, len(worst) > 0) == ("image", True)

    state = foo.get_operator(f"{URI}compare_runs")(right, progress=False)
    assert (state.done, state.results["samples"] > 0) == (4, True)

    state = foo.get_operator(f"{URI}index_poses")(right, progress=False)
    assert (state.done, state.samples) == (4, 4)
    assert {"pose_poses", "pose_poses_map"} <= {*dataset.list_brain_runs()}
    assert len(right.sort_by_similarity(right.first().id, k=2, brain_key="pose_poses")) == 2


def test_maps_are_attached_by_relative_path(right: fo.DatasetView, photos: Path, tmp_path: Path):
    run(right, tmp_path / "net")
    saved = tmp_path / "saved"
    saved.mkdir()
    for sample in right:
        shutil.copy(sample.pose_max.map_path, saved / f"{Path(sample.filepath).stem}.png")
    attach = foo.get_operator(f"{URI}attach_heatmaps")
    state = attach(right, str(saved), "saved", match="relative path", rel_dir=str(photos), progress=False)
    assert state.done == 4


@pytest.mark.parametrize("first", [True, False], ids=["slice first", "slice last"])
def test_a_run_is_split(groups: fo.Dataset, tmp_path: Path, first: bool):
    if first:
        view = groups.select_group_slices("right").match_tags("all")
    else:
        view = groups.match(fo.ViewField("filepath") != "nothing").select_group_slices("right")
    chosen = {"maps": "max", "keypoints": False, "input_size": 64, "maps_dir": str(tmp_path)}
    queued = foo.get_operator(f"{URI}generate_heatmaps")(view, shards=2, **chosen)
    service = DelegatedOperationService()
    for one in queued:
        assert service.execute_operation(service.get(one.result["id"])).error is None
    assert len(maps(groups.select_group_slices("right"))) == 4
