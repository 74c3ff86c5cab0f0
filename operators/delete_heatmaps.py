"""Operator: delete a run: its fields, colours, skeleton, record, and the files that it made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, reports


class DeleteHeatmaps(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="delete_heatmaps",
            label="Delete pose heatmaps",
            description="Delete the fields and the map files of a run",
            icon="/assets/icon.svg",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            view_target=False,
            risk_level=types.RiskLevel.HIGH,
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        inputs = types.Object()
        _form(ctx, inputs)
        return types.Property(inputs, view=types.PromptView(label="Delete pose heatmaps", submit_button_label="Delete"))

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any] | dict[str, Any]:
        from ..inference import removal

        steps = removal.delete(ctx.dataset, ctx.params["label_field"], ctx.params.get("delete_files", True))
        return _run_delegated(ctx, steps) if ctx.delegated else reports.told(ctx, _run_in_app(ctx, steps))

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        outputs = types.Object()
        outputs.str("summary", label="Result")
        return types.Property(outputs, view=types.View(label="Delete pose heatmaps"))

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        label_field: str,
        delete_files: bool = True,
        delegate: bool = False,
    ) -> int | foo.ExecutionResult:
        """Delete a run of a dataset; the same for a view: a run is deleted as a whole.

        Files that the run did not make stay: attached originals, and those of the dataset that this one is a clone of.

        Args:
            sample_collection: a dataset, or a view of it
            label_field: of the run
            delete_files: also delete the map files that the run made
            delegate: queue the operation for FiftyOne's delegated workers instead of running it here

        Returns:
            how many files were deleted; for ``delegate=True`` the queued operation

        Raises:
            ValueError: if there is no such run
        """
        from ..inference import removal, runs

        dataset = sample_collection._dataset
        if runs.read_record(dataset, label_field) is None or not delegate:
            *_, count = removal.delete(dataset, label_field, delete_files)
            return count
        return foo.execute_operator(
            self.uri,
            {"dataset": dataset},
            params={"label_field": label_field, "delete_files": delete_files},
            request_delegation=True,
        )


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..inference import removal, runs

    records = runs.list_records(ctx.dataset)
    if not records:
        forms.refuse(inputs, ["This dataset has no run of pose heatmaps, so there is nothing to delete."])
        return
    choices = types.Dropdown()
    for name, record in records.items():
        choices.add_choice(name, label=name, description=record.settings.get("model") or "attached maps")
    inputs.enum("label_field", choices.values(), required=True, label="Run", view=choices)
    chosen = records.get(ctx.params.get("label_field") or "")
    if chosen is None:
        return
    extent = removal.extent(ctx.dataset, chosen)
    files = bool(extent.folders)
    if files:
        inputs.bool("delete_files", default=True, label="Files", description="Also delete the map files of the run")
    text = f"This deletes {len(extent.fields)} fields with the maps of {forms.samples(extent.samples)}"
    if files and ctx.params.get("delete_files", True):
        about = f"about {extent.files:,} map files ({forms.size(extent.bytes)})"
        what = about if extent.files else "the files that are left"  # of a deletion that was killed
        text += f", and {what} in {', '.join(extent.folders)}. Files that a clone of this dataset shows stay"
    elif not files and chosen.adopted:
        text += ". The map files stay: the run did not make them"
    elif not files and chosen.dataset_id != runs.dataset_id(ctx.dataset):
        text += ". The map files stay: they belong to the dataset that this one is a clone of"
    forms.warn(inputs, "extent", f"{text}. It cannot be undone.")


def _run_in_app(ctx: foo.ExecutionContext, steps: Iterator[int]) -> Iterator[Any]:
    from ..inference import runs

    record = runs.read_record(ctx.dataset, ctx.params["label_field"])
    fields = record.fields if record else ()
    count = 0
    for count in steps:
        yield ctx.ops.set_progress(label=f"{count:,} files deleted")
    yield ctx.ops.set_progress(progress=1, label=f"{count:,} files deleted")
    yield ctx.ops.set_active_fields([name for name in ctx.active_fields if name not in fields])
    yield ctx.ops.reload_dataset()
    yield ctx.ops.notify(_summary(ctx, count), variant="success")


def _run_delegated(ctx: foo.ExecutionContext, steps: Iterator[int]) -> dict[str, Any]:
    count = 0
    for count in steps:
        ctx.set_progress(label=f"{count:,} files deleted")
    return {"summary": _summary(ctx, count)}


def _summary(ctx: foo.ExecutionContext, count: int) -> str:
    return f"The run '{ctx.params['label_field']}' and {count:,} map files are deleted."
