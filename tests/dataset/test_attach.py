"""Maps that another tool saved, found by their file names and shown."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, Executor

from inference import attach as attaching
from inference import runs
from inference.file_index import Matching
from inference.joints import COCO

URI = "@pose-heatmaps/higherhrnet/attach_heatmaps"


@pytest.fixture
def attach() -> foo.Operator:
    return foo.get_operator(URI)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "maps"
    made.mkdir()
    return made


def save(path: Path, peak: int = 200, dtype: type = np.uint8, shape: tuple[int, int] = (12, 16)) -> np.ndarray:
    """A map with one bright pixel, as a research script saves it."""
    values = np.zeros(shape, dtype)
    values[3, 5] = peak
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)
    return values


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def pose_fields(dataset: fo.Dataset) -> list[str]:
    dataset.reload()
    return [name for name in dataset.get_field_schema() if name.startswith("pose")]


def assert_untouched(dataset: fo.Dataset) -> None:
    assert pose_fields(dataset) == []
    assert dataset.list_runs() == []


# --- what is attached


def test_images_are_referenced_in_place_and_shown(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset(photos)
    for stem in ("astronaut", "camera"):
        save(folder / f"{stem}.png")
        for joint in ("nose", "left_wrist", "tail_tip"):
            save(folder / f"{stem}_{joint}.png")
    save(folder / "chelsea_nose.png")
    for other in ("astronaut_status.png", "astronaut_2.png", "astronaut_Nose.png", "nobody_nose.png", "notes.txt"):
        (folder / other).touch()  # reserved, not names of joints, of no image, no map
    before = contents(folder)

    state = attach(made, str(folder))

    assert pose_fields(made) == ["pose_max", "pose_nose", "pose_left_wrist", "pose_tail_tip", "pose_status"]
    for stem in ("astronaut", "camera"):
        sample = made.match(fo.ViewField("filepath").contains_str(stem)).first()
        assert sample.pose_max.map_path == str(folder / f"{stem}.png")
        assert sample.pose_tail_tip.map_path == str(folder / f"{stem}_tail_tip.png")
        assert sample.pose_nose.range is None
        assert sample.pose_nose.get_map()[3, 5] == 200
    assert made.values("pose_max.map_path").count(None) == 4
    assert (state.total, state.matched, state.done, state.files) == (6, 3, 3, 9)
    assert len(state.unmatched) == 3
    assert "9 maps were attached to 3 of 6 samples" in state.summary()
    assert str(photos / "coffee.png") in state.summary()
    assert made.count_values("pose_status")["done"] == 3
    assert f"No map of this image was found in {folder}." in made.distinct("pose_status")
    assert contents(folder) == before

    record = runs.read_record(made, "pose")
    assert record.adopted
    assert set(record.fields) == set(pose_fields(made))
    assert record.joints == COCO.joints
    assert record.settings["source"] == str(folder)
    colors = {entry["path"]: entry["fieldColor"] for entry in made.app_config.color_scheme.fields}
    assert colors["pose_left_wrist"] == COCO.colors["left_wrist"]
    assert "pose_max" in made.app_config.active_fields.paths
    assert "pose_nose" not in made.app_config.active_fields.paths


@pytest.mark.parametrize("suffix", [".jpg", ".tiff", ".png"])
def test_kinds_of_image_files(attach, dataset: Callable, photos: Path, folder: Path, suffix: str):
    made = dataset([photos / "rocket.jpg"])
    save(folder / f"rocket_heat{suffix}")
    attach(made, str(folder), pattern="{stem}_heat" + suffix, joint_pattern="")
    assert pose_fields(made) == ["pose_max", "pose_status"]
    assert made.first().pose_max.get_map()[3, 5] > 150


def test_16_bit_images_get_the_range_that_they_need(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "camera.png", photos / "rocket.jpg"])
    save(folder / "camera.png", 60)
    for name in ("rocket.png", "rocket_nose.png", "camera_nose.tiff"):
        save(folder / name, 60000, np.uint16)
    attach(made, str(folder))
    assert made.values("pose_max.range") == [None, [0, 65535]]
    assert made.values("pose_nose.range") == [None, [0, 65535]]
    attach(made, str(folder), joint_pattern="{stem}_{joint}.tiff")
    assert made.values("pose_nose.range") == [[0, 65535]] * 2

    attach(made, str(folder), label_field="pose_b", range=(0, 1000))
    assert made.values("pose_b_max.range") == [[0, 1000]] * 2


def test_a_file_that_is_no_image_costs_its_sample_only(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "camera.png", photos / "rocket.jpg"])
    save(folder / "camera.png")
    (folder / "rocket.png").write_text("not a map")
    state = attach(made, str(folder))
    assert (state.matched, state.done, state.failed) == (2, 1, 1)
    assert made.values("pose_max.map_path") == [str(folder / "camera.png"), None]
    assert (
        made.last().pose_status
        == f"{folder / 'rocket.png'} is not a PNG image; is it damaged, or another kind of file?"
    )
    assert "1 failed, for example" in state.summary()


def test_numpy_files_are_converted_to_8_bits(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / name for name in ("astronaut.jpg", "camera.png", "rocket.jpg")])
    values = np.array([[-1.0, 0.0, 0.5, 1.0], [2.0, 3.0, 4.0, np.nan]], np.float32)
    np.save(folder / "astronaut_nose.npy", values)
    np.save(folder / "camera_nose.npy", np.zeros((17, 4, 4)))
    (folder / "rocket_nose.npy").write_text("not an array")
    save(folder / "astronaut.png")
    pattern = "{stem}_{joint}.npy"
    with pytest.raises(ValueError, match=r"\.npy files need a range"):
        attach(made, str(folder), joint_pattern=pattern)
    assert_untouched(made)

    state = attach(made, str(folder), joint_pattern=pattern, range=(0, 2))

    first, second, third = made
    assert Path(first.pose_nose.map_path).is_relative_to(runs.default_maps_dir(made))
    assert first.pose_nose.range is None
    stored = cv2.imread(first.pose_nose.map_path, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, [[0, 0, 64, 128], [255, 255, 255, 0]])
    assert stored.dtype == np.uint8
    assert first.pose_max.range is None, "the range is the arrays'"
    assert (state.done, state.failed) == (1, 2)
    assert "shape (17, 4, 4); a map has two dimensions" in second.pose_status
    assert "cannot be read as a NumPy array" in third.pose_status
    assert second.pose_nose is None


def test_folders_of_maps_are_searched_and_may_name_the_joint(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg"])
    save(folder / "epoch 3" / "max" / "rocket.png")
    for joint in ("nose", "left_ear"):
        save(folder / "epoch 3" / "joints" / joint / "rocket.png")
    attach(made, str(folder), pattern="max/{stem}.png", joint_pattern="{joint}/{stem}.png")
    assert pose_fields(made)[:3] == ["pose_max", "pose_nose", "pose_left_ear"]
    assert made.first().pose_left_ear.map_path == str(folder / "epoch 3" / "joints" / "left_ear" / "rocket.png")


def test_a_second_folder_adds_to_what_is_there(attach, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg", photos / "camera.png"])
    save(tmp_path / "a" / "rocket.png")
    save(tmp_path / "b" / "rocket_nose.png")
    save(tmp_path / "b" / "camera_nose.png")
    attach(made, str(tmp_path / "a"))
    attach(made.limit(1), str(tmp_path / "b"))
    rocket, camera = made
    assert rocket.pose_max.map_path == str(tmp_path / "a" / "rocket.png")
    assert rocket.pose_nose.map_path == str(tmp_path / "b" / "rocket_nose.png")
    assert rocket.pose_status == "done"
    assert camera.pose_nose is None, "outside the view"
    assert set(runs.read_record(made, "pose").fields) == {"pose_max", "pose_nose", "pose_status"}


# --- names that leave it open what belongs together


@pytest.fixture
def twins(photos: Path, tmp_path: Path) -> list[Path]:
    """Two photos of one name in different folders."""
    paths = [tmp_path / "photos" / place / "0001.jpg" for place in ("garden", "street")]
    for path, name in zip(paths, ("rocket.jpg", "chelsea.jpg"), strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes((photos / name).read_bytes())
    return paths


def test_images_of_one_name_are_refused_and_listed_unless_their_folder_decides(
    attach, dataset: Callable, twins: list[Path], folder: Path
):
    made = dataset(twins)
    save(folder / "garden" / "0001.png")
    save(folder / "street" / "0001_nose.png")
    with pytest.raises(ValueError, match=r"2 images share their names.*garden.*street.*match='relative path'"):
        attach(made, str(folder))
    assert_untouched(made)

    attach(made, str(folder), match="relative path")
    garden, street = made
    assert garden.pose_max.map_path == str(folder / "garden" / "0001.png")
    assert garden.pose_nose is None
    assert street.pose_nose.map_path == str(folder / "street" / "0001_nose.png")

    attach(made, str(folder / "garden"), "pose_b", match="relative path", rel_dir=str(twins[0].parent))
    assert made.values("pose_b_max.map_path") == [str(folder / "garden" / "0001.png"), None]


def test_two_files_for_an_image_are_refused_and_listed(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg"])
    save(folder / "monday" / "rocket.png")
    save(folder / "tuesday" / "rocket.png")
    with pytest.raises(ValueError, match=r"tuesday/rocket.png .*more than one way|more than one way: tuesday/rocket"):
        attach(made, str(folder))
    assert_untouched(made)


def test_a_file_that_may_be_of_two_images_is_refused_and_listed(
    attach, dataset: Callable, twins: list[Path], folder: Path
):
    twins[0].rename(twins[0].with_name("a.jpg"))
    twins[1].rename(twins[1].with_name("a_nose.jpg"))
    made = dataset([twins[0].with_name("a.jpg"), twins[1].with_name("a_nose.jpg")])
    save(folder / "a_nose.png")
    with pytest.raises(ValueError, match=r"a_nose\.png \(the map of a_nose, or the nose of a\)"):
        attach(made, str(folder))


def test_the_longest_image_name_decides_where_a_joint_is_unknown(
    attach, dataset: Callable, twins: list[Path], folder: Path
):
    names = ("cat", "cat_left")
    paths = [twin.rename(twin.with_name(f"{name}.jpg")) for twin, name in zip(twins, names, strict=True)]
    made = dataset(paths)
    for file in ("cat_left_paw", "cat_left_wrist", "cat_left_left_paw"):
        save(folder / f"{file}.png")
    attach(made, str(folder))
    cat, cat_left = made
    assert cat.pose_left_wrist.map_path == str(folder / "cat_left_wrist.png"), "a joint that is known comes first"
    assert cat_left.pose_paw.map_path == str(folder / "cat_left_paw.png")
    assert cat_left.pose_left_paw.map_path == str(folder / "cat_left_left_paw.png")


# --- what cannot work


def test_nothing_matched_shows_what_was_looked_for(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg"])
    save(folder / "rocket-heat.png")
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is what this test is about)
        attach(made, str(folder))
    message = str(raised.value)
    assert str(photos / "rocket.jpg") in message
    assert str(folder / "rocket.png") in message
    assert str(folder / "rocket_nose.png") in message
    assert "for example, rocket-heat.png" in message
    assert_untouched(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps_dir": "/no/such/folder"}, "There is no folder '/no/such/folder'"),
        ({"pattern": "{stem}"}, r"must end with one of \.png"),
        ({"pattern": "{name}.png"}, r"must hold \{stem\} once, for example \{stem\}\.png"),
        ({"joint_pattern": "{stem}{joint}.png"}, "with something between them"),
        ({"joint_pattern": "{stem}_nose.png"}, r"must hold \{stem\} and \{joint\} once each"),
        ({"pattern": "", "joint_pattern": ""}, "Give a pattern"),
        ({"match": "order"}, "must be 'name' or 'relative path'"),
        ({"range": (1, 0)}, "the smaller one first"),
        ({"range": (0, 1, 2)}, "two numbers"),
        ({"label_field": "my pose"}, "cannot be a label field"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(
    attach, dataset: Callable, photos: Path, folder: Path, options: dict, message: str
):
    made = dataset([photos / "rocket.jpg"])
    save(folder / "rocket.png")
    with pytest.raises(ValueError, match=message):
        attach(made, **{"maps_dir": str(folder), **options})
    assert_untouched(made)


def test_images_are_not_taken_for_their_own_maps(attach, dataset: Callable, photos: Path):
    with pytest.raises(ValueError, match="holds the images themselves"):
        attach(dataset(photos), str(photos))


def test_fields_of_another_type_and_runs_of_the_network_are_refused(
    attach, dataset: Callable, photos: Path, folder: Path
):
    made = dataset([photos / "rocket.jpg"])
    save(folder / "rocket.png")
    save(folder / "rocket_nose.png")
    made.add_sample_field("pose_nose", fo.FloatField)
    with pytest.raises(ValueError, match="'pose_nose' of type FloatField"):
        attach(made, str(folder))
    assert pose_fields(made) == ["pose_nose"]

    generate = foo.get_operator("@pose-heatmaps/higherhrnet/generate_heatmaps")
    generate(made, "net", maps=("max",), keypoints=False, input_size=64, maps_dir=str(folder.parent / "net"))
    with pytest.raises(ValueError, match="'net' holds the maps of a run of 'higherhrnet-lite-coco'"):
        attach(made, str(folder), "net")


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("max", fo.Heatmap(map=np.full((4, 4), 9, np.uint8)), "another label field, or adopt"),
        ("status", "reviewed", r"another label field\.$"),
    ],
)
def test_values_that_no_run_is_known_for_are_not_replaced(
    name: str, value: object, advice: str, attach, dataset: Callable, photos: Path, folder: Path
):
    made = dataset([photos / "rocket.jpg", photos / "camera.png"])
    save(folder / "camera.png")
    made.set_values(f"pose_{name}", [None, value])
    with pytest.raises(ValueError, match=rf"values in pose_{name} that no run of 'pose' is known for.*{advice}"):
        attach(made, str(folder))
    assert made.values(f"pose_{name}") == [None, value]
    text = form_text(attach, context(made, maps_dir={"absolute_path": str(folder)}))
    assert f"values in pose_{name} that no run of 'pose' is known for" in text["problem_0"]
    assert "notice" not in text
    if name == "max":
        runs.adopt(made, "pose")
        assert attach(made, str(folder)).done == 1


def test_generate_asks_before_it_replaces_attached_maps_and_leaves_their_files(
    attach, dataset: Callable, photos: Path, folder: Path
):
    made = dataset([photos / "rocket.jpg"])
    save(folder / "rocket.png")
    np.save(folder / "rocket_nose.npy", np.eye(4))
    attach(made, str(folder), joint_pattern="{stem}_{joint}.npy", range=(0, 1))
    before = contents(folder)
    generate = foo.get_operator("@pose-heatmaps/higherhrnet/generate_heatmaps")
    for existing in (None, "append"):
        with pytest.raises(ValueError, match="were attached or adopted"):
            generate(made, input_size=64, existing=existing, maps_dir=str(folder.parent / "net"))
    assert made.first().pose_max.map_path == str(folder / "rocket.png")

    generate(made, input_size=64, existing="replace", maps_dir=str(folder.parent / "net"))
    made.reload()
    assert made.first().pose_max.map_path.startswith(str(folder.parent / "net"))
    assert contents(folder) == before


def test_an_archive_that_is_named_as_an_array_costs_its_sample_only(
    attach, dataset: Callable, photos: Path, folder: Path
):
    made = dataset([photos / "camera.png", photos / "rocket.jpg"])
    np.save(folder / "camera.npy", np.eye(4))
    with (folder / "rocket.npy").open("wb") as file:
        np.savez(file, np.eye(4))
    state = attach(made, str(folder), pattern="{stem}.npy", range=(0, 1), progress=False)
    assert (state.done, state.failed) == (1, 1)
    assert "archive of several arrays" in [sample.pose_status for sample in made][1]


def test_arrays_join_a_run_that_was_adopted(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg"])
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8))])
    runs.adopt(made, "pose")
    np.save(folder / "rocket_nose.npy", np.eye(4))
    attach(made, str(folder), joint_pattern="{stem}_{joint}.npy", range=(0, 1))
    path = made.first().pose_nose.map_path
    assert path.startswith(runs.default_maps_dir(made))
    assert Path(path).is_file()
    foo.get_operator("@pose-heatmaps/higherhrnet/delete_heatmaps")(made, "pose")
    assert not Path(path).exists()


def test_what_is_attached_while_its_run_is_deleted_is_taken_back(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg"])
    np.save(folder / "rocket.npy", np.eye(4))
    steps = attaching.process(made, Matching(str(folder), pattern="{stem}.npy", range=(0, 1)), "pose")
    next(steps)
    foo.get_operator("@pose-heatmaps/higherhrnet/delete_heatmaps")(made, "pose")
    with pytest.raises(RuntimeError, match="deleted meanwhile"):
        list(steps)
    assert_untouched(made)
    assert [name for name in made.first().to_mongo_dict() if name.startswith("pose")] == []
    assert not [*Path(runs.default_maps_dir(made)).rglob("*.png")]


# --- queued, and from the App


def test_a_queued_operation_does_the_same(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg"])
    np.save(folder / "rocket.npy", np.eye(4))
    queued = attach(made, str(folder), pattern="{stem}.npy", range=(0, 2), delegate=True)
    assert queued.delegated
    assert_untouched(made)

    (result,) = DelegatedOperationService().execute_queued_operations(operator=URI, dataset_name=made.name)

    assert result.error is None
    assert "1 maps were attached to 1 of 1 samples" in result.result["summary"]
    made.reload()
    assert made.first().pose_max.get_map().max() == 128


def context(dataset: fo.Dataset, **params: object) -> ExecutionContext:
    request = {"dataset_name": dataset.name, "params": params}
    return ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)


def form_text(operator: foo.Operator, ctx: ExecutionContext) -> dict[str, str]:
    """Labels of the form's parts, by name."""
    return {name: part.view.label for name, part in operator.resolve_input(ctx).type.properties.items() if part.view}


def test_the_form_says_how_many_samples_have_a_map(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset(photos)
    save(folder / "rocket.png")
    save(folder / "rocket_nose.png")
    text = form_text(attach, context(made, maps_dir={"absolute_path": str(folder)}))
    assert text["notice"] == "1 of 6 samples have a matching map; 2 files for pose_max, pose_nose."

    text = form_text(attach, context(made, maps_dir={"absolute_path": str(folder)}, pattern="{stem}"))
    assert "must end with one of" in text["problem_0"]
    assert "notice" not in text
    assert_untouched(made)


def test_an_immediate_run_in_the_app_streams_its_progress(attach, dataset: Callable, photos: Path, folder: Path):
    made = dataset([photos / "rocket.jpg", photos / "camera.png"])
    save(folder / "rocket.png")
    steps = list(attach.execute(context(made, maps_dir={"absolute_path": str(folder)})))
    requests = [(step.body.operator_uri, step.body.params) for step in steps]
    assert ("set_progress", {"progress": 1.0, "label": "2 of 2 samples"}) in requests, requests
    assert made.values("pose_status")[0] == "done"
    assert os.path.exists(made.first().pose_max.map_path)
