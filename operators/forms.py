"""Pieces that the forms of the operators share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

SECONDS_TO_RELOAD = 2


def chosen_path(value: object) -> str | None:
    """The path that a file browser or a Python caller put into a parameter."""
    path = value.get("absolute_path") if isinstance(value, dict) else value
    return str(path) if path else None


def path_param(path: str | Path) -> dict[str, str]:
    """The parameter of a queued operation that :func:`chosen_path` reads; a worker may run in another folder."""
    return {"absolute_path": str(Path(path).expanduser().absolute())}


def label_field(inputs: types.Object, dataset: fo.Dataset) -> None:
    """A text field for the prefix of the run's fields that offers the prefixes in use."""
    from ..inference.runs import list_records

    known = list(list_records(dataset))
    inputs.str(
        "label_field",
        required=True,
        default="pose",
        label="Label field",
        description="The fields are called <label field>_max, _left_wrist and so on",
        view=types.AutocompleteView(choices=[types.Choice(name, label=name) for name in known]) if known else None,
    )


def folder(inputs: types.Object, name: str, label: str, description: str, required: bool = False) -> None:
    inputs.file(
        name,
        required=required,
        label=label,
        description=description,
        view=types.FileExplorerView(choose_dir=True, button_label="Choose a folder...", choose_button_label="Choose"),
    )


def notice(inputs: types.Object, text: str) -> None:
    """What will happen."""
    inputs.view("notice", types.Notice(label=text))


def warn(inputs: types.Object, name: str, text: str) -> None:
    """What the user should know, but may ignore."""
    inputs.view(f"{name}_warning", types.Warning(label=text))


def refuse(inputs: types.Object, problems: list[str]) -> None:
    """Say why the form cannot be executed, and keep it from being executed."""
    for number, problem in enumerate(problems):
        refused = inputs.view(f"problem_{number}", types.Error(label=problem))
        refused.invalid = True


def show_fields(ctx: foo.ExecutionContext, shown: list[str], colors_before: dict[str, str]) -> Iterator[Any]:
    """Make the App load what a run added, and switch fields on."""
    from ..inference.runs import field_colors

    yield ctx.ops.reload_dataset()
    yield ctx.ops.set_active_fields([*ctx.active_fields, *(name for name in shown if name not in ctx.active_fields)])
    if field_colors(ctx.dataset) != colors_before:
        # Only this makes the App take over the dataset's colours, and only once it has loaded the dataset. Nothing
        # tells when it has.
        time.sleep(SECONDS_TO_RELOAD)
        yield ctx.trigger("reset_color_scheme")


def size(count: float) -> str:
    """Bytes for people: 90 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: about 4 minutes."""
    for limit, unit, unit_seconds in ((90, "second", 1), (90 * 60, "minute", 60), (36 * 3600, "hour", 3600)):
        if seconds < limit:
            count = max(1, round(seconds / unit_seconds))
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{round(seconds / 86400)} days"


def samples(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
