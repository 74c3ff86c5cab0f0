"""A run of generate_heatmaps as an operation: its parameters, and how the App, a worker and shards execute it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, reports

if TYPE_CHECKING:
    from ..inference.pipeline import Progress
    from ..inference.settings import Settings

ADVANCED = (
    "floor",
    "dtype",
    "input_size",
    "flip",
    "scales",
    "precision",
    "batch_size",
    "num_readers",
    "device",
    "all_groups",
)

# --- parameters: the form's, and those of a queued operation


def shown(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without the values of fields that the form hides again: the App keeps and sends them."""
    from ..inference import checkpoints

    if params.get("advanced", True):  # Python callers need not say so
        return params
    model = checkpoints.MODELS.get(params.get("model") or checkpoints.DEFAULT_MODEL)
    hidden = {*ADVANCED, "shards", "skip_existing", *(["checkpoint"] if model is None or model.bundled else [])}
    return {name: value for name, value in params.items() if name not in hidden}


def settings_of(params: dict[str, Any]) -> Settings:
    """Raises ValueError, with what to do, if they make no sense."""
    from ..inference.settings import Settings

    params = shown(params)
    choice = params.get("maps") or "all"
    chosen = (*(("max",) if params.get("maximum", True) else ()), *(params.get("joints") or ()))
    maps = {"all": ("max", "joints"), "max": ("max",)}.get(choice, chosen)
    values: dict[str, Any] = {name: params[name] for name in ADVANCED if params.get(name) not in (None, "")}
    storage = params.get("storage") or "files"
    if storage == "files":
        values.pop("dtype", None)  # chosen before the storage was changed in the form
    if "scales" in values:
        values["scales"] = _scales(values["scales"])
    for name in ("label_field", "model", "keypoints", "resolution"):
        if params.get(name) is not None:
            values[name] = params[name]
    return Settings(
        maps=maps,
        storage=storage,
        checkpoint=forms.chosen_path(params.get("checkpoint")),
        maps_dir=forms.chosen_path(params.get("maps_dir")) if storage == "files" else None,
        **values,
    )


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"Scales are numbers such as: 0.5, 1, 2. This is not: {text}") from None


def params_of(settings: Settings, skip_existing: bool, existing: str | None) -> dict[str, Any]:
    """The inverse of :func:`settings_of`."""
    from ..inference import checkpoints

    always = ("label_field", "model", "keypoints", "storage", "resolution", "dtype", "floor")
    names = (*always, "flip", "precision", "all_groups")
    optional = ("input_size", "batch_size", "num_readers", "device")
    params = {name: getattr(settings, name) for name in names}
    params |= {name: getattr(settings, name) for name in optional if getattr(settings, name) is not None}
    paths = {"checkpoint": settings.checkpoint, "maps_dir": settings.maps_dir}
    params |= {name: forms.path_param(path) for name, path in paths.items() if path}
    joints = [name for name in settings.maps if name != "max"]
    known = checkpoints.find_model(settings.model, settings.checkpoint).joint_set.joints
    if "max" in settings.maps and ("joints" in joints or {*known} <= {*joints}):
        params["maps"] = "all"
    elif not joints:
        params["maps"] = "max"
    else:
        params |= {"maps": "some", "joints": joints, "maximum": "max" in settings.maps}
    params |= {"scales": ", ".join(map(str, settings.scales)), "skip_existing": skip_existing, "advanced": True}
    return {**params, "existing": existing} if existing else params


def params_to_continue(dataset: fo.Dataset, label_field: str) -> dict[str, Any] | None:
    """The parameters with which a run goes on with other samples; None where it cannot."""
    from ..inference import runs
    from ..inference.settings import Settings

    record = runs.read_record(dataset, label_field)
    if record is None or record.adopted or record.dataset_id != runs.dataset_id(dataset):
        return None
    names = Settings.__dataclass_fields__
    recorded = {name: value for name, value in record.settings.items() if name in names and value is not None}
    try:
        return params_of(Settings(label_field, **{**recorded, "maps": tuple(recorded["maps"])}), True, None)
    except (KeyError, ValueError):  # of another version of the plugin, say of a model that this one does not know
        return None


def choices(params: dict[str, Any]) -> tuple[bool, str | None]:
    """Whether to skip what is done, and what to do with maps of other settings."""
    return shown(params).get("skip_existing", True), params.get("existing") or None


def shards_of(params: dict[str, Any]) -> int:
    return shown(params).get("shards") or 1


def is_queued(ctx: foo.ExecutionContext) -> bool:
    """Whether a worker executes the operation, or Python queues a part of it: its form is not looked at."""
    return bool(ctx.delegated or ctx.params.get("shard"))


def part_of(params: dict[str, Any]) -> str:
    """For people, which part of a run an operation is; empty if it is all of it."""
    shard = params.get("shard")
    return f", part {shard['number']} of {shard['of']}" if shard else ""


# --- queueing


def queue(
    uri: str,
    target: fo.core.collections.SampleCollection,
    settings: Settings,
    count: int,
    skip_existing: bool,
    existing: str | None,
) -> list[foo.ExecutionResult]:
    """Queue a run for FiftyOne's delegated workers, in ``count`` shards (fewer if there are fewer samples).

    Raises:
        ValueError: if the run cannot work, or the view cannot be split
    """
    from ..inference import checkpoints, pipeline, recording, weights
    from ..inference.shards import split

    found = pipeline.problems(target, settings, existing)
    if found:
        raise ValueError(" ".join(found))
    if count == 1:
        return [_queue(uri, target.view(), params_of(settings, skip_existing, existing))]
    dataset: fo.Dataset = target._dataset
    resolved = settings.resolved(dataset)
    entry = checkpoints.find_model(settings.model, settings.checkpoint)
    parts = split(target, count, recording.written_fields(dataset, resolved, entry.joint_set))
    # One record for all of them, made here: no shard replaces what another one has made.
    found_weights = weights.find(entry, settings.checkpoint) or weights.fetch(entry)
    record = recording.open_record(dataset, resolved, entry, found_weights.sha256, existing)
    params = params_of(settings, skip_existing, existing if existing == "append" else None)
    queued = []
    for number, part in enumerate(parts, 1):
        shard = {"number": number, "of": len(parts), "run_id": record.run_id, "first": part.first, "last": part.last}
        queued.append(_queue(uri, part.view, {**params, "shard": shard}))
    return queued


def _queue(uri: str, view: fo.DatasetView, params: dict[str, Any]) -> foo.ExecutionResult:
    return foo.execute_operator(uri, {"view": view}, params=params, request_delegation=True)


def report_queued(ctx: foo.ExecutionContext, count: int) -> Iterator[Any] | dict[str, Any]:
    """Tell a user, or the worker that has split a scheduled run, how many operations there are now."""
    summary = f"{count} operations are queued, for workers: `fiftyone delegated launch`."

    def tell() -> Iterator[Any]:
        yield ctx.ops.reload_dataset()
        yield ctx.ops.notify(summary, variant="success")

    return {"summary": summary} if ctx.delegated else tell()


# --- the run


def _process(ctx: foo.ExecutionContext) -> Iterator[Progress]:
    from ..inference import pipeline
    from ..inference.shards import Shard

    view, shard = ctx.target_view(), ctx.params.get("shard") or {}
    if shard:
        view = Shard(view.view(), shard["first"], shard["last"]).select()
    skip_existing, existing = choices(ctx.params)
    return pipeline.process(
        view,
        settings_of(ctx.params),
        skip_existing=skip_existing,
        existing=existing,
        run_id=shard.get("run_id"),
    )


def _fetch(settings: Settings) -> Iterator[dict[str, Any]]:
    """Fetch the weights if they are not here; how far that is, as FiftyOne's progress."""
    from ..inference import checkpoints, weights

    entry = checkpoints.find_model(settings.model, settings.checkpoint)
    if weights.find(entry, settings.checkpoint):
        return
    for received in reports.now_and_then(weights.fetch_steps(entry), reports.SECONDS_BETWEEN_REPORTS):
        of = f" of {forms.size(received.total)}" if received.total else ""
        share = received.count / received.total if received.total else 0
        yield {"progress": share, "label": f"{forms.size(received.count)}{of} of weights fetched"}


def run_in_app(ctx: foo.ExecutionContext) -> Iterator[Any]:
    """Run, and let the App show how far it is."""
    from ..inference import runs

    for progress in _fetch(settings_of(ctx.params)):
        yield ctx.ops.set_progress(**progress)
    colors = runs.field_colors(ctx.dataset)
    steps = _process(ctx)
    state = next(steps)
    for _ in reports.now_and_then(steps, reports.SECONDS_BETWEEN_REPORTS):
        yield ctx.ops.set_progress(**reports.finished(state))
    label_field = settings_of(ctx.params).label_field
    shown = [name for name in state.fields if name in (f"{label_field}_max", f"{label_field}_keypoints")]
    yield from forms.show_fields(ctx, shown, colors)
    yield ctx.ops.notify(state.summary(), variant="warning" if state.failed else "success")
    if state.failed or state.warnings:
        yield ctx.ops.show_output(outputs().to_json(), _result(state))


def run_delegated(ctx: foo.ExecutionContext) -> dict[str, Any]:
    """Run, and keep in the operation's status how far it is."""
    for progress in _fetch(settings_of(ctx.params)):
        ctx.set_progress(**progress)
    steps = _process(ctx)
    state = next(steps)
    begun = time.monotonic()
    ctx.set_progress(progress=0, label=f"{state.total:,} to do, {state.skipped:,} done before")
    for _ in reports.now_and_then(steps, reports.SECONDS_BETWEEN_STATUSES):
        share = (state.done + state.failed) / max(state.total, 1)
        ctx.set_progress(progress=share, label=_status(state, time.monotonic() - begun))
    ctx.set_progress(progress=1, label=_status(state, time.monotonic() - begun))
    return _result(state)


def _status(state: Progress, seconds: float) -> str:
    finished = state.done + state.failed
    rate = finished / max(seconds, 1e-6)
    left = state.total - finished
    label = f"{state.done:,} done, {state.failed:,} failed of {state.total:,}, {rate:.1f} images/s"
    return f"{label}, {forms.duration(left / rate)} left" if left and rate else label


def _result(state: Progress) -> dict[str, Any]:
    return {
        "summary": state.summary(),
        "maps_dir": state.maps_dir or "in the database",
        "done": state.done,
        "failed": state.failed,
        "skipped": state.skipped,
        "failures": [{"file": path, "reason": reason} for path, reason in (*state.failures, *state.warnings)],
    }


def outputs() -> types.Property:
    outputs = types.Object()
    outputs.str("summary", label="Result")
    outputs.str("maps_dir", label="Maps")
    reports.failures_table(outputs)
    return types.Property(outputs, view=types.View(label="Pose heatmaps"))
