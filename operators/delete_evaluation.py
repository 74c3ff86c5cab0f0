"""Operator: delete an evaluation: its fields, what it wrote to labels, its results and its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, reports


class DeleteEvaluation(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="delete_evaluation",
            label="Delete a pose evaluation",
            description="Delete what an evaluation, a comparison or an index of poses wrote",
            icon="/assets/icon.svg",
            dynamic=True,
            execute_as_generator=True,
            view_target=False,
            risk_level=types.RiskLevel.HIGH,
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        from ..evaluation import records

        inputs = types.Object()
        known = records.list_records(ctx.dataset)
        if not known:
            forms.refuse(
                inputs, ["This dataset has no evaluation of pose heatmaps and no index, so there is nothing to delete."]
            )
        else:
            choices = types.Dropdown()
            for key, record in known.items():
                choices.add_choice(key, label=key, description=record.kind)
            inputs.enum("eval_key", choices.values(), required=True, label="Evaluation", view=choices)
            chosen = known.get(ctx.params.get("eval_key") or "")
            if chosen:
                text = f"This deletes {len(chosen.fields)} fields"
                text += f", {len(chosen.attributes)} attributes of labels" if chosen.attributes else ""
                text += f", {len(chosen.brain_keys)} brain runs" if chosen.brain_keys else ""
                forms.warn(inputs, "extent", f"{text} and the results. Maps and labels stay. It cannot be undone.")
        return types.Property(
            inputs, view=types.PromptView(label="Delete a pose evaluation", submit_button_label="Delete")
        )

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any]:
        return reports.told(ctx, _run_in_app(ctx))

    def __call__(self, sample_collection: fo.core.collections.SampleCollection, eval_key: str) -> list[str]:
        """Delete an evaluation of a dataset; the same for a view: an evaluation is deleted as a whole.

        Args:
            sample_collection: a dataset, or a view of it
            eval_key: of the evaluation

        Returns:
            the fields and attributes that were deleted

        Raises:
            ValueError: if there is no such evaluation
        """
        from ..evaluation import records

        return records.delete(sample_collection._dataset, eval_key)


def _run_in_app(ctx: foo.ExecutionContext) -> Iterator[Any]:
    from ..evaluation import records

    key = ctx.params["eval_key"]
    deleted = records.delete(ctx.dataset, key)
    yield ctx.ops.set_active_fields([name for name in ctx.active_fields if name not in deleted])
    yield ctx.ops.reload_dataset()
    yield ctx.ops.notify(f"The evaluation '{key}' is deleted.", variant="success")
