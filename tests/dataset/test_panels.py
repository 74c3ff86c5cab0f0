"""What panels draw, without a browser; tests/app has the rest."""

import json
import sys
from collections.abc import Callable, Iterator
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
from inference import runs


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
