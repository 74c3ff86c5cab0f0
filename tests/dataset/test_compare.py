"""Two runs on one dataset, compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, Executor

from evaluation import comparison, records
from inference import mirrored, pipeline, runs
from inference.images import read_image
from inference.joints import COCO

URI = "@pose-heatmaps/higherhrnet/compare_runs"
JOINTS = ("nose", "left_wrist", "right_wrist")


@pytest.fixture
def compare() -> foo.Operator:
    return foo.get_operator(URI)


def blob(x: float, y: float, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    rows, columns = (np.arange(count)[:, None] + 0.5 for count in shape)
    values = np.exp(-((columns.T - x * shape[1]) ** 2 + (rows - y * shape[0]) ** 2) / (0.002 * shape[0] ** 2))
    return np.round(200 * values).astype(np.uint8)


def attach(
    dataset: fo.Dataset, label_field: str, joints: tuple[str, ...] = JOINTS, **places: tuple[float, float]
) -> None:
    """Maps with the same places in all samples."""
    shape = (48, 64) if label_field == "one" else (60, 80)
    for joint in joints:
        values = blob(*places[joint], shape) if joint in places else np.zeros(shape, np.uint8)
        maps = [fo.Heatmap(map=values, range=[0, 255]) for _ in range(len(dataset))]
        dataset.set_values(f"{label_field}_{joint}", maps)
    runs.adopt(dataset, label_field)


@pytest.fixture
def two(dataset: Callable, photos: Path) -> fo.Dataset:
    """Runs 'one' and 'two' that see the nose alike and the left wrist apart, and only one of which sees the right."""
    made = dataset(photos)
    made.set_values("metadata", [fo.ImageMetadata(width=640, height=480) for _ in made])  # as the maps are
    attach(made, "one", nose=(0.5, 0.2), left_wrist=(0.3, 0.6))
    attach(made, "two", nose=(0.5, 0.2), left_wrist=(0.35, 0.6))
    return made


def move(dataset: fo.Dataset, sample_id: str, place: tuple[float, float]) -> None:
    sample = dataset[sample_id]
    sample.two_nose = fo.Heatmap(map=blob(*place, (60, 80)), range=[0, 255])
    sample.save()


def form_of(dataset: fo.Dataset, **params: object) -> list[dict]:
    request = {"dataset_name": dataset.name, "params": params}
    ctx = ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)
    inputs = foo.get_operator(URI).resolve_input(ctx).type
    return [{"invalid": p.invalid, "text": p.view.label or ""} for p in inputs.properties.values() if p.view]


def test_one_sort_brings_up_where_two_runs_disagree(compare, two: fo.Dataset):
    odd = two.values("id")[3]
    move(two, odd, (0.9, 0.9))
    state = compare(two, "one", "two", "cmp", progress=False)
    assert (state.done, state.failed, state.total) == (6, 0, 6)
    for name in ("cmp_distance", "cmp_divergence", "cmp_distance_nose", "cmp_divergence_nose"):
        assert two.sort_by(name, reverse=True).first().id == odd, name
    values = dict(zip(two.values("id"), two.values("cmp_distance_nose"), strict=True))
    assert values.pop(odd) == pytest.approx(1, abs=0.01)
    assert list(values.values()) == pytest.approx([0] * 5, abs=0.02)
    # nobody was found: distances are in quarters of the image's size
    assert two.values("cmp_distance_left_wrist") == pytest.approx([0.05 * 64 / (0.25 * (48 * 64) ** 0.5)] * 6, abs=0.03)
    assert two.values("cmp_distance_right_wrist") == [None] * 6
    assert two.match({"cmp_worst_joint": "nose"}).values("id") == [odd]
    assert set(two.values("cmp_status")) == {"done"}


def test_distances_are_those_of_the_image_where_it_is_known(compare, two: fo.Dataset):
    """The maps are of 4:3; the wrist is 0.05 of the width apart."""
    sizes = [(800, 300), (400, 300)] * 3
    two.set_values("metadata", [fo.ImageMetadata(width=width, height=height) for width, height in sizes])
    compare(two, "one", "two", "cmp", progress=False)
    expected = [0.05 * width / (0.25 * (width * height) ** 0.5) for width, height in sizes]
    assert two.values("cmp_distance_left_wrist") == pytest.approx(expected, rel=0.15)


def test_a_joint_that_one_run_does_not_see_is_the_largest_disagreement(compare, two: fo.Dataset):
    attach(two, "three", nose=(0.5, 0.2))
    compare(two, "one", "three", "cmp", progress=False)
    assert two.values("cmp_distance_left_wrist") == [1.0] * 6
    assert two.values("cmp_divergence_left_wrist") == [1.0] * 6
    assert two.values("cmp_distance_nose") == pytest.approx([0] * 6, abs=0.03)


def test_it_is_kept_as_a_run_with_results_and_goes_with_its_fields(compare, two: fo.Dataset):
    before = set(two.get_field_schema())
    state = compare(two, "one", "two", "cmp", progress=False)
    assert records.list_records(two, comparison.KIND)["cmp"].settings["other_field"] == "two"
    results = records.load_results(two, "cmp")
    assert results == state.results
    assert results["samples"] == 6
    assert results["joints"]["right_wrist"]["samples"] == 0
    assert results["joints"]["nose"]["divergence"] == pytest.approx(np.mean(two.values("cmp_divergence_nose")))
    records.delete(two, "cmp")
    assert set(two.get_field_schema()) == before
    assert "cmp" not in two.list_runs()


def test_a_sample_without_maps_costs_itself_and_is_tried_again(compare, two: fo.Dataset):
    ids = two.values("id")
    for index, name in ((0, "one_nose"), (2, "two_nose"), (5, "one_nose"), (5, "two_nose")):
        sample = two[ids[index]]
        sample[name] = None
        sample.save()
    state = compare(two, "one", "two", "cmp", progress=False)
    assert (state.done, state.failed) == (3, 3)
    statuses = dict(zip(ids, two.values("cmp_status"), strict=True))
    assert "'one': It has no map of nose" in statuses[ids[0]]
    assert "'two': It has no map of nose" in statuses[ids[2]]
    assert "'one'" in statuses[ids[5]]
    assert two.values("cmp_distance")[0] is None
    sample = two[ids[2]]
    sample.two_nose = fo.Heatmap(map=blob(0.5, 0.2), range=[0, 255])
    sample.save()
    again = compare(two, "one", "two", "cmp", progress=False)
    assert (again.total, again.done, again.failed, again.skipped) == (3, 1, 2, 3)


def test_what_cannot_work_is_said_before_anything_is_written(compare, two: fo.Dataset):
    attach(two, "other", joints=("left_eye",), left_eye=(0.5, 0.5))
    two.add_sample_field("taken_distance", fo.StringField)
    before = set(two.get_field_schema())
    for arguments, words in (
        (("one", "one", "cmp"), "with itself"),
        (("one", "nothing", "cmp"), "'nothing' has no maps"),
        (("one", "other", "cmp"), "no joint in common"),
        (("one", "two", "no key"), "cannot be a key"),
        (("one", "two", "taken"), "'taken_distance'"),
        (("one", "two", "one"), "another run with the key"),
        (("one", "flip", "cmp"), "attached"),
    ):
        with pytest.raises(ValueError, match=words):
            compare(two, *arguments, progress=False)
    assert set(two.get_field_schema()) == before
    compare(two, "one", "two", "cmp", progress=False)
    attach(two, "three", nose=(0.5, 0.2))
    with pytest.raises(ValueError, match="holds a comparison of 'one' with 'two'"):
        compare(two, "one", "three", "cmp", progress=False)


def test_a_run_called_flip_is_not_taken_for_the_mirror_image(compare, two: fo.Dataset):
    two.set_values("flip_nose", two.values("two_nose"))
    # no run is called so any more, but earlier versions let one be
    runs.save_record(two, replace(runs.read_record(two, "two"), label_field="flip", fields=("flip_nose",)))
    with pytest.raises(ValueError, match="'flip' stands for mirrored images, but this dataset has a run of that name"):
        compare(two, "one", "flip", "cmp", progress=False)
    assert compare(two, "flip", "one", "cmp", progress=False).done == 6
    request = {"dataset_name": two.name, "params": {"label_field": "one"}}
    ctx = ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)
    form = foo.get_operator(URI).resolve_input(ctx).type.properties
    assert sorted(form["other_field"].type.values) == ["flip", "two"]


def test_the_form_names_the_fields_or_says_why_not(two: fo.Dataset):
    parts = form_of(two, label_field="one", other_field="two", compare_key="cmp")
    assert any("6 images" in part["text"] and "cmp_distance" in part["text"] for part in parts)
    assert not any(part["invalid"] for part in parts)
    parts = form_of(two, label_field="one", other_field="flip")
    assert any(part["invalid"] and "attached" in part["text"] for part in parts)


def test_it_runs_delegated(compare, two: fo.Dataset):
    compare(two, "one", "two", "cmp", delegate=True)
    assert not two.has_field("cmp_distance")
    (result,) = DelegatedOperationService().execute_queued_operations(operator=URI, dataset_name=two.name)
    assert result.error is None
    assert result.result["joints"][0]["joint"] == "left wrist"
    two.reload()
    assert two.count("cmp_distance") == 6


# --- plain against mirrored


@pytest.fixture
def posed(dataset: Callable, photos: Path, tmp_path: Path) -> fo.Dataset:
    made = dataset(photos)
    pipeline.run(made, pipeline.Settings("pose", maps_dir=str(tmp_path / "maps")), progress=False)
    return made


def test_flip_needs_one_run_only(compare, posed: fo.Dataset):
    state = compare(posed, progress=False)
    assert (state.done, state.failed) == (6, 0)
    values = posed.values("pose_vs_flip_divergence")
    assert all(0 <= value <= 1 for value in values)
    assert max(values) > 0, "no trained network sees exactly the same in a mirror"
    assert len(state.results["joints"]) == 17


def test_samples_with_maps_made_anew_are_compared_and_indexed_anew(compare, posed: fo.Dataset, tmp_path: Path):
    index = foo.get_operator("@pose-heatmaps/higherhrnet/index_poses")
    settings = pipeline.Settings("other", maps_dir=str(tmp_path / "maps"))
    pipeline.run(posed, settings, progress=False)
    compare(posed, "pose", "other", "cmp", progress=False)
    index(posed, "other", "o", progress=False)
    pipeline.run(posed, settings, progress=False)  # nothing to do: the verdicts stay
    assert posed.count("cmp_distance") == 6
    assert compare(posed, "pose", "other", "cmp", progress=False).skipped == 6
    pipeline.run(posed.limit(2), settings, skip_existing=False, progress=False)
    assert compare(posed, "pose", "other", "cmp", progress=False).done == 2
    again = index(posed, "other", "o", progress=False)
    assert (again.done, again.skipped) == (2, 4)


def test_flip_compares_left_with_left(compare, posed: fo.Dataset):
    """On the astronaut, mirrored maps turned back must be near the plain ones; left for right they would not be."""
    astronaut = posed.match({"filepath": {"$regex": "astronaut"}})
    compare(astronaut, progress=False)
    sample = astronaut.first()
    assert sample.pose_vs_flip_distance_left_shoulder < 0.3
    assert sample.pose_vs_flip_distance_right_shoulder < 0.3


def test_the_mirrored_maps_are_those_of_the_mirrored_photo_without_flip_test(posed: fo.Dataset, photos: Path):
    record = runs.read_record(posed, "pose")
    record.settings["flip"] = True
    predictor, joint_set = mirrored.load(record, "cpu")
    assert not predictor.flip_test
    path = str(photos / "astronaut.jpg")  # square, so that its map has no padding
    (seen,) = mirrored.look([("1", path)], predictor, joint_set, COCO.joints)

    image = np.ascontiguousarray(read_image(path)[:, ::-1])
    turned = predictor.predict([predictor.prepare(image)]).heatmaps[0].flip(2).numpy().clip(0, 1)
    turned = np.stack([cv2.resize(values, seen.mirrored.shape[:0:-1]) for values in turned])
    right, wrong = (np.abs(seen.mirrored - maps).mean() for maps in (turned[list(COCO.flip)], turned))
    assert right < wrong / 4


def test_flip_leaves_out_a_damaged_image(compare, posed: fo.Dataset, tmp_path: Path):
    sample = posed.first()
    sample.filepath = str(tmp_path / "damaged.jpg")
    Path(sample.filepath).write_bytes(b"not an image")
    sample.save()
    state = compare(posed, progress=False)
    assert (state.done, state.failed) == (5, 1)
    assert "is not an image" in posed[sample.id].pose_vs_flip_status


def test_flip_refuses_other_weights_than_made_the_maps(compare, posed: fo.Dataset):
    record = runs.read_record(posed, "pose")
    record.settings["sha256"] = "0" * 64
    runs.save_record(posed, record)
    with pytest.raises(ValueError, match="are not those that made the maps"):
        compare(posed, progress=False)
    assert not posed.has_field("pose_vs_flip_status")
