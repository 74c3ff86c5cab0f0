"""Comparing a run with itself in the mirror, and searching by pose, from the form to the App's own panels."""

from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import pytest
from playwright.sync_api import expect

from benchmarks.browser import App
from inference import pipeline


@pytest.fixture
def posed(dataset, photos: Path, tmp_path: Path) -> fo.Dataset:
    """A person, another one, a cat, and the first person smaller and mirrored."""
    astronaut = cv2.imread(str(photos / "astronaut.jpg"))
    folder = tmp_path / "photos"
    folder.mkdir()
    images = {
        "1": astronaut,
        "2": cv2.imread(str(photos / "camera.png")),
        "3": cv2.imread(str(photos / "chelsea.jpg")),
        "4": cv2.resize(astronaut, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
        "5": astronaut[:, ::-1],
    }
    for name, image in images.items():
        assert cv2.imwrite(str(folder / f"{name}.jpg"), image)
    made = dataset(folder)
    pipeline.run(made, pipeline.Settings("pose", maps_dir=str(tmp_path / "maps")), progress=False)
    return made


def test_a_run_is_compared_with_itself_mirrored(posed: fo.Dataset, app: App):
    app.open(posed.name)
    form = app.prompt("Compare pose heatmaps")
    form.get_by_text("5 images. The model runs twice on every image").wait_for()
    form.get_by_role("button", name="Execute").click()
    app.page.get_by_text("5 of 5 samples were compared").first.wait_for(timeout=120_000)
    app.page.get_by_text("Disagreement by joint, largest first").wait_for(timeout=60_000)
    posed.reload()
    assert posed.count("pose_vs_flip_divergence") == 5


def test_poses_are_indexed_from_the_form(posed: fo.Dataset, app: App):
    app.open(posed.name)
    form = app.prompt("Index poses")
    form.get_by_text("5 images. Then select one").wait_for()
    form.get_by_role("button", name="Execute").click()
    app.page.get_by_text("can be searched by pose").first.wait_for(timeout=120_000)
    app.page.get_by_text("Brain runs").wait_for(timeout=60_000)
    posed.reload()
    assert set(posed.list_brain_runs()) >= {"pose_poses", "pose_poses_people"}


def test_similar_poses_are_found_from_the_grid(posed: fo.Dataset, app: App):
    foo.get_operator("@pose-heatmaps/higherhrnet/index_poses")(posed, progress=False)
    app.open(posed.name)
    app.page.locator('[data-cy="looker"]').first.hover()  # shows the checkbox
    app.page.locator('[title^="Click to select sample"]').first.click()
    app.page.locator('[data-cy="action-manage-selected"]').get_by_text("1").wait_for()
    app.page.locator('[data-cy="action-sort-by-similarity"]').click(timeout=60_000)
    app.page.get_by_text("Show similar samples").click()
    app.page.get_by_text("Completed").wait_for(timeout=60_000)
    expect(app.page.get_by_text("pose_poses · k=")).to_have_count(1, timeout=60_000)

    app.page.locator('[data-cy="new-panel-btn"]').first.click()
    app.page.get_by_text("Embeddings", exact=True).first.click()
    app.page.get_by_text("pose_poses_people_map").wait_for(timeout=60_000)
    app.page.get_by_text("pose_poses_map").click()
    app.page.locator('[data-cy="panel-content-Embeddings"] canvas').first.wait_for(timeout=60_000)
