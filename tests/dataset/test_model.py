"""The model of the zoo, as `dataset.apply_model` uses it."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.zoo as foz
import numpy as np
import pytest

from inference import runs
from inference.joints import COCO

SETTINGS = {"input_size": 128}


@pytest.fixture
def generate() -> foo.Operator:
    return foo.get_operator("@pose-heatmaps/higherhrnet/generate_heatmaps")


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """Landscape, portrait, grey and EXIF-rotated images."""
    from PIL import Image

    for name in ("astronaut.jpg", "camera.png", "rocket.jpg"):
        (tmp_path / name).write_bytes((photos / name).read_bytes())
    portrait = Image.open(photos / "coffee.png").convert("RGB").rotate(90, expand=True)
    portrait.save(tmp_path / "portrait.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos / "rocket.jpg").save(tmp_path / "turned.jpg", exif=exif)
    return tmp_path


def pixels(heatmap: fo.Heatmap) -> np.ndarray:
    return heatmap.map if heatmap.map is not None else cv2.imread(heatmap.map_path, cv2.IMREAD_UNCHANGED)


def check_equal(by_operator: fo.Dataset, by_model: fo.Dataset) -> None:
    fields = [name for name in by_operator.get_field_schema() if name.startswith("pose_")]
    assert len(fields) == 22
    for one, other in zip(by_operator, by_model, strict=True):
        for name in fields:
            expected, found = one[name], other[name]
            if isinstance(expected, fo.Heatmap):
                np.testing.assert_array_equal(pixels(expected), pixels(found), err_msg=name)
            elif isinstance(expected, fo.Keypoints):
                assert len(expected.keypoints) == len(found.keypoints)
                for person, same in zip(expected.keypoints, found.keypoints, strict=True):
                    np.testing.assert_allclose(person.points, same.points, atol=1e-6)
                    np.testing.assert_allclose(person.confidence, same.confidence, atol=1e-6)
            elif name == "pose_confidence":
                assert found == pytest.approx(expected, abs=1e-6)
            else:
                assert found == expected, name


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_apply_model_gives_what_the_operator_gives(
    storage: str, mixed: Path, dataset: Callable[..., fo.Dataset], generate: foo.Operator
) -> None:
    by_operator, by_model = dataset(mixed), dataset(mixed)
    # one image a batch in both: the network's rounding depends on the batch
    generate(by_operator, storage=storage, batch_size=1, **SETTINGS)
    model = foz.load_zoo_model("higherhrnet-lite-coco", storage=storage, **SETTINGS)
    by_model.apply_model(model, "pose")
    check_equal(by_operator, by_model)


@pytest.mark.parametrize("maps", [("max", "joints"), ("joints",)])
def test_a_model_whose_label_field_begins_with_that_of_another_is_adopted_apart(
    maps: tuple[str, ...], photos: Path, dataset: Callable[..., fo.Dataset]
) -> None:
    samples = dataset([photos / "rocket.jpg"])
    small = {"storage": "memory", "input_size": 64}
    samples.apply_model(foz.load_zoo_model("higherhrnet-lite-coco", **small), "zoo")
    samples.apply_model(foz.load_zoo_model("higherhrnet-lite-coco", flip=True, maps=maps, **small), "zoo_flip")
    flipped = {name for name in samples.get_field_schema() if name.startswith("zoo_flip_")}

    record = runs.adopt(samples, "zoo")

    assert len(record.fields) == 22
    assert not flipped & {*record.fields}
    assert record.joints == COCO.joints
    foo.get_operator("@pose-heatmaps/higherhrnet/delete_heatmaps")(samples, "zoo")
    assert {name for name in samples.get_field_schema() if name.startswith("zoo_")} == flipped
    assert {*runs.adopt(samples, "zoo_flip").fields} == flipped


def test_batches_of_mixed_sizes_come_back_in_order(mixed: Path, dataset: Callable[..., fo.Dataset]) -> None:
    samples = dataset(mixed)
    model = foz.load_zoo_model("higherhrnet-lite-coco", storage="memory", **SETTINGS)
    samples.apply_model(model, "pose", batch_size=8)
    samples.compute_metadata()
    for sample in samples:
        image = cv2.imread(sample.filepath)  # turned as its EXIF orientation says
        height, width = sample.pose_max.map.shape
        assert width / height == pytest.approx(image.shape[1] / image.shape[0], rel=0.02), sample.filename


def test_a_confidence_threshold_is_no_obstacle(mixed: Path, dataset: Callable[..., fo.Dataset]) -> None:
    samples = dataset(mixed)
    model = foz.load_zoo_model("higherhrnet-lite-coco", storage="memory", maps=("max",), **SETTINGS)
    samples.apply_model(model, "pose", confidence_thresh=0.3)
    assert samples.count("pose_max") == len(samples)


def test_single_images_are_predicted_without_a_dataset(photos: Path) -> None:
    model = foz.load_zoo_model("higherhrnet-lite-coco", maps=("max", "nose"), keypoints=False, **SETTINGS)
    labels = model.predict(cv2.imread(str(photos / "astronaut.jpg"), cv2.IMREAD_COLOR_RGB))
    assert set(labels) == {"max", "nose", "confidence", "status"}
    assert labels["max"].map.max() > 0


def test_map_files_lie_below_the_chosen_folder(
    mixed: Path, dataset: Callable[..., fo.Dataset], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("maps")
    samples = dataset(mixed)
    model = foz.load_zoo_model("higherhrnet-lite-coco", maps_dir=str(folder), **SETTINGS)
    samples.apply_model(model, "pose", batch_size=2)
    paths = [Path(path) for path in samples.values("pose_left_wrist.map_path")]
    assert all(path.is_file() and folder in path.parents for path in paths)
    assert not list(folder.rglob(".partial"))


def test_a_frame_that_is_not_saved_yet_gets_files(photos: Path, tmp_path: Path) -> None:
    model = foz.load_zoo_model("higherhrnet-lite-coco", maps_dir=str(tmp_path), **SETTINGS)
    image = cv2.imread(str(photos / "rocket.jpg"))[..., ::-1]
    with model:
        labels = model.predict(image, sample=fo.Sample(filepath=str(photos / "rocket.jpg")))
    assert Path(labels["max"].map_path).is_file()


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ValueError, match="resolutoin"):
        foz.load_zoo_model("higherhrnet-lite-coco", resolutoin="image")


@pytest.fixture(params=["fork", "spawn"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        pytest.skip(f"torchvision, which FiftyOne's data loaders need, cannot be imported here ({error})")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_data_loaders_give_what_the_operator_gives(
    start_method: str, mixed: Path, dataset: Callable[..., fo.Dataset], generate: foo.Operator
) -> None:
    import fiftyone.core.models as fom

    by_operator, by_model = dataset(mixed), dataset(mixed)
    generate(by_operator, batch_size=1, **SETTINGS)
    model = foz.load_zoo_model("higherhrnet-lite-coco", **SETTINGS)
    assert isinstance(model, fom.SupportsGetItem)
    by_model.apply_model(model, "pose", batch_size=1, num_workers=2, skip_failures=False)
    check_equal(by_operator, by_model)
