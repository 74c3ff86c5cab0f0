"""Operator: compare two runs, or one run with itself on mirrored images, and write where they disagree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from ..inference.joints import spoken
from ..inference.runs import FLIP
from . import forms, reports

if TYPE_CHECKING:
    from ..evaluation.comparison import Progress


class CompareRuns(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="compare_runs",
            label="Compare pose heatmaps",
            description="Find where two runs disagree, or a model with itself on mirrored images; no labels needed",
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
        return types.Property(inputs, view=types.View(label="Compare pose heatmaps"))

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any] | dict[str, Any]:
        from ..evaluation import comparison

        steps = comparison.process(
            ctx.target_view(),
            *_choices(ctx.params),
            skip_existing=ctx.params.get("skip_existing", True),
            num_readers=ctx.params.get("num_readers"),
            device=ctx.params.get("device"),
        )
        return reports.carry_out(ctx, steps, reports.finished, _result, _outputs)

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        return _outputs(bool((ctx.results or {}).get("failures")))

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        label_field: str = "pose",
        other_field: str = FLIP,
        compare_key: str | None = None,
        skip_existing: bool = True,
        num_readers: int | None = None,
        device: str | None = None,
        delegate: bool = False,
        progress: bool | None = None,
    ) -> Progress | foo.ExecutionResult:
        """Compare two runs of a dataset or view.

        Every sample gets ``<compare_key>_distance`` (of the peaks, in sizes of the people) and
        ``<compare_key>_divergence`` (Jensen-Shannon, of the normalised maps), 0 to 1, and both for each joint.

        Args:
            sample_collection: a dataset or view of images; it chooses samples, all of whose people count
            label_field: of the one run
            other_field: of the other run, or ``"flip"``: the run's model looks at each image and at its mirror image
            compare_key: prefix of the fields; None = ``<label_field>_vs_<other_field>``
            skip_existing: leave out samples that were compared; those with an error are tried again
            num_readers: threads that decode maps or images; None = automatic
            device: of the network, for ``"flip"``; None = the best there is
            delegate: queue the operation for FiftyOne's delegated workers instead of running it here
            progress: with or without a progress bar; None = FiftyOne's default

        Returns:
            how it went, with counts, failures and results; for ``delegate=True`` the queued operation

        Raises:
            ValueError: before anything is written, if something cannot work
        """
        from ..evaluation import comparison

        params = {"label_field": label_field, "other_field": other_field, "compare_key": compare_key}
        chosen = _choices(params)
        if not delegate:
            return comparison.compare(
                sample_collection,
                *chosen,
                skip_existing=skip_existing,
                num_readers=num_readers,
                device=device,
                progress=progress,
            )
        found = comparison.problems(sample_collection, *chosen)
        if found:
            raise ValueError(" ".join(found))
        return foo.execute_operator(
            self.uri,
            {"view": sample_collection.view()},
            params={
                **params,
                "compare_key": chosen[2],
                "skip_existing": skip_existing,
                "num_readers": num_readers,
                "device": device,
            },
            request_delegation=True,
        )


def _choices(params: dict[str, Any]) -> tuple[str, str, str]:
    """Label field, other field and key."""
    label_field, other_field = params.get("label_field") or "pose", params.get("other_field") or FLIP
    return label_field, other_field, params.get("compare_key") or f"{label_field}_vs_{other_field}"


# --- the form


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..evaluation import comparison
    from ..inference import runs

    inputs.view_target(ctx, action_description="Compare the maps of")
    found = list(runs.list_records(ctx.dataset))
    if not found:
        forms.refuse(inputs, ["This dataset has no run of pose heatmaps. Run generate_heatmaps first."])
        return
    first = types.Dropdown()
    for name in found:
        first.add_choice(name, label=name)
    inputs.enum("label_field", first.values(), default=found[0], required=True, label="Run", view=first)
    params = {**ctx.params, "label_field": ctx.params.get("label_field") or found[0]}
    second = types.Dropdown()
    second.add_choice(
        FLIP, label="itself, mirrored", description="The run's model looks at each image and its mirror image"
    )
    for name in found:
        if name not in (params["label_field"], FLIP):
            second.add_choice(name, label=name)
    inputs.enum("other_field", second.values(), default=FLIP, required=True, label="Compared with", view=second)
    default = _choices({**params, "compare_key": None})[2]
    inputs.str("compare_key", label="Key", description=f"What the new fields begin with; empty: {default}")
    inputs.bool(
        "skip_existing", default=True, label="Skip finished samples", description="Those with an error are tried again"
    )
    problems = comparison.problems(ctx.target_view(), *_choices(params))
    if problems:
        forms.refuse(inputs, problems)
        return
    _, other, key = _choices(params)
    what = "The model runs twice on every image" if other == FLIP else "The maps of both runs are read"
    forms.notice(
        inputs,
        f"{forms.samples(len(ctx.target_view()))}. {what}. Sort by {key}_distance or {key}_divergence afterwards.",
    )


# --- the run


def _result(state: Progress) -> dict[str, Any]:
    joints = state.results.get("joints", {})
    worst_first = sorted(joints.items(), key=lambda item: -(item[1]["divergence"] or 0))
    return {
        "summary": state.summary(),
        "joints": [
            {
                "joint": spoken(joint),
                "distance": _share(values["distance"]),
                "divergence": _share(values["divergence"]),
                "samples": values["samples"],
            }
            for joint, values in worst_first
        ],
        "failures": [{"file": path, "reason": reason} for path, reason in state.failures],
    }


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _outputs(failures: bool) -> types.Property:
    outputs = types.Object()
    outputs.str("summary", label="Result")
    table = types.TableView()
    table.add_column("joint", label="Joint")
    table.add_column("distance", label="Distance of peaks")
    table.add_column("divergence", label="Divergence of maps")
    table.add_column("samples", label="Images with it")
    outputs.list("joints", types.Object(), label="Disagreement by joint, largest first", view=table)
    if failures:
        reports.failures_table(outputs)
    return types.Property(outputs, view=types.View(label="Comparison of pose heatmaps"))
