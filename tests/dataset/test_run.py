"""What a run adds to a dataset, and what happens when it runs again."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
import torch

from inference import checkpoints, estimates, pipeline, predictor, removal, runs, shards, views
from inference.joints import COCO

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MAPS = ("max", *COCO.joints)


def run(view: fo.core.collections.SampleCollection, maps_dir: Path | None, **options: object) -> pipeline.Progress:
    """A run with an input of 64 pixels and without single joints, where a test does not ask for others."""
    choices = {name: options.pop(name) for name in ("skip_existing", "existing") if name in options}
    settings = {"maps_dir": maps_dir and str(maps_dir), "input_size": 64, "maps": ("max",), **options}
    return pipeline.run(view, pipeline.Settings(**settings), progress=False, **choices)


def run_in_process(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run Python code that ends in its own way, with `sys.argv[1:]` the arguments."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [*options.pop("before", ()), sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def read(path: str) -> np.ndarray:
    return cv2.imread(path, cv2.IMREAD_UNCHANGED)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def photos_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[fo.Dataset, Path]]:
    """Six photos with all maps at an input of 128 pixels, and the folder of the maps. Read only."""
    made = fo.Dataset(f"test-{uuid.uuid4().hex[:12]}", persistent=True)
    made.add_samples([fo.Sample(filepath=str(path)) for path in sorted(photos.iterdir())], progress=False)
    maps_dir = tmp_path_factory.mktemp("maps")
    run(made, maps_dir, maps=("max", "joints"), input_size=128)
    yield made, maps_dir
    made.delete()


# --- fields and maps


def test_a_run_adds_18_maps_people_confidence_and_status(photos_run: tuple[fo.Dataset, Path]):
    made, _ = photos_run
    schema = made.get_field_schema()
    heatmaps = made.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)
    assert set(heatmaps) == {f"pose_{name}" for name in MAPS}
    assert len(heatmaps) == 18
    assert schema["pose_keypoints"].document_type is fo.Keypoints
    others = {"pose_confidence": fo.FloatField, "pose_num_people": fo.IntField, "pose_status": fo.StringField}
    assert {name: type(schema[name]) for name in others} == others

    assert made.values("pose_status") == ["done"] * 6
    people = [len(found) for found in made.values("pose_keypoints.keypoints")]
    assert people == made.values("pose_num_people")
    assert sum(people) > 0
    confidences = made.values("pose_confidence")
    assert all(0 < confidence < 1.5 for confidence in confidences)
    assert min(confidences[:2]) > 3 * max(confidences[2:]), "the astronaut and the photographer are the only people"


def test_map_files_lie_in_a_folder_per_sample(photos_run: tuple[fo.Dataset, Path]):
    made, maps_dir = photos_run
    run_id = runs.read_record(made, "pose").run_id
    for sample in made:
        for name in MAPS:
            heatmap = sample[f"pose_{name}"]
            assert heatmap.map_path == str(maps_dir / run_id / sample.id[-2:] / sample.id / f"{name}.png")
            assert heatmap.map is None
            assert heatmap.range is None
            assert read(heatmap.map_path).dtype == np.uint8
    assert len(files_in(maps_dir)) == 6 * 18
    # the astronaut is square; the motorcycle is a landscape photo, 741 x 500
    assert read(made.first().pose_max.map_path).shape == (64, 64)
    assert read(made.match(fo.ViewField("filepath").ends_with("motorcycle.jpg")).first().pose_max.map_path).shape == (
        64,
        95,
    )


def test_the_maximum_is_the_maximum_of_the_joints(photos_run: tuple[fo.Dataset, Path]):
    made, _ = photos_run
    for sample in made:
        joints = np.stack([read(sample[f"pose_{joint}"].map_path) for joint in COCO.joints])
        maximum = read(sample.pose_max.map_path).astype(int)
        assert np.abs(maximum - joints.max(axis=0)).max() <= 1


def test_confidence_is_the_peak_of_the_maps_before_they_are_rounded(
    photos_run: tuple[fo.Dataset, Path], dataset: Callable, photos: Path
):
    made, _ = photos_run
    exact = dataset(photos)
    run(exact, None, storage="memory", dtype="float32", floor=0, input_size=128)
    for sample, same in zip(made, exact, strict=True):
        assert same.pose_max.range == [0, 1]
        assert same.pose_max.map.dtype == np.float32
        assert same.pose_max.map.min() >= 0
        assert same.pose_max.map.max() == pytest.approx(min(1, sample.pose_confidence), abs=1e-6)
        expected = np.rint(255 * np.where(same.pose_max.map < 0.02, 0, same.pose_max.map))
        np.testing.assert_array_equal(read(sample.pose_max.map_path), expected)


def test_maps_in_memory_equal_those_in_files(photos_run: tuple[fo.Dataset, Path], dataset: Callable, photos: Path):
    made, _ = photos_run
    other = dataset(photos)
    run(other, None, storage="memory", maps=("max", "left_eye"), input_size=128)
    assert [name for name in other.get_field_schema() if name.startswith("pose_left")] == ["pose_left_eye"]
    for sample, same in zip(made, other, strict=True):
        for name in ("pose_max", "pose_left_eye"):
            assert same[name].range == [0, 255]
            np.testing.assert_array_equal(same[name].map, read(sample[name].map_path))


def test_image_resolution_gives_maps_of_the_images_size(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "motorcycle.jpg"])
    run(made, tmp_path, resolution="image")
    photo = cv2.imread(made.first().filepath)
    assert read(made.first().pose_max.map_path).shape == photo.shape[:2]


def test_the_floor_blanks_what_is_below_it(photos_run: tuple[fo.Dataset, Path], dataset: Callable, photos: Path):
    made, _ = photos_run
    low = np.concatenate([read(path).ravel() for path in made.values("pose_max.map_path")])
    assert set(np.unique(low)) & set(range(1, 5)) == set()
    assert (low == 5).any()
    high = dataset(photos)
    run(high, None, storage="memory", floor=0.2, input_size=128)
    values = np.concatenate([heatmap.ravel() for heatmap in high.values("pose_max.map")])
    assert set(np.unique(values)) & set(range(1, 51)) == set()
    assert values.max() == low.max()


def test_maps_beyond_16_megabytes_are_refused_for_that_sample_alone(dataset: Callable, photos: Path, tmp_path: Path):
    photo = cv2.imread(str(photos / "astronaut.jpg"))
    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(photo, (2400, 2400)))
    cv2.imwrite(str(tmp_path / "small.png"), cv2.resize(photo, (64, 64)))
    made = dataset([tmp_path / "large.png", tmp_path / "small.png"])
    maps = ("max", "joints")
    state = run(made, None, storage="memory", maps=maps, dtype="float32", floor=0, resolution="image")
    large, small = made
    assert (state.done, state.failed) == (1, 1)
    assert "16 MB" in large.pose_status
    assert "storage='files'" in large.pose_status
    assert large.pose_max is None
    assert large.pose_confidence is None
    assert small.pose_status == "done"
    assert small.pose_max.map.shape == (64, 64)


# --- what the App shows


def test_colours_skeleton_and_the_maximum_switched_on(photos_run: tuple[fo.Dataset, Path]):
    made, _ = photos_run
    scheme = made.app_config.color_scheme
    assert scheme.color_by == "field"
    colors = {entry["path"]: entry["fieldColor"] for entry in scheme.fields}
    assert set(colors) == {f"pose_{name}" for name in (*MAPS, "keypoints")}
    assert len(set(colors.values())) == 19
    active = made.app_config.active_fields
    assert not active.exclude
    assert {path for path in active.paths if path.startswith("pose_")} >= {"pose_max", "pose_keypoints"}
    assert not {f"pose_{joint}" for joint in COCO.joints} & set(active.paths)
    skeleton = made.skeletons["pose_keypoints"]
    assert skeleton.labels == list(COCO.joints)
    assert [15, 13] in skeleton.edges


def test_choices_that_people_made_stay(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    for name in ("depth", "saliency"):
        made.add_sample_field(name, fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)
    made.app_config.color_scheme = fo.ColorScheme(
        color_by="value",
        fields=[{"path": "depth", "fieldColor": "#123456"}, {"path": "pose_nose", "fieldColor": "#654321"}],
        opacity=0.4,
    )
    made.app_config.active_fields = fo.DatasetAppConfig.default_active_fields(made)
    made.app_config.active_fields.paths = ["depth"]
    made.skeletons = {"hands": fo.KeypointSkeleton(labels=["thumb", "wrist"], edges=[[0, 1]])}
    made.save()

    run(made, tmp_path)

    scheme = made.app_config.color_scheme
    assert (scheme.color_by, scheme.opacity) == ("value", 0.4)
    colors = {entry["path"]: entry["fieldColor"] for entry in scheme.fields}
    assert (colors["depth"], colors["pose_nose"]) == ("#123456", "#654321")
    assert len(colors) == len(scheme.fields)
    assert set(made.app_config.active_fields.paths) == {"depth", "pose_max", "pose_keypoints"}
    assert set(made.skeletons) == {"hands", "pose_keypoints"}


def test_choices_that_people_make_after_a_run_stay_when_it_goes_on(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    run(made.limit(1), tmp_path)
    skeleton = fo.KeypointSkeleton(labels=list(COCO.joints), edges=[[0, 1]])
    made.skeletons["pose_keypoints"] = skeleton
    made.app_config.active_fields.paths = ["pose_keypoints"]
    made.save()

    run(made, tmp_path)
    run(made, tmp_path, floor=0.1, existing="replace")
    assert made.app_config.active_fields.paths == ["pose_keypoints"]
    assert made.skeletons["pose_keypoints"].edges == [[0, 1]]

    run(made, tmp_path, maps=("nose",), floor=0.1, existing="append")
    colors = {entry["path"] for entry in made.app_config.color_scheme.fields}
    assert "pose_nose" in colors, "what is new is given its looks"
    assert made.app_config.active_fields.paths == ["pose_keypoints"]


# --- the record


def test_the_record_says_how_the_maps_were_made(photos_run: tuple[fo.Dataset, Path]):
    made, maps_dir = photos_run
    record = runs.read_record(made, "pose")
    entry = checkpoints.find_model("higherhrnet-lite-coco")
    assert record.dataset_id == str(made._doc.id)
    assert (maps_dir / record.run_id).is_dir()
    assert set(record.fields) == {name for name in made.get_field_schema() if name.startswith("pose_")}
    assert record.joints == COCO.joints
    assert record.settings["sha256"] == entry.sha256
    expected = {"model": entry.name, "input_size": 128, "floor": 0.02, "flip": False, "storage": "files"}
    assert {name: record.settings[name] for name in expected} == expected
    assert record.settings["maps"] == list(MAPS)
    assert record.versions["fiftyone"] == fo.__version__
    assert not record.adopted
    assert runs.counts(made, "pose") == (6, 0)


# --- before anything is written


def assert_untouched(made: fo.Dataset, *fields: str) -> None:
    made.reload()
    assert [name for name in made.get_field_schema() if name.startswith("pose")] == list(fields)
    assert made.list_runs() == []
    assert made.app_config.color_scheme is None


def test_a_field_of_another_type_is_refused_before_anything_is_written(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    made.add_sample_field("pose_left_wrist", fo.StringField)
    with pytest.raises(ValueError, match=r"'pose_left_wrist' of type StringField.*another label field"):
        run(made, tmp_path / "maps", maps=("max", "joints"))
    assert_untouched(made, "pose_left_wrist")
    assert not (tmp_path / "maps").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_written(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset(photos)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is a file\. Choose another folder"):
        run(made, tmp_path / "file" / "maps")
    assert_untouched(made)


@pytest.mark.parametrize("label_field", ["1pose", "my pose", "pose.max", "_pose", ""])
def test_label_fields_that_cannot_be_field_names_are_refused(label_field: str):
    with pytest.raises(ValueError, match="cannot be a label field"):
        pipeline.Settings(label_field=label_field)


# --- while it runs


def test_a_full_disk_stops_the_run_and_the_rest_follows_later(dataset: Callable, photos: Path, tmp_path: Path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare -rm` for a small disk of its own")
    made = dataset([photos / name for name in ("astronaut.jpg", "camera.png")] * 20)
    script = (
        'mount -t tmpfs -o size=1600k tmpfs "$0" && "$@"; code=$?; '
        'find "$0" -name "*.png" | wc -l; du -s "$0"/*/.partial; exit $code'
    )
    code = (
        "import sys, fiftyone as fo; from inference import pipeline\n"
        "settings = pipeline.Settings(maps_dir=sys.argv[2], input_size=64)\n"
        "pipeline.run(fo.load_dataset(sys.argv[1]), settings, progress=False)"
    )
    folder = tmp_path / "small"
    folder.mkdir()
    ended = run_in_process(code, made.name, folder, before=("unshare", "-rm", "sh", "-c", script, folder))

    assert ended.returncode == 1
    assert "Make room and run again: finished samples are kept" in ended.stderr
    made.reload()
    statuses = made.count_values("pose_status")
    assert set(statuses) == {"done", None}
    assert int(ended.stdout.split()[0]) >= 18 * statuses["done"] > 0

    # with room again, but without the files of the small disk, which ended with the process
    assert run(made, folder, maps=("max", "joints")).skipped == statuses["done"]
    assert made.count_values("pose_status") == {"done": 40}


def test_a_folder_that_goes_away_stops_the_run_and_the_rest_follows_later(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 40)
    maps_dir = tmp_path / "disk" / "maps"
    settings = pipeline.Settings(maps=("max",), maps_dir=str(maps_dir), input_size=64, batch_size=1)
    steps = pipeline.process(made, settings)
    while next(steps).done < 3:
        pass
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(OSError, match=r"no longer be written to .*Make the folder writable and run again"):
        for _ in steps:
            pass
    assert set(made.count_values("pose_status")) == {"done", None}, "no sample is blamed for it"

    (tmp_path / "unmounted").rename(tmp_path / "disk")
    assert run(made, maps_dir).failed == 0
    assert made.count_values("pose_status") == {"done": 40}
    assert files_in(maps_dir) == {Path(path) for path in made.values("pose_max.map_path")}


def test_an_interrupted_run_leaves_whole_samples_and_the_rest_follows_later(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"] * 40)
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path), input_size=64, batch_size=1)
    steps = pipeline.process(made, settings)
    while next(steps).done < 3:
        pass
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    done, failed = runs.counts(made, "pose")
    assert 3 <= done < 40
    assert failed == 0
    assert files_in(tmp_path) == {Path(path) for path in made.values("pose_max.map_path") if path}

    assert run(made, tmp_path).skipped == done
    assert made.count_values("pose_status") == {"done": 40}


def test_the_database_hears_of_maps_when_their_files_are_whole(
    dataset: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, seen = pipeline.bulk_write, []

    def look_first(made: fo.Dataset, updates: list) -> None:
        for update in updates:
            values = update._doc["$set"].values()
            paths = [value["map_path"] for value in values if isinstance(value, dict) and value.get("map_path")]
            assert all(read(path) is not None for path in paths)
            seen.append(len(paths))
        write(made, updates)

    monkeypatch.setattr(pipeline, "bulk_write", look_first)
    assert run(dataset(photos), tmp_path, maps=("max", "joints")).done == 6
    assert [count for count in seen if count] == [18] * 6


@pytest.mark.parametrize("name", ["/absolute", "a/b", "back\\slash"])
def test_maps_stay_below_their_folder_whatever_a_dataset_is_called(name: str):
    made = fo.Dataset(f"{name}-{uuid.uuid4().hex[:8]}")
    try:
        folder = Path(runs.default_maps_dir(made))
        assert folder.parent == Path(fo.config.default_dataset_dir) / "pose-heatmaps"
    finally:
        made.delete()


def test_the_size_that_a_run_will_have_is_estimated(photos_run: tuple[fo.Dataset, Path]):
    made, maps_dir = photos_run
    settings = pipeline.Settings(maps_dir=str(maps_dir), input_size=128)
    sizes = [read(sample.filepath).shape[1::-1] for sample in made]
    real = sum(path.stat().st_blocks * 512 for path in files_in(maps_dir)) / len(made)
    assert 0.5 < estimates.bytes_per_image(settings, len(MAPS), sizes) / real < 2
    assert 0 < estimates.seconds_per_image(settings) < 60


def test_samples_that_a_run_changed_have_a_new_modification_time(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    before = made.values("last_modified_at")
    run(made.limit(2), tmp_path)
    assert [new > old for new, old in zip(made.values("last_modified_at"), before, strict=True)] == [True] * 2 + [
        False
    ] * 4


def test_memory_does_not_grow_with_the_dataset(dataset: Callable, tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "tiny.png"), image)
    made = dataset([tmp_path / "tiny.png"] * 600)
    settings = pipeline.Settings(maps_dir=str(tmp_path / "maps"), input_size=128)  # 400 samples have 39 MB of maps
    resident = {}
    for state in pipeline.process(made, settings):
        if state.done >= 200 * (len(resident) + 1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[state.done] = pages * os.sysconf("SC_PAGESIZE") / 2**20
    assert len(resident) == 3
    first, _, last = resident.values()
    assert last - first < 10, f"megabytes after so many images: {resident}"


# --- again


def test_a_second_run_skips_what_is_done_and_tries_again_what_failed(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "camera.png", photos / "rocket.jpg", tmp_path / "later.jpg"])
    first = run(made, tmp_path / "maps")
    assert (first.done, first.failed, first.skipped) == (2, 1, 0)
    times = {path: path.stat().st_mtime_ns for path in files_in(tmp_path / "maps")}

    (tmp_path / "later.jpg").write_bytes((photos / "chelsea.jpg").read_bytes())
    second = run(made, tmp_path / "maps")
    assert (second.done, second.failed, second.skipped) == (1, 0, 2)
    assert made.values("pose_status") == ["done"] * 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(files_in(tmp_path / "maps")) == 3

    third = run(made, tmp_path / "maps", skip_existing=False)
    assert (third.done, third.skipped) == (3, 0)
    assert len(files_in(tmp_path / "maps")) == 3
    assert all(path.stat().st_mtime_ns > time for path, time in times.items())


def test_other_settings_are_refused_by_name(photos_run: tuple[fo.Dataset, Path]):
    made, maps_dir = photos_run
    before = files_in(maps_dir)
    with pytest.raises(ValueError, match=r"floor \(was 0.02, now 0.1\); input_size \(was 128, now 192\).*existing="):
        run(made, maps_dir, maps=("max", "joints"), input_size=192, floor=0.1)
    with pytest.raises(ValueError, match="'append'"):
        run(made, maps_dir, existing="overwrite")
    assert files_in(maps_dir) == before
    assert runs.counts(made, "pose") == (6, 0)


def test_bfloat16_is_used_only_when_asked_for_and_only_where_the_device_computes_with_it(
    dataset: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = dataset([photos / "astronaut.jpg"])
    monkeypatch.setattr(predictor, "best_precision", lambda _: torch.bfloat16)
    run(made, tmp_path)
    exact = read(made.first().pose_max.map_path)
    with pytest.raises(ValueError, match=r"precision \(was 'float32', now 'bfloat16'\)"):
        run(made, tmp_path, precision="bfloat16")
    run(made, tmp_path, precision="bfloat16", existing="replace")
    fast = read(made.first().pose_max.map_path)
    assert (exact != fast).any()
    assert abs(exact.astype(float) - fast).mean() < 2
    record = runs.read_record(made, "pose")
    assert record.settings["precision"] == "bfloat16"
    older = {name: value for name, value in record.settings.items() if name != "precision"}
    runs.save_record(made, dataclasses.replace(record, settings=older))
    for precision in ("float32", "bfloat16"):  # of an earlier version it is not known, so any may go on
        assert run(made, tmp_path, precision=precision).skipped == 1
        runs.save_record(made, dataclasses.replace(record, settings=older))

    monkeypatch.setattr(predictor, "best_precision", lambda _: torch.float32)
    with pytest.raises(
        ValueError, match="'cpu' of this machine is not faster with bfloat16: choose the precision float32"
    ):
        run(made, tmp_path, precision="bfloat16", skip_existing=False)
    assert made.values("pose_status") == ["done"]


def test_a_sample_is_not_done_while_its_maps_are_made_again(
    dataset: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "photos").mkdir()
    for name in ("rocket.jpg", "coffee.png"):
        shutil.copy(photos / name, tmp_path / "photos" / name)
    made = dataset(tmp_path / "photos")
    run(made, tmp_path / "maps")
    files = files_in(tmp_path / "maps")
    (tmp_path / "photos" / "rocket.jpg").write_bytes(b"")

    def database_is_away(*_: object) -> None:
        raise ConnectionError("away")

    with monkeypatch.context() as context:
        context.setattr(pipeline, "bulk_write", database_is_away)
        with pytest.raises(ConnectionError, match="away"):
            run(made, tmp_path / "maps", skip_existing=False)
    made.reload()
    assert made.values("pose_status") == [None, None]
    assert files_in(tmp_path / "maps") == files

    state = run(made, tmp_path / "maps")
    assert (state.done, state.failed) == (1, 1)
    assert files_in(tmp_path / "maps") == {Path(path) for path in made.values("pose_max.map_path") if path}


@pytest.mark.parametrize("storage", ["files", "memory"])
@pytest.mark.parametrize("mounted", [False, True])
def test_photos_that_went_away_do_not_cost_the_maps_they_have(
    dataset: Callable, photos: Path, tmp_path: Path, storage: str, mounted: bool
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("rocket.jpg", "coffee.png"):
        shutil.copy(photos / name, folder / name)
    made = dataset(folder)
    run(made, tmp_path / "maps", storage=storage)
    before = made.values("pose_max.map_path" if storage == "files" else "pose_max.map")
    folder.rename(tmp_path / "elsewhere")
    if mounted:
        folder.mkdir()

    for options in ({"skip_existing": False}, {"existing": "replace", "input_size": 128}):
        with pytest.raises(OSError, match=r"photos cannot be read \((No such file or directory|the folder is empty)\)"):
            run(made, tmp_path / "maps", storage=storage, **options)
        made.reload()
        after = made.values("pose_max.map_path" if storage == "files" else "pose_max.map")
        np.testing.assert_array_equal(after, before)
        assert storage == "memory" or all(Path(path).is_file() for path in before)
    assert run(made, tmp_path / "maps", label_field="first").failed == 2  # which has no maps to lose

    if mounted:
        folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    assert run(made, tmp_path / "maps", storage=storage, input_size=128).done == 2
    assert storage == "memory" or not any(Path(path).is_file() for path in before)


def test_append_leaves_what_is_done_and_does_the_rest_with_the_new_settings(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "astronaut.jpg"] * 2)
    run(made.limit(1), tmp_path)
    assert made.values("pose_status") == ["done", None], "a run on a view touches the view's samples only"
    run(made, tmp_path, input_size=128, existing="append")
    one, two = (read(path).shape for path in made.values("pose_max.map_path"))
    assert (one, two) == ((32, 32), (64, 64))
    assert len(files_in(tmp_path)) == 2


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_maps_of_before_an_append_elsewhere_are_deleted_with_the_run(
    storage: str, dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "astronaut.jpg"] * 2)
    run(made.limit(1), tmp_path / "one")
    elsewhere = tmp_path / "two" if storage == "files" else None
    run(made, elsewhere, storage=storage, existing="append")
    assert len(files_in(tmp_path / "one")) == 1, "the first sample still refers to it"
    record = runs.read_record(made, "pose")
    extent = removal.extent(made, record)
    assert (extent.samples, extent.files) == (2, 2 if storage == "files" else 1)
    *_, deleted = removal.delete(made, "pose")
    assert deleted == extent.files
    assert not files_in(tmp_path)


def test_a_run_with_other_joints_cannot_be_continued(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "astronaut.jpg"])
    run(made, tmp_path)
    joints = {"name": "other", "joints": [f"joint_{k}" for k in range(17)], "flip": [], "limbs": []}
    checkpoint = tmp_path / "other.safetensors"
    checkpoint.write_bytes((REPOSITORY / "assets" / f"{checkpoints.DEFAULT_MODEL}.safetensors").read_bytes())
    checkpoint.with_suffix(".json").write_text(json.dumps(joints))
    for existing in (None, "append"):
        with pytest.raises(ValueError, match="a run with other joints than those of 'custom'"):
            run(made, tmp_path, model="custom", checkpoint=str(checkpoint), existing=existing)
    run(made, tmp_path, model="custom", checkpoint=str(checkpoint), existing="replace")
    assert runs.read_record(made, "pose").flip == tuple(range(17))


def test_people_of_other_joints_go_when_a_run_is_replaced(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "astronaut.jpg"] * 2)
    run(made, tmp_path, input_size=128)
    maps = made.values("pose_max.map_path")
    joints = {"name": "other", "joints": [f"joint_{k}" for k in range(17)], "flip": [], "limbs": []}
    checkpoint = tmp_path / "other.safetensors"
    checkpoint.write_bytes((REPOSITORY / "assets" / f"{checkpoints.DEFAULT_MODEL}.safetensors").read_bytes())
    checkpoint.with_suffix(".json").write_text(json.dumps(joints))
    assert all(made.values("pose_num_people"))
    run(made.limit(1), tmp_path, model="custom", checkpoint=str(checkpoint), input_size=128, existing="replace")
    assert made.skeletons["pose_keypoints"].labels == joints["joints"]
    one, other = made.values("pose_keypoints.keypoints")
    assert one
    assert other is None, "its points would be drawn with the new skeleton"
    assert made.values("pose_num_people") == [len(one), None]
    assert made.values("pose_max.map_path")[1] == maps[1]
    assert made.values("pose_status") == ["done", None]


@pytest.mark.parametrize("change", ["delete", "rename"])
def test_a_field_that_somebody_took_away_is_made_again(change: str, dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 2)
    run(made, tmp_path, maps=("max", "nose"))
    if change == "delete":
        made.delete_sample_field("pose_nose")
    else:
        made.rename_sample_field("pose_nose", "mine")
    assert run(made.match(fo.ViewField("pose_status") == "done"), tmp_path, maps=("max", "nose")).done == 2
    assert made.count("pose_nose") == made.count("pose_max") == 2
    assert run(made, tmp_path, maps=("max", "nose")).skipped == 2

    made.delete_sample_field("pose_status")
    assert run(made, tmp_path, maps=("max", "nose")).done == 2

    made.delete_sample_field("pose_nose")
    assert run(made, tmp_path, maps=("max", "nose"), floor=0.1, existing="append").skipped == 2


def test_replace_on_a_view_by_what_is_replaced_is_for_the_samples_that_it_had(
    dataset: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = dataset([photos / "rocket.jpg"] * 3)
    run(made.limit(2), tmp_path)
    todo = made.match(fo.ViewField("pose_status") != "done")
    assert run(todo, tmp_path, floor=0.1, existing="replace").total == 1
    assert made.values("pose_status") == [None, None, "done"]
    done = made.match(fo.ViewField("pose_status") == "done")
    assert run(done, tmp_path, floor=0.2, existing="replace").done == 1
    assert made.values("pose_status") == [None, None, "done"]

    monkeypatch.setattr(shards, "MAX_IDS", 1)
    with pytest.raises(ValueError, match=r"more than 1 samples.*match_tags\('todo'\)"):
        run(todo, tmp_path, existing="replace")
    assert made.values("pose_status") == [None, None, "done"]
    assert run(todo, tmp_path, floor=0.2).done == 2, "nothing is replaced, so nothing has to be written down"


def test_replace_makes_all_maps_anew_and_deletes_the_old_ones(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "astronaut.jpg", photos / "rocket.jpg"])
    run(made, tmp_path, maps=("max", "nose"))
    old = tmp_path / runs.read_record(made, "pose").run_id
    (old / "notes.txt").write_text("not the run's")

    run(made, tmp_path, input_size=128, existing="replace")

    record = runs.read_record(made, "pose")
    assert not made.has_field("pose_nose")
    assert "pose_nose" not in record.fields
    assert record.previous == ()
    assert files_in(tmp_path) == {*map(Path, made.values("pose_max.map_path")), old / "notes.txt"}
    assert [read(path).shape[0] for path in made.values("pose_max.map_path")] == [64, 64]
    assert run(made, tmp_path, input_size=128, existing="replace").skipped == 2, "the same settings: nothing to replace"


def test_replace_on_a_view_keeps_the_other_samples_maps(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "astronaut.jpg"] * 2)
    run(made, tmp_path)
    kept = made.values("pose_max.map_path")[1]
    run(made.limit(1), tmp_path, input_size=128, existing="replace")
    assert made.values("pose_max.map_path")[1] == kept
    assert read(kept).shape == (32, 32)
    assert made.values("pose_status") == ["done", None]
    run(made, tmp_path, input_size=128)
    assert [read(path).shape for path in made.values("pose_max.map_path")] == [(64, 64)] * 2
    assert len(files_in(tmp_path)) == 2


def test_a_replacement_that_is_killed_leaves_every_sample_with_maps_and_is_finished_later(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "astronaut.jpg"] * 40)
    run(made, tmp_path, maps=("max", "nose"))
    old = runs.read_record(made, "pose").run_id
    code = (
        "import os, signal, sys, fiftyone as fo; from inference import pipeline\n"
        "made = fo.load_dataset(sys.argv[1])\n"
        "settings = pipeline.Settings(\n"
        "    maps_dir=sys.argv[2], input_size=64, maps=('max', 'nose'), floor=0.1, batch_size=1\n"
        ")\n"
        "for state in pipeline.process(made, settings, existing='replace'):\n"
        "    if state.done >= 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_in_process(code, made.name, tmp_path).returncode == -signal.SIGKILL

    made.reload()
    assert 0 < runs.counts(made, "pose")[0] < 40
    for name in ("pose_max", "pose_nose"):
        assert all(Path(path).is_file() for path in made.values(f"{name}.map_path"))
    for one, other in zip(made.values("pose_max.map_path"), made.values("pose_nose.map_path"), strict=True):
        assert Path(one).parent == Path(other).parent, "the maps of a sample are of one run"
    assert (tmp_path / old).is_dir()

    state = run(made, tmp_path, maps=("max", "nose"), floor=0.1)
    assert state.skipped > 0
    assert made.count_values("pose_status") == {"done": 40}
    referred = {Path(path) for name in ("max", "nose") for path in made.values(f"pose_{name}.map_path")}
    assert files_in(tmp_path) == referred
    assert not (tmp_path / old).exists()


def test_a_clone_is_run_on_only_when_asked_to_replace_and_the_originals_maps_stay(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "astronaut.jpg"])
    run(made, tmp_path)
    files = files_in(tmp_path)
    clone = made.clone(f"{made.name}-clone", persistent=True)
    try:
        with pytest.raises(ValueError, match="a clone of"):
            run(clone, tmp_path)
        run(clone, tmp_path, existing="replace")
        assert clone.first().pose_max.map_path != made.first().pose_max.map_path
        assert files < files_in(tmp_path)
        assert runs.read_record(clone, "pose").dataset_id != runs.read_record(made, "pose").dataset_id
    finally:
        clone.delete()


def test_fields_that_came_otherwise_are_adopted_without_those_of_other_runs(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset([photos / "rocket.jpg"])
    run(made, tmp_path, label_field="pose_b")
    with pytest.raises(ValueError, match=r"no heatmap field 'pose_…' without a record.*pose_b_max"):
        runs.adopt(made, "pose")
    for name in ("pose_nose", "pose_left_wrist"):
        made.add_sample_field(name, fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)

    record = runs.adopt(made, "pose", model="mine")

    assert record.adopted
    assert set(record.fields) == {"pose_nose", "pose_left_wrist"}
    assert record.joints == COCO.joints
    assert runs.read_record(made, "pose") == record
    colors = {entry["path"]: entry["fieldColor"] for entry in made.app_config.color_scheme.fields}
    assert colors["pose_nose"] == COCO.colors["nose"]
    assert "pose_b_max" in runs.read_record(made, "pose_b").fields


def test_a_limited_view_stays_what_it_was_when_the_run_began(
    dataset: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    """A view of the first samples without maps shows others as soon as these have theirs."""
    monkeypatch.setattr(views, "PAGE", 2)
    made = dataset([photos / "rocket.jpg"] * 12)
    made.add_sample_field("pose_status", fo.StringField)
    todo = made.match(fo.ViewField("pose_status") != "done")
    for limited, count in ((todo.limit(5), 5), (todo.take(4), 4), (todo, 3)):
        done = []
        for sample_id, filepath in views.pages(limited):
            assert filepath == str(photos / "rocket.jpg")
            done.append(sample_id)
            made.select(done).set_field("pose_status", "done").save("pose_status")
        assert len(set(done)) == len(done) == count
