"""Operator: make a small safe file of a checkpoint, which the plugin uses in its place from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms


class ConvertCheckpoint(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="convert_checkpoint",
            label="Convert a pose checkpoint",
            description="Make a small safe file of a HigherHRNet checkpoint, which is used in its place from then on",
            icon="/assets/icon.svg",
            dynamic=True,
            view_target=False,
            risk_level=types.RiskLevel.LOW,
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        inputs = types.Object()
        _form(ctx, inputs)
        return types.Property(inputs, view=types.View(label="Convert a pose checkpoint"))

    def execute(self, ctx: foo.ExecutionContext) -> dict[str, Any]:
        source = str(forms.chosen_path(ctx.params.get("checkpoint")))
        target = self(source, model=ctx.params.get("model") or None, half=ctx.params.get("half", False))
        sizes = [forms.size(Path(path).expanduser().stat().st_size) for path in (target, source)]
        return {"summary": f"{target}: {sizes[0]}, made of {sizes[1]}."}

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        outputs = types.Object()
        outputs.str("summary", label="Result")
        return types.Property(outputs, view=types.View(label="Converted checkpoint"))

    def __call__(self, checkpoint: str, target: str | None = None, model: str | None = None, half: bool = False) -> str:
        """Convert a checkpoint to safetensors, without optimiser and layers that only training needs.

        Args:
            checkpoint: in any layout that the plugin reads
            target: path of the new file; None = beside the checkpoint, where it is used in its place from then on, or,
                with a model, where that model's own weights are kept
            model: the published model whose own weights these are
            half: in half precision: half the size, and heatmap values that differ by about a thousandth

        Returns:
            the path of the new file

        Raises:
            ValueError: if the checkpoint cannot be used, or the file cannot be written
        """
        from ..inference import checkpoints

        return str(checkpoints.convert(checkpoint, target, name=model, half=half))


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..inference import checkpoints

    inputs.file(
        "checkpoint",
        required=True,
        label="Checkpoint",
        description="A PyTorch or safetensors file with the weights of a HigherHRNet",
        view=types.FileExplorerView(button_label="Choose a file...", choose_button_label="Choose"),
    )
    models = types.Dropdown()
    for entry in checkpoints.MODELS.values():
        if entry.source and not entry.bundled:
            models.add_choice(entry.name, label=entry.name)
    inputs.enum(
        "model",
        models.values(),
        label="Published model",
        description="If these are its weights: the model needs no checkpoint any more",
        view=models,
    )
    inputs.bool("half", default=False, label="Half precision", description="Half the size, almost the same maps")
    source = forms.chosen_path(ctx.params.get("checkpoint"))
    if not source:
        return
    path = Path(source).expanduser()
    try:
        network = checkpoints.examine(path)
        target = checkpoints.conversion_target(path, ctx.params.get("model") or None)
    except ValueError as error:
        forms.refuse(inputs, [str(error)])
        return
    tags = "one tag for all" if network.shared_tag else "a tag each"
    what = f"A HigherHRNet of width {network.width} with {network.joints} joints and {tags}"
    again = " There is a file already; it will be replaced." if target.is_file() else ""
    forms.notice(inputs, f"{what}, {forms.size(path.stat().st_size)}. The new file is {target}.{again}")
