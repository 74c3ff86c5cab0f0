"""The panel beside the grid: what it makes the App fetch and paint, and whether it says what is shown."""

from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
from playwright.sync_api import expect

from benchmarks.browser import App
from inference import checkpoints, pipeline, runs
from inference.joints import COCO, CROWDPOSE

PANEL = "pose_heatmaps"
PATIENCE = 90_000  # milliseconds


@pytest.fixture
def posed(dataset, photos: Path, tmp_path: Path) -> fo.Dataset:
    """Six photos with maps, of which the maximum is on."""
    made = dataset(photos)
    pipeline.run(made.view(), pipeline.Settings(label_field="pose", maps_dir=str(tmp_path / "maps")))
    made.reload()
    return made


def fetched(app: App, folder: Path) -> set[str]:
    """The names of the maps that the App has asked for since this was asked last."""
    names = {Path(path).stem for path in app.media(folder)}
    app.responses.clear()
    return names


def shown(app: App, fields: list[str]) -> set[str]:
    """What the sidebar says."""
    return {field for field in fields if app.is_on(field)}


def test_each_control_fetches_and_paints_its_maps_and_no_others(posed: fo.Dataset, tmp_path: Path, app: App):
    maps = tmp_path / "maps"
    app.open(posed.name)
    app.open_panel(PANEL)
    app.until(lambda: {"Show the maximum over all joints", "Hide the skeletons"} <= app.lit())
    app.press("Hide the skeletons")
    app.press("Show no maps")
    app.until(lambda: not app.is_on("pose_max") and not app.is_on("pose_keypoints"))
    bare = app.painted()

    fetched(app, maps)
    pictures = {}
    for label, joints in {
        "nose": {"nose"},
        "Next joint": {"left_eye"},
        "Previous joint": {"nose"},
        "Show the joints: head": {"nose", "left_eye", "right_eye", "left_ear", "right_ear"},
        "Show the joints: left": {joint for joint in COCO.joints if joint.startswith("left_")},
        "Show all joints": set(COCO.joints),
        "Show the maximum over all joints": {"max"},
    }.items():
        app.press(label)
        app.until(
            lambda names=joints: (
                shown(app, [f"pose_{n}" for n in ("max", *COCO.joints)]) == {f"pose_{n}" for n in names}
            )
        )
        app.settle(quiet=3)  # on a busy machine the last maps come late, and would count for the next control
        assert fetched(app, maps) <= joints, label
        pictures[label] = app.painted()
        assert pictures[label] != bare, label
    assert pictures["nose"] == pictures["Previous joint"]
    assert len(set(pictures.values())) == len(pictures) - 1

    app.press("left wrist")
    app.until(lambda: "left wrist" in app.lit())
    app.press("left ankle")
    app.until(lambda: {"left wrist", "left ankle"} <= app.lit())
    app.press("left wrist")
    app.until(lambda: "left wrist" not in app.lit())
    app.press("Show no maps")
    app.until(lambda: app.pixels() == bare)


def test_maps_that_were_not_fetched_yet_are_fetched_when_they_are_chosen(posed: fo.Dataset, tmp_path: Path, app: App):
    app.open(posed.name)
    app.open_panel(PANEL)
    fetched(app, tmp_path / "maps")
    app.press("right hip")
    app.until(lambda: app.is_on("pose_right_hip"))
    app.settle()
    assert fetched(app, tmp_path / "maps") == {"right_hip"}
    assert app.is_on("pose_keypoints"), "other fields stay as they are"


def test_it_agrees_with_the_sidebar_after_a_reload_and_in_each_window(posed: fo.Dataset, app: App):
    app.open(posed.name)
    app.open_panel(PANEL)
    app.press("right knee")
    app.switch("pose_left_knee", on=True)
    expect(app.button("left knee")).to_have_attribute("aria-pressed", "true", timeout=PATIENCE)
    app.until(lambda: {"left knee", "right knee"} <= app.lit())

    browser = app.page.context.browser
    assert browser
    other = App(browser.new_page(), app.address)
    other.open(posed.name)
    other.open_panel(PANEL)
    other.press("nose")
    other.until(lambda: "nose" in other.lit())
    assert "nose" not in app.lit()
    assert app.is_on("pose_left_knee"), "the choice of joints is each window's own"
    other.page.close()

    app.open(posed.name)
    app.open_panel(PANEL)
    joints = {joint.replace("_", " "): f"pose_{joint}" for joint in COCO.joints}
    app.until(lambda: app.lit() & joints.keys() == {label for label, field in joints.items() if app.is_on(field)})
    app.until(lambda: ("Show the maximum over all joints" in app.lit()) == app.is_on("pose_max"))


def test_finds_change_the_view_and_lead_back(posed: fo.Dataset, app: App):
    people = posed.values("pose_num_people")
    app.open(posed.name)
    app.open_panel(PANEL)
    whole = app.page.get_by_text("6 of 6 samples in this view have its maps.")
    whole.wait_for(timeout=PATIENCE)
    nobody = people.count(0)
    app.press("Samples in which no person was found")
    app.page.get_by_text(f"{nobody} of {nobody} samples in this view").wait_for(timeout=PATIENCE)
    app.press("left wrist")
    app.press("Samples with people, those whose left wrist is missing or weak first")
    app.page.get_by_text(f"{6 - nobody} of {6 - nobody} samples in this view").wait_for(timeout=PATIENCE)
    app.press("Back to the former view")
    whole.wait_for(timeout=PATIENCE)
    expect(app.button("Back to the former view")).to_have_count(0, timeout=PATIENCE)


def test_a_run_is_continued_in_the_panel_with_its_own_settings(dataset, photos: Path, tmp_path: Path, app: App):
    made = dataset([photos / name for name in ("astronaut.jpg", "camera.png", "chelsea.jpg")])
    settings = pipeline.Settings("own", maps=("max", "nose"), input_size=128, maps_dir=str(tmp_path))
    pipeline.run(made.limit(1), settings)
    app.open(made.name)
    app.open_panel(PANEL)
    app.page.get_by_text("1 of 3 samples in this view have its maps.").wait_for(timeout=PATIENCE)
    app.press("Generate for the others")
    form = app.page.locator('[data-cy="operators-prompt-modal"]')
    form.get_by_text("2 images (1 image done already), 2 heatmap fields").wait_for(timeout=PATIENCE)
    form.get_by_role("button", name="Execute").click()
    app.page.get_by_text("3 of 3 samples in this view have its maps.").wait_for(timeout=PATIENCE)
    made.reload()
    assert runs.list_records(made).keys() == {"own"}
    assert made.values("own_status") == ["done"] * 3


def test_colours_by_value_and_by_joint(posed: fo.Dataset, app: App):
    app.open(posed.name)
    app.open_panel(PANEL)
    by_joint = app.painted()
    app.press("A colour scale, low to high")
    app.until(lambda: app.pixels() != by_joint)
    app.press("A colour for each joint")
    app.until(lambda: app.pixels() == by_joint)


def test_two_runs_one_with_its_maximum_only_and_fields_that_are_deleted(posed: fo.Dataset, tmp_path: Path, app: App):
    settings = pipeline.Settings(label_field="other", maps=("max",), maps_dir=str(tmp_path / "other"))
    pipeline.run(posed.limit(2), settings)
    app.open(posed.name)
    app.open_panel(PANEL)
    title = f"higherhrnet-lite-coco, input size {checkpoints.find_model(checkpoints.DEFAULT_MODEL).input_size}"
    app.button(title).wait_for(timeout=PATIENCE)
    for name, count in (("pose", 6), ("other", 2), ("other", 2)):  # a run's maps take the place of those of others
        app.page.get_by_role("button", name=title).filter(has_text=name).click()
        app.settle()
        app.page.get_by_text(f"{count} of 6 samples in this view have its maps.").wait_for(timeout=PATIENCE)
        app.until(lambda: [run for run in ("pose", "other") if app.is_on(f"{run}_max")] == [name])  # noqa: B023
        app.switch("pose_max", on=True)  # also where both were shown
    app.switch("pose_max", on=False)
    expect(app.button("Show the joints, each in its own colour")).to_be_disabled(timeout=PATIENCE)

    posed.delete_sample_fields(["other_max"])
    app.press("Show no maps")
    app.button("left wrist").wait_for(timeout=PATIENCE)
    assert app.page.get_by_text("Something went wrong").count() == 0


def test_it_says_what_is_there_after_another_dataset_was_opened(
    posed: fo.Dataset, dataset, photos: Path, tmp_path: Path, app: App
):
    """FiftyOne closes the panels of a dataset with it."""
    other = dataset([photos / "astronaut.jpg", photos / "camera.png"])
    pipeline.run(other.view(), pipeline.Settings(label_field="second", maps_dir=str(tmp_path / "second")))
    app.open(posed.name)
    app.open_panel(PANEL)
    app.press("nose")
    app.page.get_by_placeholder("Select dataset").fill(other.name)
    app.page.get_by_text("1 of 1", exact=True).wait_for(timeout=PATIENCE)
    app.page.keyboard.press("Enter")
    app.page.get_by_text("2 samples", exact=True).wait_for(timeout=PATIENCE)
    app.open_panel(PANEL)
    app.page.get_by_text("2 of 2 samples in this view have its maps.").wait_for(timeout=PATIENCE)
    app.until(lambda: "Show the maximum over all joints" in app.lit() and app.is_on("second_max"))
    app.press("left ear")
    app.until(lambda: shown(app, [f"second_{n}" for n in ("max", *COCO.joints)]) == {"second_left_ear"})
    assert app.page.get_by_text("Something went wrong").count() == 0


def test_heatmaps_without_a_run_are_adopted(dataset, photos: Path, tmp_path: Path, app: App):
    made = dataset([photos / "astronaut.jpg"])
    cv2.imwrite(str(tmp_path / "map.png"), np.full((60, 60), 200, np.uint8))
    sample = made.first()
    for joint in CROWDPOSE.joints:
        sample[f"crowd_{joint}"] = fo.Heatmap(map_path=str(tmp_path / "map.png"))
    sample.save()
    app.open(made.name)
    app.open_panel(PANEL)
    app.page.get_by_text("This dataset has no pose heatmaps yet.").wait_for(timeout=PATIENCE)
    app.page.get_by_text("crowd: 14 heatmap fields").wait_for(timeout=PATIENCE)
    app.press("Control them with this panel")
    app.press("neck")
    app.until(lambda: app.is_on("crowd_neck"))
    made.reload()
    assert runs.read_record(made, "crowd").joints == CROWDPOSE.joints


def test_a_dataset_without_maps_offers_to_make_them(dataset, photos: Path, app: App):
    app.open(dataset(photos).name)
    app.open_panel(PANEL)
    app.press("Generate pose heatmaps")
    app.page.locator('[data-cy="operators-prompt-modal"]').get_by_text("Label field").first.wait_for(timeout=PATIENCE)
