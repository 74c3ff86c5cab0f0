"""Poses of a run as an index of FiftyOne Brain."""

from collections.abc import Callable
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, Executor

from evaluation import records
from inference import pipeline, runs
from inference.joints import COCO

URI = "@pose-heatmaps/higherhrnet/index_poses"
SHAPE = (96, 128)


@pytest.fixture
def index() -> foo.Operator:
    return foo.get_operator(URI)


def pose(seed: int) -> np.ndarray:
    """Places (17, 2) of a made-up person in a box of 1 x 1; another one for each seed."""
    return np.random.default_rng(seed).uniform(0, 1, (17, 2))


def maps_of(people: list[np.ndarray]) -> np.ndarray:
    """Maps (17, h, w) of people's places relative to the image."""
    rows, columns = (np.arange(count) + 0.5 for count in SHAPE)
    maps = np.zeros((17, *SHAPE))
    for places in people:
        x, y = (places * (SHAPE[1], SHAPE[0])).T[:, :, None]
        across, down = (np.exp(-((a - b) ** 2) / (2 * 2.5**2)) for a, b in ((columns, x), (rows, y)))
        maps = np.maximum(maps, down[:, :, None] * across[:, None, :])
    return np.round(200 * maps).astype(np.uint8)


def set_poses(sample: fo.Sample, people: list[np.ndarray], folder: Path) -> None:
    """What a run would have written for a sample with these people."""
    for joint, values in zip(COCO.joints, maps_of(people), strict=True):
        path = folder / f"{sample.id}_{joint}.png"
        assert cv2.imwrite(str(path), values)
        sample[f"pose_{joint}"] = fo.Heatmap(map_path=str(path))
    sample["pose_keypoints"] = fo.Keypoints(
        keypoints=[fo.Keypoint(label="person", points=p.tolist(), confidence=[0.8] * 17, score=0.7) for p in people]
    )
    sample.save()


@pytest.fixture
def posed(dataset: Callable, photos: Path, tmp_path: Path) -> fo.Dataset:
    """Six samples: a pose, the same mirrored and smaller, another pose, two people, nobody, and a third pose."""
    made = dataset(photos)
    left = 0.1 + pose(1) * (0.5, 0.7)
    mirrored = (1 - (0.3 + pose(1) * (0.35, 0.49))) * (1, 0) + (0.3 + pose(1) * (0.35, 0.49)) * (0, 1)
    mirrored = mirrored[list(COCO.flip)]
    people = [
        [left],
        [mirrored],
        [0.2 + 0.6 * pose(2)],
        [0.05 + pose(3) * (0.4, 0.8), 0.5 + pose(2) * (0.4, 0.4)],
        [],
        [0.2 + 0.6 * pose(4)],
    ]
    for sample, who in zip(made, people, strict=True):
        set_poses(sample, who, tmp_path)
    runs.adopt(made, "pose")
    return made


def test_a_mirrored_and_smaller_copy_is_the_most_similar(index, posed: fo.Dataset):
    state = index(posed, progress=False)
    assert (state.done, state.failed, state.samples, state.people) == (6, 0, 5, 6)
    ids = posed.values("id")
    ordered = posed.sort_by_similarity(ids[0], k=3, brain_key="pose_poses").values("id")
    assert ordered[:2] == ids[:2]
    assert posed[ids[4]].pose_poses_embedding is None
    assert posed[ids[4]].pose_poses_status == "done"
    assert [value is None for value in posed.values("pose_poses_uniqueness")] == [False] * 4 + [True, False]


def test_a_view_that_hides_fields_is_indexed_with_them_and_not_again(index, posed: fo.Dataset):
    assert index(posed.select_fields(), progress=False).samples == 5
    assert index(posed.select_fields(), progress=False).skipped == 6


def test_people_are_indexed_one_by_one(index, posed: fo.Dataset):
    """The second of two people has the pose of the only person of another sample."""
    index(posed, progress=False)
    samples = list(posed)
    wanted, others = samples[2].pose_poses_people.detections[0], samples[3].pose_poses_people.detections
    patches = posed.to_patches("pose_poses_people")
    assert patches.sort_by_similarity(wanted.id, k=2, brain_key="pose_poses_people").values("id") == [
        wanted.id,
        others[1].id,
    ]
    box = np.array(others[1].bounding_box)
    places = 0.5 + pose(2) * (0.4, 0.4)
    assert box[:2] + box[2:] / 2 == pytest.approx((places.min(axis=0) + places.max(axis=0)) / 2, abs=0.02)


def test_the_brain_has_all_its_runs(index, posed: fo.Dataset):
    state = index(posed, brain_key="p", duplicates=0.01, progress=False)
    assert set(posed.list_brain_runs()) == set(state.brain_keys)
    assert posed.load_brain_results("p_map").points.shape == (5, 2)
    assert posed.load_brain_results("p_people_map").points.shape == (6, 2)
    ids = posed.values("id")
    assert set(posed.match({"p_near_duplicate": True}).values("id")) == set(ids[:2])
    assert state.duplicates == 2


def test_vectors_do_not_travel_to_the_app(index, posed: fo.Dataset):
    index(posed, progress=False)
    schema = posed.get_field_schema(flat=True)
    for path in ("pose_poses_embedding", "pose_poses_people.detections.embedding"):
        assert isinstance(schema[path], fo.VectorField), path


def test_another_call_goes_on_and_the_index_has_all(index, posed: fo.Dataset):
    ids = posed.values("id")
    first = index(posed.select(ids[:3]), progress=False)
    assert (first.done, first.samples) == (3, 3)
    second = index(posed, progress=False)
    assert (second.done, second.skipped, second.samples) == (3, 3, 5)
    assert len(posed.sort_by_similarity(ids[0], brain_key="pose_poses")) == 5


def test_squashed_maps_are_indexed_as_the_image_is(index, posed: fo.Dataset):
    """The maps are of 4:3: taken for those of a wide photo, a pose is wide."""
    first = posed.first()
    vectors = []
    for width in (400, 1600, 400):
        first.metadata = fo.ImageMetadata(width=width, height=300)
        first.save()
        index(posed, skip_existing=False, progress=False)
        posed.reload()
        vectors.append((first.pose_poses_embedding, first.pose_poses_people.detections[0].embedding))
    for whole, wide, again in zip(*vectors, strict=True):
        assert whole @ again == pytest.approx(1, abs=1e-5)
        assert whole @ wide < 0.9


def test_a_faint_background_does_not_change_an_index(index, posed: fo.Dataset):
    first = posed.first()
    index(posed, brain_key="dark", progress=False)
    for joint in COCO.joints:
        path = first[f"pose_{joint}"].map_path
        assert cv2.imwrite(path, np.maximum(cv2.imread(path, cv2.IMREAD_UNCHANGED), 2))
    index(posed, brain_key="faint", progress=False)
    first.reload()
    assert first.dark_embedding @ first.faint_embedding > 0.99


def test_an_index_goes_with_its_fields_and_brain_runs(index, posed: fo.Dataset):
    before = set(posed.get_field_schema(flat=True))
    index(posed, duplicates=0.01, progress=False)
    records.delete(posed, "pose_poses")
    assert set(posed.get_field_schema(flat=True)) == before
    assert posed.list_brain_runs() == []
    assert records.list_records(posed) == {}


def test_maps_of_other_joints_are_indexed_too(index, posed: fo.Dataset):
    posed.set_values("pose_tail", posed.values("pose_nose"))
    runs.adopt(posed, "pose", COCO)
    state = index(posed, progress=False)
    assert (state.done, state.failed, state.people, state.empty) == (6, 0, 6, 1)
    assert len(posed.first().pose_poses_embedding) == 18 * 64
    assert "the maps of 1 show nothing" in state.summary()


def test_samples_outside_of_the_view_do_not_count_as_empty(index, posed: fo.Dataset):
    ids = posed.values("id")
    index(posed.select(ids[:3]), progress=False)
    state = index(posed.select(ids[4:5]), progress=False)
    assert (state.done, state.samples, state.empty) == (1, 3, 1)
    assert "the maps of 1 show nothing" in state.summary()


def test_a_damaged_map_costs_its_sample(index, posed: fo.Dataset):
    broken = posed.first()
    Path(broken.pose_nose.map_path).write_bytes(b"not a map")
    state = index(posed, progress=False)
    assert (state.done, state.failed) == (5, 1)
    assert "is not an image" in posed[broken.id].pose_poses_status
    assert posed[broken.id].pose_poses_embedding is None


def test_what_cannot_work_is_said_before_anything_is_written(index, posed: fo.Dataset):
    before = set(posed.get_field_schema())
    for settings, words in (
        ({"label_field": "nothing"}, "'nothing' has no maps"),
        ({"brain_key": "no key"}, "cannot be a key"),
        ({"brain_key": "pose"}, "another run with the key"),
        ({"visualization": "lasso"}, "must be pca, umap, or None"),
        ({"duplicates": 3}, "between 0 and 1"),
        ({"duplicates": 0.1, "backend": "qdrant"}, "backend='sklearn' only, not with 'qdrant'"),
        ({"backend": "abacus"}, "FiftyOne Brain knows .*sklearn"),
    ):
        with pytest.raises(ValueError, match=words):
            index(posed, progress=False, **settings)
    posed.delete_sample_field("pose_keypoints")
    with pytest.raises(ValueError, match="no field 'pose_keypoints'"):
        index(posed, progress=False)
    assert set(posed.get_field_schema()) == before - {"pose_keypoints"}
    assert index(posed, people=False, progress=False).samples == 5


def test_an_index_with_other_choices_is_refused_by_name(index, posed: fo.Dataset):
    index(posed, people=False, progress=False)
    with pytest.raises(ValueError, match=r"made with other choice of people\. .*delete_evaluation"):
        index(posed, progress=False)


def test_the_form_says_where_to_find_the_index_or_why_not(posed: fo.Dataset):
    def texts(**params: object) -> list[tuple[bool, str]]:
        request = {"dataset_name": posed.name, "params": params}
        ctx = ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)
        parts = foo.get_operator(URI).resolve_input(ctx).type.properties.values()
        return [(part.invalid, part.view.label or "") for part in parts if part.view]

    found = texts()
    assert any("6 images" in text and "pose_poses_map" in text for _, text in found)
    assert not any(invalid for invalid, _ in found)
    assert any(invalid and "cannot be a key" in text for invalid, text in texts(brain_key="no key"))


def test_it_runs_delegated(index, posed: fo.Dataset):
    index(posed, delegate=True)
    assert posed.list_brain_runs() == []
    (result,) = DelegatedOperationService().execute_queued_operations(operator=URI, dataset_name=posed.name)
    assert result.error is None
    assert "5 samples and 6 people" in result.result["summary"]
    posed.reload()
    assert "pose_poses" in posed.list_brain_runs()


def test_a_distance_of_duplicates_can_be_queued(index, posed: fo.Dataset):
    index(posed, brain_key="p", duplicates=0.01, delegate=True)
    (result,) = DelegatedOperationService().execute_queued_operations(operator=URI, dataset_name=posed.name)
    assert result.error is None
    posed.reload()
    assert set(posed.match({"p_near_duplicate": True}).values("id")) == set(posed.values("id")[:2])


def test_a_run_without_people_is_indexed_as_its_form_says(index, posed: fo.Dataset):
    posed.delete_sample_fields(["pose_keypoints"])
    request = {"dataset_name": posed.name, "params": {"label_field": "pose", "people": True}}  # of another run
    ctx = ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)
    form = index.resolve_input(ctx).type.properties
    assert not any(part.invalid for part in form.values())
    assert "people" not in form
    for _ in index.execute(ctx):
        pass
    posed.reload()
    assert posed.values("pose_poses_status") == ["done"] * 6


def test_it_takes_what_a_real_run_wrote(index, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    pipeline.run(made, pipeline.Settings("pose", maps_dir=str(tmp_path / "maps")), progress=False)
    state = index(made, progress=False)
    assert (state.done, state.failed) == (6, 0)
    assert len(made.first().pose_poses_embedding) == 17 * 64
