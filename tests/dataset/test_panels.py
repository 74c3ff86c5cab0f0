"""What panels draw, without a browser; tests/app has the rest."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from benchmarks import generated
from evaluation import summary
from inference import pipeline, runs
from inference.joints import COCO

GRID = "@pose-heatmaps/higherhrnet/pose_heatmaps"
GENERATE = "@pose-heatmaps/higherhrnet/generate_heatmaps"


def happened(dataset: fo.Dataset, method: str, view: fo.DatasetView | None = None, **more: Any) -> ExecutionContext:
    """An event of a panel."""
    params = {"panel_id": method, "panel_state": more.pop("panel_state", {}), "__method__": method}
    request = {"dataset_name": dataset.name, "view": (view or dataset.view())._serialize(), "params": params}
    return ExecutionContext(request_params={**request, "active_fields": [], **more}, executor=Executor())


def answer(panel: str, ctx: ExecutionContext) -> str:
    """All that the App is told after an event."""
    foo.get_operator(panel).execute(ctx)
    return str(ctx.executor.to_json())


@pytest.fixture
def sample_panel() -> ModuleType:
    """The module of the panel in an open sample, as the plugin has it."""
    return sys.modules[type(foo.get_operator("@pose-heatmaps/higherhrnet/pose_heatmaps_sample")).__module__]


def test_people_with_fewer_values_than_joints_are_drawn(sample_panel: ModuleType):
    run = sample_panel.Run("pose", None, {}, {"keypoints": "pose_keypoints"}, ("nose", "neck"), "attached maps")
    people = sample_panel._people({"pose_keypoints": {"keypoints": [{"score": 0.5, "confidence": [0.7]}, {}]}}, run)
    body = types.Object()
    sample_panel._render_people(body, run, people, ["nose", "neck"])
    drawn = str(types.Property(body).to_json())
    assert "0.70" in drawn
    assert drawn.count("not found") == 3


def test_a_photo_of_a_few_pixels_width_is_drawn(sample_panel: ModuleType, tmp_path: Path):
    assert cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((4000, 2, 3), np.uint8))
    assert sample_panel.overlay.read_photo(str(tmp_path / "narrow.png")).shape == (900, 1, 3)


def test_the_grid_panel_stands_views_that_have_no_maps(dataset: Callable, photos: Path):
    made = dataset(photos)
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8))] * 6)
    runs.adopt(made, "pose")
    people = [fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])]) for _ in range(6)]
    made.set_values("people", people)
    panel = foo.get_operator("@pose-heatmaps/higherhrnet/pose_heatmaps")
    views = {"all": made.view(), "hidden": made.select_fields("people"), "patches": made.to_patches("people")}
    counted = {}
    for name, view in views.items():
        params = {"panel_id": "panel", "panel_state": {}}
        request = {"dataset_name": made.name, "view": view._serialize(), "params": params, "active_fields": []}
        ctx = ExecutionContext(request_params=request, executor=Executor())
        panel.on_load(ctx)
        counted[name] = "6 of 6 samples in this view have its maps" in str(panel.render(ctx).to_json())
    assert counted == {"all": True, "hidden": False, "patches": False}


def test_finds_come_in_the_order_that_they_promise(dataset: Callable):
    made = dataset([f"/nowhere/{number}.jpg" for number in range(4)])
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8)) for _ in range(4)])
    made.set_values("pose_num_people", [1, 0, 3, 2])
    made.set_values("pose_confidence", [0.9, 0.1, 0.4, 0.6])
    values = [[[0.5, 0.2]], [], [[0.5, 0.9], [0.5, 0.7]], [[0.5, float("nan")]]]  # of nose and wrist, by person
    people = [
        fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5)] * 2, confidence=person) for person in them])
        for them in values
    ]
    made.set_values("pose_keypoints", people)
    runs.adopt(made, "pose")
    panels = sys.modules[type(foo.get_operator("@pose-heatmaps/higherhrnet/pose_heatmaps")).__module__]
    run = panels.state.find_runs(made)["pose"]

    def found(name: str) -> list[int]:
        return [int(Path(path).stem) for path in panels.finds.find(made.view(), run, name, 1).values("filepath")]

    assert found("nobody") == [1]
    assert found("crowd") == [2, 3, 0]
    assert found("unsure") == [2, 3, 0]
    assert found("weakest") == [3, 0, 2]


def some_maps(dataset: Callable, photos: Path, tmp_path: Path, count: int) -> tuple[fo.Dataset, pipeline.Settings]:
    made = dataset([photos / "rocket.jpg"] * 3)
    settings = pipeline.Settings("own", maps=("max", "nose"), input_size=64, floor=0.1, maps_dir=str(tmp_path))
    pipeline.run(made.limit(count), settings, progress=False)
    made.reload()
    return made, settings


def test_a_run_is_continued_with_its_own_settings(dataset: Callable, photos: Path, tmp_path: Path):
    made, _ = some_maps(dataset, photos, tmp_path, 2)
    ctx = happened(made, "on_load")
    assert "2 of 3 samples in this view have its maps" in answer(GRID, ctx)
    button = foo.get_operator(GRID).render(ctx).type.properties["body"].type.properties["about"].type.properties
    params = button["generate"].view.params["settings"]
    asked = {"dataset_name": made.name, "params": params}
    form = str(foo.get_operator(GENERATE).resolve_input(ExecutionContext(asked, operator_uri=GENERATE)).to_json())
    assert "1 image (2 images done already), 2 heatmap fields" in form
    foo.execute_operator(GENERATE, {"dataset": made}, params=params)
    assert made.values("own_status") == ["done"] * 3

    copy = made.clone(persistent=True)
    copy.add_sample(fo.Sample(filepath=str(photos / "camera.png")))
    text = answer(GRID, happened(copy, "on_load"))
    fo.delete_dataset(copy.name)
    assert "3 of 4 samples in this view have its maps" in text
    assert "Generate for the others" not in text, "the run of a clone is the original's"


def test_the_count_follows_what_runs_do(dataset: Callable, photos: Path, tmp_path: Path):
    made, settings = some_maps(dataset, photos, tmp_path, 1)
    first = happened(made, "on_load")
    assert "1 of 3 samples" in answer(GRID, first)
    pipeline.run(made, settings, progress=False)
    assert "3 of 3 samples" in answer(GRID, happened(made, "on_generated", panel_state=first.panel_state))


def test_maps_that_are_to_be_replaced_do_not_count(dataset: Callable, photos: Path, tmp_path: Path):
    made, settings = some_maps(dataset, photos, tmp_path, 3)
    hidden, unknown = made.exclude_fields(["own_max", "own_nose"]), made.exclude_fields("own_status")
    assert "3 of 3 samples" in answer(GRID, happened(made, "on_load"))
    pipeline.run(made.limit(1), replace(settings, floor=0.2), existing="replace", progress=False)
    made.reload()
    assert made.count("own_max") == 3
    for view, count in ((made.view(), 1), (made.limit(2), 1), (made.skip(1), 0), (hidden, 1), (unknown, 3)):
        text = answer(GRID, happened(made, "on_load", view))
        assert f"{count} of {len(view)} samples in this view have its maps" in text
        assert ("Generate for the others" in text) == (count < len(view))


def test_maps_that_have_no_status_count_where_a_run_was_adopted(dataset: Callable):
    made = dataset([f"/nowhere/{number}.jpg" for number in range(3)])
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8))] * 2 + [None])
    made.set_values("pose_status", ["done", None, "No map of this image was found."])  # one was attached later
    runs.adopt(made, "pose")
    assert "2 of 3 samples in this view have its maps" in answer(GRID, happened(made, "on_load"))


def test_finds_look_at_whole_samples(dataset: Callable, photos: Path):
    made = dataset([f"/nowhere/{number}.jpg" for number in range(3)])
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8)) for _ in range(3)])
    made.set_values("pose_num_people", [0, 1, 0])
    made.set_values("people", [fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])]) for _ in range(3)])
    runs.adopt(made, "pose")
    ctx = happened(made, "find", made.select_fields("people"))
    ctx.params["find"] = "nobody"
    answer(GRID, ctx)
    assert len(ctx.view) == 2
    text = answer(GRID, happened(made, "on_load", made.to_patches("people")))
    assert "leave the patches first" in text
    assert "Nobody found" not in text


def test_only_fields_that_can_be_adopted_are_offered(dataset: Callable):
    made = dataset(["/nowhere/0.jpg"])
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8))])
    runs.adopt(made, "pose")
    for name in ("pose_depth", "other_max"):
        made.add_sample_field(name, fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)
    state = sys.modules[type(foo.get_operator(GRID)).__module__].state
    assert state.without_record(made) == {"other": ["other_max"]}


def test_a_label_field_that_is_named_like_a_side_is_adopted_apart(dataset: Callable):
    made = dataset(["/nowhere/0.jpg"])
    runs.declare(made, runs.declared_fields("pose", COCO.joints))
    runs.declare(made, runs.declared_fields("pose_left", COCO.joints))
    runs.declare(made, {"pose_tail": fo.Heatmap, "pose_left_tail": fo.Heatmap})
    for label_field in ("pose_left", "pose"):
        expected = {*runs.declared_fields(label_field, (*COCO.joints, "tail"))}
        for _ in range(2):  # also beside the other's record
            assert {*runs.adopt(made, label_field).fields} == expected


def test_fields_whose_prefix_cannot_name_a_run_are_not_adopted(dataset: Callable):
    made = dataset(["/nowhere/0.jpg"])
    for prefix in ("hrnet-w32", "2d"):
        made.set_values(f"{prefix}_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8))])
        with pytest.raises(ValueError, match=f"'{prefix}' cannot be a label field: use letters"):
            runs.adopt(made, prefix)
    text = answer(GRID, happened(made, "on_load"))
    for prefix in ("hrnet-w32", "2d"):
        assert f"{prefix}: 1 heatmap field" in text
        assert f"'{prefix}' cannot be a label field: use letters" in text
    assert "Control them with this panel" not in text
    assert made.list_runs() == []


def test_joints_stand_in_their_row_whatever_their_names_contain():
    state = sys.modules[type(foo.get_operator(GRID)).__module__].state
    rows = {
        "head": ("left_ear", "left_earlobe", "forehead", "left_eyebrow"),
        "arms": ("left_forearm", "right_thumb4", "left_forefinger1"),
        "legs": ("left_knee", "left_big_toe", "right_toes", "midhip"),
        "body": ("rear_left_paw", "tail", "linear_scale"),
    }
    assert {joint: state.part(joint) for joints in rows.values() for joint in joints} == {
        joint: row for row, joints in rows.items() for joint in joints
    }


def test_the_least_confident_are_told_to_have_people_only_where_people_were_looked_for(dataset: Callable):
    made = dataset([f"/nowhere/{number}.jpg" for number in range(2)])
    made.set_values("pose_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8)) for _ in range(2)])
    made.set_values("pose_confidence", [0.9, 0.1])
    runs.adopt(made, "pose")
    text = answer(GRID, happened(made, "on_load"))
    assert "Samples with maps, those with the lowest peak first" in text
    assert "Samples with people" not in text
    made.delete_sample_field("pose_confidence")
    made.set_values("pose_num_people", [0, 1])
    made.set_values("pose_confidence", [0.1, 0.9])
    runs.adopt(made, "pose")
    assert "Samples with people, those with the lowest peak first" in answer(GRID, happened(made, "on_load"))


def test_the_last_made_is_not_the_last_in_the_alphabet(dataset: Callable):
    made = dataset(["/nowhere/0.jpg"])
    for label_field in ("b", "a"):
        made.set_values(f"{label_field}_max", [fo.Heatmap(map=np.zeros((4, 4), np.uint8))])
        runs.adopt(made, label_field)
    state = sys.modules[type(foo.get_operator(GRID)).__module__].state
    assert state.last_made(made, ["a", "b"]) == "a"
    assert "a: attached maps" in answer(GRID, happened(made, "on_load"))


# --- an open sample

SAMPLE = "@pose-heatmaps/higherhrnet/pose_heatmaps_sample"


@pytest.fixture
def two(dataset: Callable, photos: Path) -> fo.Dataset:
    """Two samples with a map and one box each; the maps' highest values are 0.2 and 0.8."""
    made = dataset([photos / "rocket.jpg", photos / "camera.png"])
    maps = [np.full((4, 4), value, np.float32) for value in (0.2, 0.8)]
    made.set_values("pose_nose", [fo.Heatmap(map=values, range=[0, 1]) for values in maps])
    made.set_values("people", [fo.Detections(detections=[fo.Detection(bounding_box=[0, 0, 1, 1])]) for _ in range(2)])
    runs.adopt(made, "pose")
    return made


def test_an_open_patch_shows_the_maps_of_its_sample(two: fo.Dataset):
    patches = two.to_patches("people")
    text = answer(SAMPLE, happened(two, "on_change_current_sample", patches, current_sample=patches.last().id))
    assert "'0.80'" in text
    assert "data:image/jpeg" in text
    lost = answer(SAMPLE, happened(two, "on_change_current_sample", current_sample="0" * 24))
    assert "The sample that is open here is not in the dataset." in lost


@pytest.mark.parametrize("color", ["red", "YellowGreen", "#f00", "rgb(255, 0, 0)", "#ff0000"])
def test_the_picture_takes_whatever_color_the_app_does(color: str, two: fo.Dataset, sample_panel: ModuleType):
    two.app_config.color_scheme = fo.ColorScheme(fields=[{"path": "pose_nose", "fieldColor": color}])
    two.save()
    assert "data:image/jpeg" in answer(
        SAMPLE, happened(two, "on_load", current_sample=two.last().id, active_fields=["pose_nose"])
    )
    expected = {"YellowGreen": (50, 205, 154), "rgb(255, 0, 0)": sample_panel.overlay.bgr(sample_panel.view.PLAIN)}
    assert sample_panel.overlay.bgr(color) == expected.get(color, (0, 0, 255))


def test_a_late_answer_is_about_what_is_open_by_now(two: fo.Dataset, monkeypatch: pytest.MonkeyPatch):
    first, second = two.values("id")
    panel = foo.get_operator(SAMPLE)
    late, newer = (happened(two, "on_change_current_sample", current_sample=one) for one in (first, second))
    monkeypatch.setattr(
        type(panel), "on_change_current_sample", lambda self, ctx: ctx is late and answer(SAMPLE, newer)
    )
    answers = [answer(SAMPLE, late), str(newer.executor.to_json())]
    assert ["'0.80'" in text for text in answers] == [True, True]
    assert ["'0.20'" in text for text in answers] == [False, False]


# --- the evaluation


@pytest.fixture
def evaluated(tmp_path: Path) -> Iterator[fo.Dataset]:
    """Three images; in the first, arms and legs are swapped."""
    random = np.random.default_rng(1)
    samples = []
    for number in range(3):
        people = generated.make_people(random, 1)
        seen = people if number else generated.swapped(people, random)
        paths = generated.save_maps(generated.draw_maps(seen, random), tmp_path / str(number))
        samples.append(generated.make_sample(number, people, paths))
    dataset = generated.make_dataset(samples)
    foo.get_operator("@pose-heatmaps/higherhrnet/evaluate_heatmaps")(dataset, gt_field="people", progress=False)
    yield dataset
    fo.delete_dataset(dataset.name)


def called(dataset: fo.Dataset, view: list, state: dict, method: str = "render", **params: Any) -> ExecutionContext:
    """A context in which a method of the panel was called, as the App calls it."""
    params |= {"panel_id": "panel", "panel_state": state}
    request = {"dataset_name": dataset.name, "view": view, "params": params, "active_fields": ["people", "pose_max"]}
    ctx = ExecutionContext(request_params=json.loads(json.dumps(request)), executor=Executor())
    getattr(foo.get_operator("@pose-heatmaps/higherhrnet/pose_evaluation"), method)(ctx)
    return ctx


def drawn(ctx: ExecutionContext) -> str:
    return str(foo.get_operator("@pose-heatmaps/higherhrnet/pose_evaluation").render(ctx).to_json())


def test_the_panel_says_what_is_shown_as_long_as_it_is(evaluated: fo.Dataset):
    ctx = called(evaluated, [], {}, "show_worst", kind="swapped")
    assert "Shown: mostly swapped; samples: 1" in drawn(ctx)
    shown = summary.select(evaluated, "eval", worst="swapped")._serialize()
    assert "Shown: mostly swapped" in drawn(called(evaluated, shown, ctx.panel_state, "on_change_view"))
    assert "Shown" not in drawn(called(evaluated, [], ctx.panel_state, "on_change_view"))


def test_a_size_is_forgotten_with_its_evaluation(evaluated: fo.Dataset):
    state = called(evaluated, [], {}, "choose_size", size="large").panel_state
    shown = called(evaluated, [], state, "show_status", y="left knee", trace="swapped")
    assert "left knee swapped of large people" in drawn(shown)
    json.dumps(shown.request_params["view"], allow_nan=False)  # as the App reads it
    for method, params in (("on_change_dataset", {}), ("choose_evaluation", {"key": "eval"})):
        state = {"size": "large"}
        assert called(evaluated, [], state, method, **params).panel.get_state("size") is None


def test_maps_of_another_run_stay_on(evaluated: fo.Dataset):
    evaluated.set_values("pose_flip_max", evaluated.values("pose_nose"))
    runs.adopt(evaluated, "pose_flip")
    params = {"y": "left knee", "trace": "swapped", "panel_id": "panel", "panel_state": {}}
    active = ["people", "pose_nose", "pose_flip_max"]
    request = {"dataset_name": evaluated.name, "view": [], "params": params, "active_fields": active}
    ctx = ExecutionContext(request_params=request, executor=Executor())
    foo.get_operator("@pose-heatmaps/higherhrnet/pose_evaluation").show_status(ctx)
    calls = {call["operator_uri"].rpartition("/")[2]: call["params"] for call in ctx.executor.to_json()["requests"]}
    assert set(calls["set_active_fields"]["fields"]) == {"people", "pose_flip_max", "pose_left_knee"}
