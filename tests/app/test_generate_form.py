"""The form of generate_heatmaps, from the operator browser to maps on the grid."""

from pathlib import Path

import fiftyone as fo
from fiftyone.operators.delegated import DelegatedOperationService
from playwright.sync_api import expect

from benchmarks.browser import App

LABEL = "Generate pose heatmaps"


def test_the_form_says_what_will_happen_runs_and_shows_the_maximum(dataset, photos: Path, tmp_path: Path, app: App):
    made = dataset(photos)
    app.open(made.name)
    bare = app.pixels()

    form = app.prompt(LABEL)
    notice = form.get_by_text("6 images, 18 heatmap fields")
    notice.wait_for()
    form.get_by_label("Maximum only").check()
    form.get_by_text("6 images, 1 heatmap field,").wait_for()
    expect(notice).to_have_count(0)  # the notice is computed anew when the form changes
    form.get_by_label("Maximum and every joint").check()
    notice.wait_for()

    form.get_by_role("button", name="Execute").click()
    app.page.get_by_text("of 6 images").first.wait_for(timeout=60_000)
    app.page.get_by_text("6 of 6 samples got pose heatmaps").wait_for(timeout=120_000)
    app.settle()
    made.reload()
    assert made.values("pose_status") == ["done"] * 6
    maps = made.values("pose_max.map_path")
    app.until(lambda: app.is_on("pose_max"))
    assert not app.is_on("pose_nose")
    folder = Path(made.first().pose_max.map_path).parents[2]
    app.until(lambda: sorted(app.media(folder)) == sorted(maps))
    app.until(lambda: app.pixels() != bare)


def test_the_form_refuses_a_field_of_another_type(dataset, photos: Path, app: App):
    made = dataset(photos)
    made.add_sample_field("pose_max", fo.StringField)
    app.open(made.name)

    form = app.prompt(LABEL)
    form.get_by_text("The dataset has a field 'pose_max' of type StringField").wait_for()
    expect(form.get_by_role("button", name="Execute")).to_be_disabled()


def test_the_form_splits_a_run_into_operations_for_workers(dataset, photos: Path, tmp_path: Path, app: App):
    made = dataset(photos)
    app.open(made.name)

    form = app.prompt(LABEL)
    form.get_by_label("Advanced settings").check()
    form.locator("input[type=number]").last.fill("2")  # FiftyOne ties no label to its numbers
    form.get_by_text("Queues 2 operations, for workers").wait_for(timeout=60_000)
    form.get_by_role("button", name="Execute").click()
    app.page.get_by_text("2 operations are queued").wait_for(timeout=60_000)

    operations = DelegatedOperationService().list_operations(dataset_name=made.name)
    assert sorted(operation.label for operation in operations) == [f"{LABEL}, part {part} of 2" for part in (1, 2)]
    assert {str(operation.run_state) for operation in operations} == {"queued"}
    made.reload()
    assert made.has_field("pose_max")
    assert made.count_values("pose_status") == {None: 6}


def test_the_app_says_why_a_run_has_failed(dataset, photos: Path, app: App):
    app.open(dataset(photos).name)
    form = app.prompt(LABEL)
    form.get_by_label("Advanced settings").check()
    form.get_by_text("Threads that decode images").wait_for(timeout=60_000)
    form.get_by_role("textbox").last.fill("cuda:99")
    form.get_by_text("Device 'cuda:99' is not available here").wait_for(timeout=60_000)
    form.get_by_role("button", name="Execute").click()
    app.page.get_by_text("Error:").wait_for(timeout=60_000)
    expect(app.page.get_by_text("Threads that decode images")).to_have_count(0)  # the form is gone, the reason is not
    app.page.get_by_text("Device 'cuda:99' is not available here").first.wait_for(timeout=60_000)
    assert app.page.get_by_text("network error").count() == 0
