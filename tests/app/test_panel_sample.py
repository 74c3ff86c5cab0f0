"""The panel in an open sample: its picture, its numbers, and the sample that follows it."""

from pathlib import Path

import fiftyone as fo
import pytest
from playwright.sync_api import expect

from benchmarks.browser import App
from inference import pipeline

PANEL = "pose_heatmaps_sample"
PATIENCE = 90_000  # milliseconds


@pytest.fixture
def posed(dataset, photos: Path, tmp_path: Path) -> fo.Dataset:
    """Two photos of a person and one of a cat, with maps."""
    made = dataset([photos / name for name in ("astronaut.jpg", "camera.png", "chelsea.jpg")])
    pipeline.run(made.view(), pipeline.Settings(label_field="pose", maps_dir=str(tmp_path / "maps")))
    made.reload()
    return made


def picture(app: App) -> str:
    """The panel's own picture, as it was sent."""
    image = app.page.get_by_alt_text("The photo with the maps that are shown")
    image.wait_for(timeout=PATIENCE)
    return image.get_attribute("src") or ""


def is_on(app: App, field: str) -> bool:
    """Whether the sidebar of the open sample says that a field is on."""
    return app.page.locator(f'[data-cy="modal"] [data-cy="checkbox-{field}"] input').first.is_checked()


def test_the_open_sample_follows_the_panel_and_the_panel_the_sample(posed: fo.Dataset, tmp_path: Path, app: App):
    app.open(posed.name)
    app.open_sample(0)
    app.open_panel(PANEL)
    app.until(lambda: "Show the maximum over all joints" in app.lit())
    maximum = picture(app)

    app.responses.clear()
    app.press("nose")
    app.until(lambda: is_on(app, "pose_nose") and not is_on(app, "pose_max"))
    app.until(lambda: picture(app) != maximum)
    app.settle(quiet=3)
    assert {Path(path).name for path in app.media(tmp_path / "maps")} == {"nose.png"}
    nose = picture(app)

    app.page.locator('[data-cy="modal"] [data-cy="checkbox-pose_left_eye"]').first.click()
    expect(app.button("left eye")).to_have_attribute("aria-pressed", "true", timeout=PATIENCE)
    app.until(lambda: picture(app) not in (nose, maximum))
    app.press("left eye")
    app.until(lambda: picture(app) == nose)

    threshold = app.page.locator('[data-cy="modal"] input[type="range"]').nth(1)
    threshold.focus()
    threshold.press("End")
    app.until(lambda: picture(app) != nose)
    above_all = picture(app)
    app.press("Show no maps")
    app.until(lambda: not is_on(app, "pose_nose"))
    app.until(lambda: picture(app) == above_all)  # no value reaches a threshold of 1

    app.press("Colour by value")
    app.press("nose")
    assert app.page.get_by_text("Something went wrong").count() == 0


def test_next_sample_bars_and_people(posed: fo.Dataset, app: App):
    app.open(posed.name)
    app.open_sample(0)
    app.open_panel(PANEL)
    first = picture(app)
    bars = app.page.locator('[data-cy="modal"] .barlayer .point')
    bars.first.wait_for(timeout=PATIENCE)
    expect(bars).to_have_count(17, timeout=PATIENCE)
    person = posed.first().pose_keypoints.keypoints[0]
    app.page.get_by_text(f"{person.score:.2f}", exact=True).first.wait_for(timeout=PATIENCE)

    bars.nth(16).scroll_into_view_if_needed()  # the topmost is the joint set's first
    box = bars.nth(16).bounding_box()
    assert box
    app.page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    expect(app.button("nose")).to_have_attribute("aria-pressed", "true", timeout=PATIENCE)
    app.page.get_by_text(f"{person.confidence[0]:.2f}", exact=True).first.wait_for(timeout=PATIENCE)

    app.until(lambda: picture(app) != first)
    nose = picture(app)
    app.page.mouse.move(300, 500)
    app.page.keyboard.press("ArrowRight")
    app.until(lambda: picture(app) != nose)
    expect(app.button("nose")).to_have_attribute("aria-pressed", "true", timeout=PATIENCE)
    app.page.keyboard.press("ArrowRight")
    app.page.get_by_text("Nobody was found in this sample.").wait_for(timeout=PATIENCE)

    app.close_sample()
    app.open_sample(1)
    app.open_panel(PANEL)
    app.until(lambda: picture(app) != nose)
    expect(app.page.get_by_text("Nobody was found in this sample.")).to_have_count(0, timeout=PATIENCE)


def test_two_runs_beside_each_other(posed: fo.Dataset, tmp_path: Path, app: App):
    settings = pipeline.Settings(label_field="other", maps=("max",), input_size=128, maps_dir=str(tmp_path / "other"))
    pipeline.run(posed.view(), settings)
    app.open(posed.name)
    app.open_sample(0)
    app.open_panel(PANEL)
    app.press("Show the run pose beside it")
    beside = app.page.get_by_alt_text("The same with pose")
    beside.wait_for(timeout=PATIENCE)
    app.until(lambda: beside.get_attribute("src") not in ("", None, picture(app)))
    app.press("Show no other run beside it")
    app.until(lambda: beside.count() == 0)


def test_where_the_open_sample_is_out_of_reach_the_panel_still_shows_its_maps(posed: fo.Dataset, app: App):
    app.page.add_init_script(
        """let state;
        Object.defineProperty(window, "__fos__", {
            get: () => state, set: (value) => { state = { ...value, activeFields: undefined } },
        });"""
    )
    app.open(posed.name)
    app.open_sample(0)
    app.open_panel(PANEL)
    maximum = picture(app)
    app.press("nose")
    app.until(lambda: picture(app) != maximum)
    app.until(lambda: "nose" in app.lit())
    assert is_on(app, "pose_max"), "the sample itself keeps what it showed"
    assert not is_on(app, "pose_nose")
    assert app.page.get_by_text("Something went wrong").count() == 0
