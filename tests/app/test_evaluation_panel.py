"""The panel of an evaluation: a click on a bar or a cell brings up the samples behind it."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from playwright.sync_api import Locator

from benchmarks import generated
from benchmarks.browser import App
from evaluation import summary
from inference.joints import COCO

COUNT = 8


@pytest.fixture
def evaluated(tmp_path: Path) -> Iterator[fo.Dataset]:
    """Eight images; arms and legs of two are swapped, of one a part is not seen, of one there is a false person."""
    random = np.random.default_rng(8)
    faults = {1: "swapped", 4: "swapped", 5: "missed", 6: "false"}
    samples = []
    for number in range(COUNT):
        people = generated.make_people(random, 2)
        seen = generated.FAULTS[faults[number]](people, random) if number in faults else people
        sample = generated.make_sample(
            number, people, generated.save_maps(generated.draw_maps(seen, random), tmp_path / str(number))
        )
        sample.filepath = str(tmp_path / f"{number}.jpg")
        cv2.imwrite(sample.filepath, np.full((generated.HEIGHT, generated.WIDTH, 3), 60, np.uint8))
        samples.append(sample)
    dataset = generated.make_dataset(samples)
    foo.get_operator("@pose-heatmaps/higherhrnet/evaluate_heatmaps")(dataset, gt_field="people", progress=False)
    yield dataset
    fo.delete_dataset(dataset.name)


def open_panel(app: App) -> Locator:
    # not by the mouse: the menu of panels may lie over the button before playwright sees that the click has come
    app.page.locator('[data-cy="new-panel-btn"]').first.evaluate("button => button.click()")
    app.page.get_by_text("Pose evaluation", exact=True).first.evaluate("item => item.click()")
    panel = app.page.locator('[data-cy="panel-content-pose_evaluation"]')
    panel.locator(".js-plotly-plot").nth(3).wait_for(timeout=90_000)
    app.settle()
    return panel


def plot(panel: Locator, number: int) -> Locator:
    found = panel.locator(".js-plotly-plot").nth(number)
    found.scroll_into_view_if_needed()
    return found


def click_bar(app: App, of: Locator, trace: int, bar: int) -> None:
    app.settle()
    box = of.locator(".barlayer .trace").nth(trace).locator("path").nth(bar).bounding_box()
    assert box
    click_at(app, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def click_cell(app: App, of: Locator, row: int, column: int) -> None:
    app.settle()
    box = of.locator(".nsewdrag").bounding_box()
    assert box
    count = len(COCO)
    click_at(
        app, box["x"] + box["width"] * (column + 0.5) / (count + 1), box["y"] + box["height"] * (row + 0.5) / count
    )


def click_at(app: App, x: float, y: float) -> None:
    app.page.mouse.move(x - 2, y)
    app.page.mouse.move(x, y)  # plotly listens to what the mouse is over
    app.page.wait_for_timeout(500)
    app.page.mouse.click(x, y)


def assert_shown(app: App, expected: fo.DatasetView) -> None:
    """The grid comes to show these samples and no others."""
    assert 0 < len(expected) < COUNT
    assert_count(app, len(expected))
    app.until(lambda: page_of_samples(app) == expected.values("id"))


def page_of_samples(app: App) -> list[str]:
    """The ids of the page of samples that the grid asked for last."""
    answers = [answer for answer in app.responses if "paginateSamples" in (answer.request.post_data or "")]
    return [edge["node"]["sample"]["_id"] for edge in answers[-1].json()["data"]["samples"]["edges"]]


def assert_count(app: App, count: int) -> None:
    text = "1 sample" if count == 1 else f"{count} samples"
    app.page.get_by_text(text, exact=True).first.wait_for(timeout=60_000)


def test_clicks_bring_up_the_samples(evaluated: fo.Dataset, app: App):
    app.open(evaluated.name)
    assert_count(app, COUNT)
    panel = open_panel(app)
    panel.get_by_text("labelled joints found").first.wait_for(timeout=60_000)
    knee = COCO.joints.index("left_knee")

    click_bar(app, plot(panel, 0), 1, knee)
    swapped = summary.select(evaluated, "eval", joint="left_knee", status="swapped")
    assert_shown(app, swapped)
    panel.get_by_text("Shown: left knee swapped").first.wait_for(timeout=60_000)
    app.until(lambda: app.is_on("pose_left_knee"))

    app.page.locator('[data-cy="btn-clear-view-bar"]').click()
    assert_count(app, COUNT)
    panel.get_by_text("Click a bar or a cell").first.wait_for(timeout=60_000)

    click_cell(app, plot(panel, 1), knee, COCO.joints.index("right_knee"))
    assert_shown(app, summary.select(evaluated, "eval", joint="left_knee", seen_as="right_knee"))

    panel.get_by_role("button", name="All samples").click()
    assert_count(app, COUNT)
    click_bar(app, plot(panel, 3), 0, 0)
    assert_shown(app, summary.select(evaluated, "eval", joint="nose", kind="false"))

    panel.get_by_role("button", name="mistake is: missed").click()
    assert_shown(app, evaluated.match({"eval_worst": "missed"}))
