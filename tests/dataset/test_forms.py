"""What the forms take and say, and what the App is told, without a browser; tests/app has the rest."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest
import torch
from fiftyone.operators.executor import ExecutionContext, ExecutionError, Executor

from inference import pipeline, runs

PLUGIN = "@pose-heatmaps/higherhrnet/"
GENERATE = PLUGIN + "generate_heatmaps"


def module(name: str) -> ModuleType:
    """A module as the plugin has it."""
    return importlib.import_module(
        type(foo.get_operator(GENERATE)).__module__.replace("operators.generate_heatmaps", name)
    )


def context(name: str, dataset: fo.Dataset, params: dict[str, Any], **request: Any) -> ExecutionContext:
    """As the App asks for a form, and executes it."""
    request |= {"operator_uri": PLUGIN + name, "dataset_name": dataset.name, "params": params}
    return ExecutionContext(request_params=request, executor=Executor(), operator_uri=PLUGIN + name)


def form(name: str, dataset: fo.Dataset, params: dict[str, Any], **request: Any) -> str:
    return str(foo.get_operator(PLUGIN + name).resolve_input(context(name, dataset, params, **request)).to_json())


def streamed(name: str, dataset: fo.Dataset, params: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What an immediate run makes the App do."""
    steps = foo.get_operator(PLUGIN + name).execute(context(name, dataset, params))
    return [(step.body.operator_uri, step.body.params) for step in steps]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("generate_heatmaps", {"device": "cuda:99"}),
        ("attach_heatmaps", {"maps_dir": "/nowhere"}),
        ("delete_evaluation", {"eval_key": "eval"}),
        ("compare_runs", {"label_field": "pose"}),
    ],
)
def test_the_app_is_told_why_a_run_fails(name: str, params: dict[str, Any], dataset: Callable, photos: Path):
    made = dataset([photos / "rocket.jpg"])
    *_, (told, message), (shown, output) = streamed(name, made, params)
    assert (told, message["variant"], shown) == ("notify", "error", "show_output")
    assert message["message"] == output["results"]["error"]


def test_python_gets_the_error_itself(dataset: Callable, photos: Path):
    with pytest.raises(ExecutionError, match="'cuda:99' is not available here"):
        foo.execute_operator(
            GENERATE, {"dataset": dataset([photos / "rocket.jpg"])}, params={"label_field": "pose", "device": "cuda:99"}
        )


def test_values_of_fields_that_the_form_hides_again_do_nothing(dataset: Callable, photos: Path):
    made = dataset([photos / "rocket.jpg"])
    checkpoint = {"absolute_path": str(photos / "rocket.jpg")}
    params = {"model": "higherhrnet-lite-coco", "checkpoint": checkpoint, "flip": True, "shards": 3, "maps": "max"}
    assert "1 image, 1 heatmap field" in form("generate_heatmaps", made, {**params, "advanced": False})
    assert "Queues" not in form("generate_heatmaps", made, {**params, "advanced": False})
    assert "problem_0" in form("generate_heatmaps", made, {**params, "advanced": True})
    assert "problem_0" in form("generate_heatmaps", made, params), "Python callers have no form"
    told, message = streamed("generate_heatmaps", made, {**params, "advanced": False, "skip_existing": False})[-1]
    assert (told, message["variant"]) == ("notify", "success")
    settings = runs.read_record(made, "pose").settings
    assert (settings["checkpoint"], settings["flip"]) == (None, False)


def test_a_precision_is_kept_by_queued_runs_and_told_of_where_it_does_not_help(
    dataset: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    generation, settings = module("operators.generation"), module("inference.settings")
    params = generation.params_of(settings.Settings(precision="bfloat16"), True, None)
    assert generation.settings_of(params).precision == "bfloat16"
    assert generation.settings_of({**params, "advanced": False}).precision == "float32"
    monkeypatch.setattr(module("inference.predictor"), "best_precision", lambda _: torch.float32)
    text = form("generate_heatmaps", dataset([photos / "rocket.jpg"]), {"precision": "bfloat16", "advanced": True})
    assert "is not faster with bfloat16: choose the precision float32" in text


def test_the_form_counts_the_samples_that_the_run_will_do(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"] * 3)
    params = {"maps": "max", "maps_dir": str(tmp_path)}
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path))
    pipeline.run(made.limit(2), settings, progress=False)
    changed = {**params, "resolution": "image"}
    assert "1 image (2 images done already)" in form("generate_heatmaps", made, params)
    assert "3 images, 1 heatmap" in form("generate_heatmaps", made, {**changed, "existing": "replace"})
    assert "1 image (2 images done already)" in form("generate_heatmaps", made, {**changed, "existing": "append"})
    # chosen before the settings were changed back: the form shows no choice any more, and the App still sends it
    assert "1 image (2 images done already)" in form("generate_heatmaps", made, {**params, "existing": "replace"})

    pipeline.run(made, settings, progress=False)
    assert "All 3 images have these maps already" in form("generate_heatmaps", made, {**params, "existing": "replace"})
    made.delete_sample_field("pose_max")
    assert "3 images, 1 heatmap" in form("generate_heatmaps", made, params)


def test_a_device_that_only_a_worker_has_is_no_reason_to_refuse(
    dataset: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    made = dataset([photos / "rocket.jpg"])
    text = form("generate_heatmaps", made, {"device": "cuda:99"})
    assert "not available here" in text
    assert "problem_0" not in text
    monkeypatch.setattr(module("inference.estimates"), "_seconds_per_pass", None)  # only a worker runs it
    queued = foo.get_operator(GENERATE)(made, device="cuda:99", delegate=True)
    assert queued.delegated
    assert not made.has_field("pose_max")


def test_a_view_of_dynamic_groups_is_refused_with_advice_that_fits(dataset: Callable, photos: Path):
    made = dataset(photos)
    made.set_values("scene", ["a", "b"] * 3)
    groups = made.group_by("scene")
    (problem,) = pipeline.problems(groups, pipeline.Settings())
    assert "flatten()" in problem
    assert not pipeline.problems(groups.flatten(), pipeline.Settings())


def test_an_open_form_lists_images_and_files_once(
    dataset: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = dataset(photos)
    listed = []
    monkeypatch.setattr(
        module("inference.file_index"), "_files", lambda root: listed.append(root) or iter(["rocket.png"])
    )
    params = {"maps_dir": {"absolute_path": str(tmp_path)}}
    for label_field in ("p", "po", "pos"):
        more = {"label_field": label_field, "range": f"0, {len(label_field)}"}
        text = form("attach_heatmaps", made, {**params, **more}, prompt_id="1")
        assert f"1 of 6 samples have a matching map; 1 files for {label_field}_max" in text
    assert len(listed) == 1
    form("attach_heatmaps", made, {**params, "pattern": "{stem}.jpg"}, prompt_id="1")
    form("attach_heatmaps", made, params, prompt_id="2")
    assert len(listed) == 3
