"""Operator: let the maps of a run be found in the folder that they were moved to."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms


class RelocateHeatmaps(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="relocate_heatmaps",
            label="Relocate pose heatmaps",
            description="Let the map files of a run be found in the folder that they were moved to",
            icon="/assets/icon.svg",
            dynamic=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            view_target=False,
            risk_level=types.RiskLevel.MEDIUM,
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        inputs = types.Object()
        _form(ctx, inputs)
        view = types.PromptView(label="Relocate pose heatmaps", submit_button_label="Relocate")
        return types.Property(inputs, view=view)

    def execute(self, ctx: foo.ExecutionContext) -> dict[str, Any]:
        from ..inference import relocate

        label_field, maps_dir = ctx.params["label_field"], forms.chosen_path(ctx.params.get("maps_dir"))
        count = relocate.relocate(ctx.dataset, label_field, str(maps_dir))
        summary = f"The maps of {forms.samples(count)} are looked for in {maps_dir} now."
        if not ctx.delegated:
            ctx.ops.reload_dataset()
            ctx.ops.notify(summary, variant="success")
        return {"summary": summary}

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        outputs = types.Object()
        outputs.str("summary", label="Result")
        return types.Property(outputs, view=types.View(label="Relocate pose heatmaps"))

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        label_field: str,
        maps_dir: str,
        delegate: bool = False,
    ) -> int | foo.ExecutionResult:
        """Let the maps of a run be found in the folder that they were moved to. No file is touched.

        Args:
            sample_collection: a dataset, or a view of it: a run is relocated as a whole
            label_field: of the run
            maps_dir: what the run's ``maps_dir`` has become; of attached maps, what their folder has become,
                or, of NumPy arrays, which are converted, what the ``maps_dir`` of the converted ones has become
            delegate: queue the operation for FiftyOne's delegated workers instead of running it here

        Returns:
            how many samples were changed; for ``delegate=True`` the queued operation

        Raises:
            ValueError: if there is no such run, or its maps are not in that folder
        """
        from ..inference import relocate

        dataset = sample_collection._dataset
        if not delegate:
            return relocate.relocate(dataset, label_field, maps_dir)
        found = relocate.problems(dataset, label_field, maps_dir)
        if found:
            raise ValueError(" ".join(found))
        return foo.execute_operator(
            self.uri,
            {"dataset": dataset},
            params={"label_field": label_field, "maps_dir": forms.path_param(maps_dir)},
            request_delegation=True,
        )


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..inference import relocate, runs

    roots = {name: relocate.root_of(record) for name, record in runs.list_records(ctx.dataset).items()}
    choices = types.Dropdown()
    for name, root in roots.items():
        if root:
            choices.add_choice(name, label=name, description=root)
    if not choices.values():
        forms.refuse(inputs, ["This dataset has no run with map files, so there is nothing to relocate."])
        return
    inputs.enum("label_field", choices.values(), required=True, label="Run", view=choices)
    label_field = ctx.params.get("label_field")
    if not roots.get(label_field or ""):
        return
    forms.folder(inputs, "maps_dir", "Folder", f"What {roots[label_field]} has become", required=True)
    maps_dir = forms.chosen_path(ctx.params.get("maps_dir"))
    if not maps_dir:
        return
    found = relocate.problems(ctx.dataset, label_field, maps_dir)
    if found:
        forms.refuse(inputs, found)
    else:
        forms.notice(inputs, f"The maps are there. The paths in the dataset change from {roots[label_field]} to them.")
