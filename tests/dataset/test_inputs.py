"""Whatever lies in a folder of photos: each image gets its maps or a sentence why not, and the run goes on."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from inference import images, pipeline
from inference.joints import COCO


def run(view: fo.core.collections.SampleCollection, maps_dir: Path, **settings: object) -> pipeline.Progress:
    chosen = pipeline.Settings(**{"maps_dir": str(maps_dir), "input_size": 64, **settings})
    return pipeline.run(view, chosen, progress=False)


def by_name(dataset: fo.Dataset, field: str) -> dict[str, object]:
    return dict(zip(map(relative_name, dataset.values("filepath")), dataset.values(field), strict=True))


def relative_name(filepath: str) -> str:
    path = Path(filepath)
    return f"{path.parent.name}/{path.name}" if path.parent.name in ("first", "second") else path.name


def shape(path: object) -> tuple[int, ...]:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape


@pytest.fixture
def strange_files(photos: Path, tmp_path: Path) -> Path:
    """Every kind of file that people have among their photos."""
    folder = tmp_path / "strange"
    folder.mkdir()
    photo = Image.open(photos / "astronaut.jpg").resize((160, 160))
    photo.save(folder / "plain.jpg")
    jpeg = (folder / "plain.jpg").read_bytes()

    (folder / "empty.jpg").touch()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.jpg").write_text("This is not a photo.\n" * 50)
    (folder / "folder.jpg").mkdir()
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "rgba.png")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(90)])
    photo.save(folder / "photo.webp")
    photo.save(folder / "photo.bmp")
    photo.save(folder / "photo.tiff")
    cv2.imwrite(str(folder / "16bit.png"), np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    Image.new("RGB", (1, 1), "red").save(folder / "1x1.png")
    Image.new("RGB", (1, 5000), "blue").save(folder / "1x5000.png")
    Image.new("L", (12000, 9000), 90).save(folder / "huge.png")
    for name in ("two words.jpg", "größe 写真.jpg", "100%.jpg", "no#1.jpg", "a?b&c.jpg", "%41.jpg"):
        photo.save(folder / name)
    for name in ("first", "second"):
        (folder / name).mkdir()
        photo.rotate(0 if name == "first" else 180).save(folder / name / "same.jpg")
    return folder


PROBLEMS = {
    "missing.jpg": "There is no file .*missing.jpg",
    "folder.jpg": "folder.jpg cannot be read: Is a directory",
    "empty.jpg": "empty.jpg is empty",
    "truncated.jpg": "truncated.jpg is a JPEG that was cut off",
    "text.jpg": "text.jpg is not an image that OpenCV can decode",
}


def test_one_run_over_every_kind_of_file(dataset: Callable[..., fo.Dataset], strange_files: Path, tmp_path: Path):
    paths = [strange_files / name for name in ("missing.jpg", "folder.jpg")]
    made = dataset([*(path for path in strange_files.rglob("*") if path.is_file()), *paths])
    assert len(made) == 26

    state = run(made, tmp_path / "maps")

    statuses = by_name(made, "pose_status")
    assert {name for name, status in statuses.items() if status != "done"} == set(PROBLEMS)
    for name, problem in PROBLEMS.items():
        assert re.search(problem, str(statuses[name]))
        assert str(statuses[name]).endswith((".", "again.", "file?"))
    assert (state.done, state.failed, state.total) == (21, 5, 26)
    assert {Path(path).name for path, _ in state.failures} == set(PROBLEMS)
    assert [Path(path).name for path, _ in state.warnings] == ["1x5000.png"]

    columns = [made.values(f"pose_{name}.map_path") for name in ("max", *COCO.joints)]
    for status, *maps in zip(made.values("pose_status"), *columns, strict=True):
        assert all(Path(path).is_file() for path in maps) if status == "done" else not any(maps)
    paths = by_name(made, "pose_max.map_path")
    assert shape(paths["huge.png"]) == (32, 43)
    assert shape(paths["1x1.png"]) == (32, 32)
    assert shape(paths["1x5000.png"])[1] == 1
    assert paths["first/same.jpg"] != paths["second/same.jpg"]
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 21 * 18


def test_other_encodings_of_a_photo_get_the_same_map(dataset: Callable, strange_files: Path, tmp_path: Path):
    names = ("plain.jpg", "rgba.png", "palette.png", "photo.webp", "photo.bmp", "animated.gif", "cmyk.jpg")
    colour = dataset([strange_files / name for name in names])
    grey = dataset([strange_files / name for name in ("grey.jpg", "16bit.png")])
    for made in (colour, grey):
        run(made, tmp_path / "maps", storage="memory", dtype="float32", floor=0, input_size=128)
        first, *others = made.values("pose_max.map")
        assert first.max() > 0.1, "the photo shows a person"
        for name, other in zip(made.values("filepath")[1:], others, strict=True):
            assert np.corrcoef(first.ravel(), other.ravel())[0, 1] > 0.95, name


def test_maps_of_turned_photos_follow_what_the_app_shows(dataset: Callable, photos: Path, tmp_path: Path):
    """Photos that are stored in each of the 8 EXIF orientations, and look the same."""
    upright = Image.open(photos / "astronaut.jpg").crop((100, 0, 400, 420))
    transpose = Image.Transpose
    stored = {
        1: upright,
        2: upright.transpose(transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(transpose.ROTATE_180),
        4: upright.transpose(transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(transpose.TRANSPOSE),
        6: upright.transpose(transpose.ROTATE_90),
        7: upright.transpose(transpose.TRANSVERSE),
        8: upright.transpose(transpose.ROTATE_270),
    }
    folder = tmp_path / "turned"
    folder.mkdir()
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"{orientation}.jpg", quality=100, subsampling=0, exif=exif)
    made = dataset(folder)

    run(made, tmp_path / "maps", input_size=128)

    maps = [cv2.imread(path, cv2.IMREAD_UNCHANGED).astype(float) for path in made.values("pose_max.map_path")]
    assert maps[0].shape == (90, 64)
    assert maps[0].max() > 50
    for orientation, other in enumerate(maps, 1):
        assert other.shape == maps[0].shape, orientation
        assert np.corrcoef(maps[0].ravel(), other.ravel())[0, 1] > 0.99, orientation


def test_what_is_behind_a_jpeg_does_not_matter_and_what_is_missing_does(photos: Path):
    """Phones put a video behind the image, and a thumbnail with an end of its own before it."""
    rng = np.random.default_rng(0)
    whole = (photos / "astronaut.jpg").read_bytes()
    video = rng.integers(0, 256, 200_000, dtype=np.uint8).tobytes() + b"\xff\xda" + bytes(50)
    assert not images.is_cut_off(whole + video)
    thumbnail = b"\xff\xe1" + (len(whole[:3000]) + 4).to_bytes(2, "big") + whole[:3000] + b"\xff\xd9"
    with_thumbnail = whole[:2] + thumbnail + whole[2:]
    assert not images.is_cut_off(with_thumbnail)
    assert not images.is_cut_off(whole[:2] + b"\xff" + whole[2:]), "bytes that fill up"
    for share in (0.1, 0.5, 0.9):
        assert images.is_cut_off(with_thumbnail[: 3100 + int(share * len(whole))])
    for length in (2, 3, 10, 100):
        assert images.is_cut_off(whole[:length])


# --- views that a run cannot work on


def test_a_video_dataset_is_refused_with_what_to_do(dataset: Callable):
    with pytest.raises(ValueError, match=r"video dataset.*to_frames"):
        pipeline.run(dataset(["/photos/clip.mp4"]))


def test_the_frames_of_a_video_dataset_get_maps_as_a_dataset_of_their_own(
    dataset: Callable, photos: Path, tmp_path: Path
):
    videos = dataset(["/videos/walk.mp4"])
    video = videos.first()
    for number, name in enumerate(("astronaut.jpg", "camera.png", "rocket.jpg"), 1):
        video.frames[number] = fo.Frame(filepath=str(photos / name))  # as `sample_frames=True` would have written them
    video.save()
    frames = videos.to_frames().clone(f"{videos.name}-frames", persistent=True)
    try:
        run(frames, tmp_path / "maps")
        assert frames.values("pose_status") == ["done"] * 3
        assert frames.values("frame_number") == [1, 2, 3]
        assert set(frames.values("sample_id")) == {video.id}
    finally:
        frames.delete()


def test_a_grouped_dataset_is_refused_and_its_slice_works(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset()
    made.add_group_field("group", default="left")
    group = fo.Group()
    made.add_samples(
        [
            fo.Sample(filepath=str(photos / name), group=group.element(side))
            for name, side in (("astronaut.jpg", "left"), ("camera.png", "right"))
        ]
    )
    with pytest.raises(ValueError, match=r"grouped dataset.*select_group_slices\('left'\)"):
        pipeline.run(made)

    run(made.select_group_slices("left"), tmp_path / "maps")
    assert made.select_group_slices(["left", "right"]).values("pose_status") == ["done", None]


def test_a_view_of_patches_is_refused_with_what_to_do(dataset: Callable, photos: Path):
    made = dataset([photos / "astronaut.jpg"])
    sample = made.first()
    sample["people"] = fo.Detections(detections=[fo.Detection(label="person", bounding_box=[0, 0, 0.5, 0.5])])
    sample.save()
    with pytest.raises(ValueError, match=r"patches.*clone\(\)"):
        pipeline.run(made.to_patches("people"))


def test_an_empty_view_is_refused_before_anything_is_written(dataset: Callable, photos: Path, tmp_path: Path):
    for empty in (dataset(), dataset(photos).limit(0)):
        with pytest.raises(ValueError, match="no sample"):
            run(empty, tmp_path / "maps")
        assert not empty._dataset.has_field("pose_max")
        assert empty._dataset.list_runs() == []
    assert not (tmp_path / "maps").exists()
