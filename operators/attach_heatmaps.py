"""Operator: attach maps that another tool saved, matched to the images by their file names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, reports

if TYPE_CHECKING:
    from ..inference.attach import Attached
    from ..inference.file_index import Index, Matching

FIELDS_NAMED = 20
LOOKED_AT = 20_000  # images and files that the form looks at to say what fits; executing looks at all

_looked_up: dict[tuple[object, ...], Index] = {}  # the last one


class AttachHeatmaps(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="attach_heatmaps",
            label="Attach saved heatmaps",
            description="Show heatmaps that another tool saved, matched to the images by their file names",
            icon="/assets/icon.svg",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            risk_level=types.RiskLevel.MEDIUM,
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        inputs = types.Object()
        _form(ctx, inputs)
        return types.Property(inputs, view=types.View(label="Attach saved heatmaps"))

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any] | dict[str, Any]:
        from ..inference import attach

        label_field = ctx.params.get("label_field") or "pose"
        steps = attach.process(ctx.target_view(), _matching(ctx.params), label_field)
        if ctx.delegated:
            return _run_delegated(ctx, steps)
        return reports.told(ctx, _run_in_app(ctx, steps, label_field))

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        return _outputs()

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        maps_dir: str,
        label_field: str = "pose",
        pattern: str = "{stem}.png",
        joint_pattern: str = "{stem}_{joint}.png",
        match: str = "name",
        rel_dir: str | None = None,
        range: Sequence[float] | None = None,
        delegate: bool = False,
        progress: bool | None = None,
    ) -> Attached | foo.ExecutionResult:
        """Attach saved maps to the samples of a dataset or view.

        PNG, JPG and TIFF files are referenced where they are; 16-bit images get the range [0, 65535] if none is given.
        NumPy files are converted to 8-bit PNG in the dataset's folder of maps.

        Args:
            sample_collection: a dataset or view of images
            maps_dir: folder with the maps; folders inside it are searched too
            label_field: prefix of the fields
            pattern: how the files of maximum maps are called; empty = there are none
            joint_pattern: how the files of single joints are called; empty = there are none
            match: ``"name"`` = the image's name decides; ``"relative path"`` = the folder of a map below ``maps_dir``
                must also be that of its image below ``rel_dir``
            rel_dir: None = the folder that all images of the dataset have in common
            range: the values that mean nothing and certainty; needed for ``.npy``
            delegate: queue the operation for FiftyOne's delegated workers instead of running it here
            progress: with or without a progress bar; None = FiftyOne's default

        Returns:
            how it went, with counts and the first images without a map; for ``delegate=True`` the queued operation

        Raises:
            ValueError: before anything is written, if something cannot work, nothing fits, or names are ambiguous
        """
        from ..inference import attach
        from ..inference.file_index import Matching

        matching = Matching(
            str(maps_dir), pattern or "", joint_pattern or "", match, rel_dir, _pair(range) if range else None
        )
        if not delegate:
            return attach.attach(sample_collection, matching, label_field, progress)
        found = attach.problems(sample_collection, matching, label_field)
        if found:
            raise ValueError(" ".join(found))
        return foo.execute_operator(
            self.uri,
            {"view": sample_collection.view()},
            params=_params(matching, label_field),
            request_delegation=True,
        )


# --- the form


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..inference.file_index import JOINT_PATTERN, MATCHES, PATTERN

    inputs.view_target(ctx, action_description="Attach heatmaps to")
    forms.label_field(inputs, ctx.dataset)
    forms.folder(inputs, "maps_dir", "Folder with the maps", "Folders inside it are searched too", required=True)
    inputs.str(
        "pattern",
        default=PATTERN,
        label="Maximum maps",
        description="How their files are called: {stem} is the image's name without its extension. Empty: none",
    )
    inputs.str(
        "joint_pattern",
        default=JOINT_PATTERN,
        label="Maps of single joints",
        description="{joint} becomes the end of the field's name, for example left_wrist. Empty: none",
    )
    ways = types.RadioGroup(orientation="horizontal")
    ways.add_choice(MATCHES[0], label="The image's name decides")
    ways.add_choice(MATCHES[1], label="Its folder too")
    inputs.enum("match", ways.values(), default=MATCHES[0], label="What belongs together", view=ways)
    if ctx.params.get("match") == MATCHES[1]:
        forms.folder(inputs, "rel_dir", "Folder of the images", "By default the one that all images have in common")
    inputs.str(
        "range",
        label="Range of the values",
        description="The values for nothing and certainty, such as: 0, 1. NumPy files need it; images rarely do",
    )
    if forms.chosen_path(ctx.params.get("maps_dir")):
        _consequences(ctx, inputs)


def _consequences(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    """Say what fits, or why nothing can be attached."""
    from ..inference import attach, runs

    view, label_field = ctx.target_view(), ctx.params.get("label_field") or "pose"
    try:
        matching = _matching(ctx.params)
        found = attach.problems(view, matching, label_field)
        if found:
            forms.refuse(inputs, found)
            return
        index = _index(ctx, view, matching)
    except ValueError as error:
        forms.refuse(inputs, [str(error)])
        return
    fields = [runs.field_name(label_field, name) for name in index.names()]
    found = runs.conflicts(ctx.dataset, dict.fromkeys(fields, fo.Heatmap))
    unknown = attach.unknown_problem(ctx.dataset, label_field, [*fields, runs.field_name(label_field, "status")])
    if found or unknown:
        forms.refuse(inputs, found or [str(unknown)])
        return
    if not index.complete:
        text = f"At least {index.matched():,} of the first {index.samples:,} samples have a matching map"
        forms.notice(inputs, f"{text}; the rest of the folder is listed when this runs.")
        return
    text = f"{index.matched():,} of {index.samples:,} samples have a matching map"
    more = f" and {len(fields) - FIELDS_NAMED} more fields" if len(fields) > FIELDS_NAMED else ""
    forms.notice(inputs, f"{text}; {index.files():,} files for {', '.join(fields[:FIELDS_NAMED])}{more}.")


def _index(ctx: foo.ExecutionContext, view: fo.core.collections.SampleCollection, matching: Matching) -> Index:
    """What fits, of the first images and files: an open form lists them once, whatever else is typed.

    Raises:
        ValueError: if nothing fits, or if it is not clear what belongs together
    """
    from ..inference.file_index import Index

    form = ctx.request_params.get("prompt_id")
    stages = json.dumps(view.view()._serialize(include_uuids=False), default=str)
    key = (form, view._dataset.name, stages, replace(matching, range=None))
    found = _looked_up.get(key) if form else None
    if found is None:
        found = Index(view, matching, limit=LOOKED_AT)
        if found.complete:
            found.check()
        _looked_up.clear()
        _looked_up[key] = found
    return found


# --- parameters: the form's, and those of a queued operation


def _matching(params: dict[str, Any]) -> Matching:
    """Raises ValueError if the range is not one."""
    from ..inference.file_index import JOINT_PATTERN, MATCHES, PATTERN, Matching

    match = params.get("match") or MATCHES[0]
    return Matching(
        maps_dir=forms.chosen_path(params.get("maps_dir")) or "",
        pattern=params.get("pattern", PATTERN) or "",
        joint_pattern=params.get("joint_pattern", JOINT_PATTERN) or "",
        match=match,
        rel_dir=forms.chosen_path(params.get("rel_dir")) if match == MATCHES[1] else None,
        range=_pair(params["range"].replace(",", " ").split()) if params.get("range") else None,
    )


def _pair(values: Sequence[float | str]) -> tuple[float, float]:
    try:
        low, high = map(float, values)
    except ValueError:
        raise ValueError(f"A range is two numbers such as: 0, 1. This is not: {', '.join(map(str, values))}") from None
    return low, high


def _params(matching: Matching, label_field: str) -> dict[str, Any]:
    """The inverse of :func:`_matching`."""
    params: dict[str, Any] = {name: getattr(matching, name) for name in ("pattern", "joint_pattern", "match")}
    paths = {"maps_dir": matching.maps_dir, "rel_dir": matching.rel_dir}
    params |= {name: forms.path_param(path) for name, path in paths.items() if path}
    if matching.range:
        params["range"] = ", ".join(map(str, matching.range))
    return {**params, "label_field": label_field}


# --- the run


def _run_in_app(ctx: foo.ExecutionContext, steps: Iterator[Attached], label_field: str) -> Iterator[Any]:
    from ..inference.runs import field_colors

    colors = field_colors(ctx.dataset)
    state = next(steps)
    for state in steps:
        yield ctx.ops.set_progress(
            progress=state.seen / max(state.total, 1), label=f"{state.seen} of {state.total} samples"
        )
    yield from forms.show_fields(ctx, [name for name in state.fields if name == f"{label_field}_max"], colors)
    yield ctx.ops.notify(state.summary(), variant="warning" if state.done < state.total else "success")


def _run_delegated(ctx: foo.ExecutionContext, steps: Iterator[Attached]) -> dict[str, Any]:
    state = next(steps)
    for state in steps:
        ctx.set_progress(progress=state.seen / max(state.total, 1), label=f"{state.seen} of {state.total} samples")
    return {"summary": state.summary(), "fields": ", ".join(state.fields)}


def _outputs() -> types.Property:
    outputs = types.Object()
    outputs.str("summary", label="Result")
    outputs.str("fields", label="Fields")
    return types.Property(outputs, view=types.View(label="Attached heatmaps"))
