"""The pieces that the panels are drawn with, in the look of the App: rows, captions, buttons, and the table of joints.

FiftyOne hands `componentsProps` on to the components of its App (MUI), which is how they get their colours and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import fiftyone.operators.types as types

from . import state

ACCENT = "var(--fo-palette-primary-main)"
TEXT = "var(--fo-palette-text-primary)"
FAINT = "var(--fo-palette-text-secondary)"
FIELD = "var(--fo-palette-background-field)"
PLAIN = "#9aa0a6"  # of joints that nobody gave a colour

Handler = Callable[..., Any]


# One style sheet on the body of a panel: a style on each of forty buttons would be most of what a click has to carry.
STYLE = {
    "& button": {
        "color": FAINT,
        "fontSize": "0.85rem",
        "fontWeight": 500,
        "lineHeight": 1.4,
        "padding": "3px 9px",
        "minWidth": 0,
        "borderRadius": "6px",
        "borderColor": "transparent",
        "backgroundColor": FIELD,
        "whiteSpace": "nowrap",
    },
    "& button:hover": {"borderColor": "var(--own)"},
    "& button[aria-pressed=true]": {
        "color": TEXT,
        "borderColor": "var(--own)",
        "backgroundColor": f"color-mix(in srgb, var(--own) 26%, {FIELD})",
    },
    "& button.Mui-disabled": {"opacity": 0.35, "color": FAINT, "backgroundColor": FIELD},
    "& button[data-joint]::before": {
        "content": '""',
        "width": "9px",
        "height": "9px",
        "marginRight": "6px",
        "borderRadius": "50%",
        "boxSizing": "border-box",
        "border": "2px solid var(--own)",
    },
    "& button[aria-pressed=true]::before": {"backgroundColor": "var(--own)"},
}


def body(panel: types.Object) -> types.Object:
    """The whole of a panel, which scrolls."""
    return column(panel, "body", gap=2, padding=2, **STYLE)


def row(parent: types.Object, name: str, gap: float = 1, **sx: Any) -> types.Object:
    """Things beside each other, which wrap where the panel is narrow."""
    return _stack(parent, name, {"display": "flex", "flexFlow": "row wrap", "alignItems": "center", "gap": gap, **sx})


def column(parent: types.Object, name: str, gap: float = 1, **sx: Any) -> types.Object:
    """Things below each other."""
    return _stack(parent, name, {"display": "flex", "flexFlow": "column", "alignItems": "start", "gap": gap, **sx})


def table(parent: types.Object, name: str, columns: str, **sx: Any) -> types.Object:
    """Things in columns of these widths (as of CSS grids), row after row."""
    layout = {"display": "grid", "gridAutoFlow": "row", "gridTemplateColumns": columns, "alignItems": "start"}
    return _stack(parent, name, {**layout, "justifyContent": "start", "columnGap": 2, "rowGap": 1, **sx})


def _stack(parent: types.Object, name: str, style: dict[str, Any]) -> types.Object:
    own_width = {"width": "auto", "maxHeight": "none"}  # FiftyOne gives each thing the whole width
    return parent.v_stack(name, componentsProps={"grid": {"sx": {"&& > *": own_width, **style}}})


def text(parent: types.Object, name: str, words: str, **sx: Any) -> None:
    style = {"color": FAINT, "fontSize": "0.85rem", **sx}
    parent.view(name, types.HeaderView(label=words, componentsProps={"header": {"label": {"sx": style}}}))


def button(
    parent: types.Object,
    name: str,
    label: str,
    on_click: Handler | str,
    *,
    on: bool = False,
    color: str | None = None,
    tip: str | None = None,
    disabled: bool = False,
    params: Mapping[str, Any] | None = None,
    prompt: bool = False,
) -> None:
    """A button that is lit while what it stands for is shown.

    Args:
        color: of a joint: a dot in it, filled while the joint is shown
        tip: what it does, also for screen readers
    """
    marks: dict[str, Any] = {"aria-pressed": on, "style": {"--own": color or ACCENT}}
    if color:
        marks["data-joint"] = ""
    parent.btn(
        name,
        label=label,
        on_click=on_click,
        params=dict(params or {}),
        prompt=prompt,
        title=tip or label,
        disabled=disabled,
        variant="outlined",
        componentsProps={"button": {**marks, "aria-label": tip or label}},
    )


def joint_table(
    parent: types.Object, run: state.Run, shown: list[str], colors: Mapping[str, str], on_choose: Handler
) -> None:
    """The joints by part of the body and side; the names of the rows and columns switch all of theirs.

    Each button carries what is wanted after it, so that a click that arrives twice does no harm.
    """
    parts = [*state.PARTS, "body"]
    cells: dict[tuple[str, str], list[str]] = {}
    for joint in run.joints:
        cells.setdefault((state.part(joint), state.side(joint)), []).append(joint)
    rows = [name for name in parts if any(cell[0] == name for cell in cells)]
    columns = [name for name in ("left", "middle", "right") if any(cell[1] == name for cell in cells)]

    grid = table(parent, "joints", f"auto repeat({len(columns)}, auto)")

    def group(name: str, joints: list[str]) -> None:
        whole = bool(joints) and set(joints) == set(shown)
        button(
            grid,
            f"group_{name}",
            name.capitalize(),
            on_choose,
            on=whole,
            tip=f"Show {'all joints' if name == 'all' else f'the joints: {name}'}",
            params={"joints": joints},
        )

    group("all", list(run.joints))
    for side in columns:
        joints = [joint for joint in run.joints if state.side(joint) == side]
        if side == "middle":
            text(grid, "group_middle", " ")
        else:
            group(side, joints)
    for part in rows:
        group(part, [joint for joint in run.joints if state.part(joint) == part])
        for side in columns:
            cell = row(grid, f"cell_{part}_{side}", gap=0.75)
            for joint in cells.get((part, side), []):
                on = joint in shown
                wanted = [other for other in run.joints if (other in shown) != (other == joint)]
                button(
                    cell,
                    f"joint_{joint}",
                    joint.removeprefix(f"{side}_").replace("_", " "),
                    on_choose,
                    on=on,
                    color=colors.get(run.joints[joint], PLAIN),
                    tip=joint.replace("_", " "),
                    params={"joints": wanted},
                )
