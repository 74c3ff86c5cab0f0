"""Operator: compare the maps of a run with labelled people, and bring its mistakes up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, reports

if TYPE_CHECKING:
    from ..evaluation.evaluate import Progress, Settings

NOT_COMPARED = "-"
JOINT = "joint_"  # begins the names of the parameters that map joints


class EvaluateHeatmaps(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="evaluate_heatmaps",
            label="Evaluate pose heatmaps",
            description="Compare heatmaps with labelled people: which joints are found, missed, shifted, swapped",
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
        return types.Property(
            inputs, view=types.PromptView(label="Evaluate pose heatmaps", submit_button_label="Evaluate")
        )

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any] | dict[str, Any]:
        from ..evaluation import evaluate

        steps = evaluate.process(
            ctx.target_view(),
            _settings(ctx),
            skip_existing=_advanced(ctx).get("skip_existing", True),
            existing=ctx.params.get("existing") or None,
        )
        return reports.carry_out(ctx, steps, _progress, _result, _outputs)

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        return _outputs(bool((ctx.results or {}).get("failures")))

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        label_field: str = "pose",
        gt_field: str = "ground_truth",
        eval_key: str = "eval",
        annotations: str | None = None,
        joints: Mapping[str, str | None] | None = None,
        threshold: float = 0.2,
        radius: float = 0.15,
        skip_existing: bool = True,
        existing: str | None = None,
        delegate: bool = False,
        progress: bool | None = None,
    ) -> Progress | foo.ExecutionResult:
        """Evaluate the maps of a run against labelled people; see docs/evaluation.md for what is written.

        Args:
            sample_collection: a dataset or view of images; it chooses samples, all of whose labels count
            label_field: of the run whose maps are judged
            gt_field: a field of ``fo.Keypoints`` with the labelled people
            eval_key: prefix of all that is written
            annotations: a COCO keypoint file of the same images, for areas, boxes and crowds, and for AP
            joints: joints of the labels and the joints of the maps that they are (None = not compared), where the names
                do not tell
            threshold: value from which on a local maximum of a map counts
            radius: in roots of the person's area: a peak that near is at its joint
            skip_existing: leave out samples that are done
            existing: where the key has an evaluation with other settings: None = error, ``"replace"`` = delete it first
            delegate: queue the operation for FiftyOne's delegated workers instead of running it here
            progress: with or without a progress bar; None = FiftyOne's default

        Returns:
            the state at the end, with counts, failures and results; for ``delegate=True`` the queued operation

        Raises:
            ValueError: if the view, a field, the key, the joints or the annotations cannot work
        """
        from ..evaluation import evaluate

        # A worker has another folder, from which a relative path would lead elsewhere.
        path = str(Path(annotations).expanduser().absolute()) if annotations else None
        settings = evaluate.Settings(label_field, gt_field, eval_key, path, joints, threshold, radius)
        if not delegate:
            return evaluate.evaluate(sample_collection, settings, skip_existing, existing, progress)
        found = evaluate.problems(sample_collection, settings, existing)
        if found:
            raise ValueError(" ".join(found))
        return foo.execute_operator(
            self.uri,
            {"view": sample_collection.view()},
            params=_params(settings, skip_existing, existing),
            request_delegation=True,
        )


# --- the form


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..evaluation import evaluate

    inputs.view_target(ctx, action_description="Evaluate the heatmaps of")
    runs, labels = _runs(ctx.dataset), _label_fields(ctx.dataset)
    if not runs:
        forms.refuse(
            inputs, ["This dataset has no heatmaps of joints. Run generate_heatmaps or attach_heatmaps first."]
        )
        return
    if not labels:
        forms.refuse(inputs, ["This dataset has no field of keypoints with labelled people to compare with."])
        return
    _choice(inputs, "label_field", "Heatmaps", runs, "The run whose maps are judged")
    _choice(
        inputs, "gt_field", "Labels", labels, "The field with the labelled people, also with those that a view hides"
    )
    inputs.str(
        "eval_key",
        required=True,
        default=evaluate.Settings.key,
        label="Key",
        description="All that is written starts with it: <key>_recall, <key>_missed and so on",
    )
    inputs.file(
        "annotations",
        label="COCO annotations",
        description="The file that the labels come from, for areas, crowds and AP; without it, areas are estimated",
        view=types.FileExplorerView(button_label="Choose a file...", choose_button_label="Choose"),
    )
    inputs.bool("advanced", default=False, label="Advanced settings", view=types.SwitchView())
    if ctx.params.get("advanced"):
        inputs.float(
            "threshold",
            default=evaluate.THRESHOLD,
            min=0.01,
            max=1,
            label="Threshold",
            description="A peak's least value",
        )
        inputs.float(
            "radius",
            default=evaluate.RADIUS,
            min=0.01,
            max=1,
            label="Radius",
            description="A peak that near is at its joint; in square roots of the person's area",
        )
        inputs.bool("skip_existing", default=True, label="Skip evaluated samples")
    _consequences(ctx, inputs)


def _choice(inputs: types.Object, name: str, label: str, values: list[str], description: str) -> None:
    choices = types.Dropdown()
    for value in values:
        choices.add_choice(value, label=value)
    inputs.enum(name, values, default=values[0], required=True, label=label, description=description, view=choices)


def _runs(dataset: fo.Dataset) -> list[str]:
    from ..inference import runs

    return list(runs.list_records(dataset))


def _label_fields(dataset: fo.Dataset) -> list[str]:
    """The keypoints fields that no run and no evaluation wrote."""
    from ..evaluation import evaluate, records
    from ..inference import runs

    written = {name for record in runs.list_records(dataset).values() for name in record.fields}
    written |= {name for record in records.list_records(dataset).values() for name in record.fields}
    return [name for name in evaluate.keypoint_fields(dataset) if name not in written]


def _joint_choices(ctx: foo.ExecutionContext, inputs: types.Object, settings: Settings) -> None:
    """A dropdown for each joint of the labels whose name does not tell which joint of the maps it is."""
    from ..evaluation import reading, skeletons
    from ..inference.joints import spoken

    known = reading.map_joints(ctx.dataset, settings.label_field)
    _, named_by = _names(ctx.dataset, settings)
    if named_by != skeletons.BY_SKELETON:
        forms.warn(inputs, "names", f"The labels have no skeleton: the names of their joints come from {named_by}.")
    for number, name in _unmatched(ctx.dataset, settings):
        choices = types.Dropdown()
        choices.add_choice(NOT_COMPARED, label="not compared")
        for joint in known:
            choices.add_choice(joint, label=spoken(joint))
        inputs.enum(
            f"{JOINT}{number}", choices.values(), default=NOT_COMPARED, label=f"'{name}' of the labels is", view=choices
        )


def _consequences(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    """Say what will be done, or why it cannot be."""
    from ..evaluation import evaluate

    view = ctx.target_view()
    try:
        settings = _settings(ctx)
        _joint_choices(ctx, inputs, settings)
    except ValueError as error:
        forms.refuse(inputs, [str(error)])
        return
    found = evaluate.problems(view, settings)
    anew = evaluate.problems(view, settings, "replace") if found else []
    if found and not anew:
        ways = types.RadioGroup()
        ways.add_choice("replace", label="Delete it and evaluate anew")
        inputs.enum("existing", ways.values(), label="This key has an evaluation with other settings", view=ways)
        found = [] if ctx.params.get("existing") else found
    if found:
        forms.refuse(inputs, anew or found)
        return
    areas = "areas and crowds from the annotations" if settings.annotations else "areas from attributes, or estimated"
    key = settings.key
    forms.notice(
        inputs,
        f"{forms.samples(len(view))}; {areas}. The fields {key}_recall, {key}_missed and so on say which images to "
        f"look at, and the labelled joints of '{settings.gt_field}' what became of them.",
    )


# --- parameters: the form's, and those of a queued operation


def _settings(ctx: foo.ExecutionContext) -> Settings:
    """Raises ValueError if they make no sense."""
    from ..evaluation.evaluate import Settings

    params = ctx.params
    names = {"label_field": "label_field", "gt_field": "gt_field", "key": "eval_key"}
    values = {name: params[param] for name, param in names.items() if params.get(param)}
    advanced = _advanced(ctx)
    values |= {name: advanced[name] for name in ("threshold", "radius") if advanced.get(name) is not None}
    settings = Settings(
        annotations=forms.chosen_path(params.get("annotations")), joints=params.get("joints") or None, **values
    )
    if any(name.startswith(JOINT) for name in params):
        chosen = {name: params.get(f"{JOINT}{number}") for number, name in _unmatched(ctx.dataset, settings)}
        mapped = {name: joint for name, joint in chosen.items() if joint not in (None, NOT_COMPARED)}
        settings = replace(settings, joints=mapped)
    return settings


def _advanced(ctx: foo.ExecutionContext) -> dict[str, Any]:
    """The parameters among which the advanced ones count: the App sends them after they were switched off, too."""
    return ctx.params if ctx.params.get("advanced", True) else {}  # a call from Python need not name the switch


def _unmatched(dataset: fo.Dataset, settings: Settings) -> list[tuple[int, str]]:
    """The joints of the labels, with their numbers, whose names do not tell which joint of the maps they are."""
    from ..evaluation import reading, skeletons

    names, _ = _names(dataset, settings)
    matched = skeletons.match_names(names, reading.map_joints(dataset, settings.label_field))
    return [(number, name) for number, name in enumerate(names) if name not in matched]


def _names(dataset: fo.Dataset, settings: Settings) -> tuple[tuple[str, ...], str]:
    """The names of the labels' joints, and where they come from."""
    from ..evaluation import evaluate, skeletons

    annotations = evaluate.read_annotations(settings)
    annotated = annotations.joints if annotations else ()
    return skeletons.label_names(dataset, settings.gt_field, settings.label_field, annotated)


def _params(settings: Settings, skip_existing: bool, existing: str | None) -> dict[str, Any]:
    """The inverse of :func:`_settings`."""
    params: dict[str, Any] = {
        "label_field": settings.label_field,
        "gt_field": settings.gt_field,
        "eval_key": settings.key,
        "advanced": True,
        "threshold": settings.threshold,
        "radius": settings.radius,
        "skip_existing": skip_existing,
    }
    if settings.annotations:
        params["annotations"] = {"absolute_path": settings.annotations}
    if settings.joints is not None:
        params["joints"] = dict(settings.joints)
    return {**params, "existing": existing} if existing else params


# --- the run


def _progress(state: Progress) -> dict[str, Any]:
    return reports.finished(state, "samples")


def _result(state: Progress) -> dict[str, Any]:
    from ..evaluation import summary

    return {
        "summary": state.summary(),
        "figures": summary.sentences(state.results or {}),
        "failures": [{"file": path, "reason": reason} for path, reason in state.failures],
    }


def _outputs(failures: bool) -> types.Property:
    outputs = types.Object()
    outputs.str("summary", label="Result")
    outputs.str("figures", label="Figures")
    if failures:
        reports.failures_table(outputs)
    return types.Property(outputs, view=types.View(label="Pose evaluation"))
