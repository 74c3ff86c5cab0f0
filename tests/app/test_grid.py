"""What the App asks its server for, and what it paints, on datasets with pose heatmaps."""

import shutil
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from benchmarks.browser import App
from inference import pipeline


def run(dataset: fo.Dataset, maps_dir: Path) -> None:
    pipeline.run(dataset.view(), pipeline.Settings(label_field="pose", maps_dir=str(maps_dir)))


def heatmap_fields(dataset: fo.Dataset) -> list[str]:
    return list(dataset.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap))


def decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(float)


@pytest.fixture
def twenty(tmp_path: Path, photos: Path) -> list[Path]:
    """Twenty photos of a person: a full first page of the grid."""
    paths = [tmp_path / "photos" / f"{index:02}.jpg" for index in range(20)]
    paths[0].parent.mkdir()
    for path in paths:
        shutil.copy(photos / "astronaut.jpg", path)
    return paths


def test_all_fields_add_at_most_10_kilobytes_a_sample_and_no_map_is_fetched_until_it_is_switched_on(
    dataset, twenty: list[Path], tmp_path: Path, app: App
):
    plain, posed = dataset(twenty), dataset(twenty)
    maps_dir = tmp_path / "maps"
    run(posed, maps_dir)
    posed.reload()
    fields = heatmap_fields(posed)
    assert len(fields) == 18
    assert posed.count("pose_keypoints.keypoints") >= 20
    posed.app_config.active_fields = None  # as the App opens datasets whose active fields nobody chose
    posed.save()

    app.open(plain.name)
    count, plain_bytes = app.grid_page()
    assert count == 20

    app.responses.clear()
    app.open(posed.name)
    count, posed_bytes = app.grid_page()
    assert count == 20
    assert 0 < posed_bytes - plain_bytes <= 20 * 10_000
    app.until(lambda: not app.is_on("pose_max"))
    assert app.media(maps_dir) == []

    before = app.painted()
    app.switch("pose_max", on=True)
    app.until(lambda: sorted(app.media(maps_dir)) == sorted(posed.values("pose_max.map_path")))
    change = np.abs(decode(app.painted()) - decode(before)).max(axis=2)
    assert 0.005 < (change > 10).mean() < 0.6, "the map is painted on a part of the photo"


def test_maps_lie_over_a_photo_as_the_app_turns_it(dataset, photos: Path, tmp_path: Path, app: App):
    """A photo stored on its side, with an EXIF orientation, looks as its upright twin does: photo and map."""
    upright = Image.open(photos / "astronaut.jpg").crop((60, 0, 400, 512))
    folder = tmp_path / "photos"
    folder.mkdir()
    same = {"quality": 100, "subsampling": 0}  # the network is to see the same photo twice
    upright.save(folder / "1-upright.jpg", **same)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "2-turned.jpg", **same, exif=exif)
    both = dataset(folder)
    run(both, tmp_path / "maps")

    shapes = [cv2.imread(path, cv2.IMREAD_UNCHANGED).shape for path in both.values("pose_max.map_path")]
    assert shapes[0] == shapes[1]
    assert shapes[0][1] / shapes[0][0] == pytest.approx(340 / 512, abs=0.02)

    app.open(both.name)
    shown = {}
    for index, name in enumerate(["upright", "turned"]):
        for state in ["on", "off"]:
            app.switch("pose_max", on=state == "on")
            shown[name, state] = decode(app.painted(index=index))
    # the App gives the turned photo's tile the shape of the stored pixels, and shows the photo in its middle
    height, width = shown["upright", "on"].shape[:2]
    for state in ["on", "off"]:
        margin = (shown["turned", state].shape[1] - width) // 2
        shown["turned", state] = shown["turned", state][:height, margin : margin + width]
    painted = np.abs(shown["upright", "on"] - shown["upright", "off"]).max(axis=2) > 10
    assert painted.mean() > 0.005
    twin = np.abs(shown["turned", "on"] - shown["turned", "off"]).max(axis=2) > 10
    # where the photo begins in its tile is known to a pixel only
    shifted = [np.roll(twin, pixels, axis=1) for pixels in (-1, 0, 1)]
    assert max((painted & other).sum() / (painted | other).sum() for other in shifted) > 0.8


def test_people_with_absent_joints_load(dataset, photos: Path, app: App):
    """NaN points and confidences, as a person has whose feet are outside the photo."""
    nan = float("nan")
    made = dataset([photos / "astronaut.jpg"])
    sample = made.first()
    person = fo.Keypoint(label="person", points=[[0.45, 0.2], [nan, nan], [0.6, 0.3]], confidence=[0.9, nan, 0.7])
    person["score"] = 0.8
    sample["pose_keypoints"] = fo.Keypoints(keypoints=[person])
    sample.save()
    made.skeletons = {"pose_keypoints": fo.KeypointSkeleton(labels=["nose", "eye", "ear"], edges=[[0, 1], [0, 2]])}
    made.save()

    app.open(made.name)
    app.until(lambda: app.is_on("pose_keypoints"))
    painted = decode(app.painted())
    app.switch("pose_keypoints", on=False)
    bare = decode(app.painted())
    assert (np.abs(painted - bare).max(axis=2) > 10).any(), "the joints that are there are painted"
    app.page.locator('[data-cy="looker"]').first.click()
    app.page.wait_for_selector('[data-cy="modal"]')
    app.settle()
    assert app.page.get_by_text("Something went wrong").count() == 0
