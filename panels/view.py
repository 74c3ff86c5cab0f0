"""The pieces that the panels are drawn with, in the look of the App: rows, captions, buttons, and the table of joints.

FiftyOne hands `componentsProps` on to the components of its App (MUI), which is how they get their colours and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import fiftyone.operators.types as types

from ..inference.joints import spoken
from . import state

ACCENT = "var(--fo-palette-primary-main)"
TEXT = "var(--fo-palette-text-primary)"
FAINT = "var(--fo-palette-text-secondary)"
FIELD = "var(--fo-palette-background-field)"
PLAIN = "#9aa0a6"  # of joints that nobody gave a colour

Handler = Callable[..., Any]
Style = dict[str, Any]


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
    return column(panel, "body", gap=2, padding=2, alignItems="stretch", **STYLE)


def row(parent: types.Object, name: str, gap: float = 1, place: Style | None = None, **sx: Any) -> types.Object:
    """Things beside each other, which wrap where the panel is narrow.

    Args:
        place: style of the row as a thing in its parent
    """
    style = {"display": "flex", "flexFlow": "row wrap", "alignItems": "center", "gap": gap, **sx}
    return _stack(parent, name, style, place)


def column(parent: types.Object, name: str, gap: float = 1, **sx: Any) -> types.Object:
    """Things below each other."""
    return _stack(parent, name, {"display": "flex", "flexFlow": "column", "alignItems": "start", "gap": gap, **sx})


def table(parent: types.Object, name: str, columns: str, **sx: Any) -> types.Object:
    """Things in columns of these widths (as of CSS grids), row after row."""
    layout = {"display": "grid", "gridAutoFlow": "row", "gridTemplateColumns": columns, "alignItems": "start"}
    return _stack(parent, name, {**layout, "justifyContent": "start", "columnGap": 2, "rowGap": 1, **sx})


def _stack(parent: types.Object, name: str, style: Style, place: Style | None = None) -> types.Object:
    own_width = {"width": "auto", "maxHeight": "none"}  # FiftyOne gives each thing the whole width
    return parent.v_stack(
        name, componentsProps={"grid": {"sx": {"&& > *": own_width, **style}}, "item": {"sx": place or {}}}
    )


def plot_box(parent: types.Object, name: str, height: int) -> types.Object:
    """What a plot of this height, pixels, goes into, to be as wide as the panel."""
    # FiftyOne's own box is as high as the panel, and 700 pixels wide where nothing else says how wide it is.
    return column(parent, name, alignItems="stretch", width=0, minWidth="100%", height=f"{height}px", overflow="hidden")


def segments(parent: types.Object, name: str) -> types.Object:
    """Buttons of which one is on, joined to one piece."""
    joined: Style = {
        "&& button": {"borderRadius": 0},
        "&& > :first-of-type button": {"borderRadius": "6px 0 0 6px"},
        "&& > :last-of-type button": {"borderRadius": "0 6px 6px 0"},
    }
    return row(parent, name, gap=0, flexWrap="nowrap", **joined)


def section(parent: types.Object, name: str, title: str) -> types.Object:
    """A part of a panel below a line and its title."""
    part = column(parent, name, gap=1, borderTop="1px solid var(--fo-palette-divider)", paddingTop=1.5)
    caption(part, "title", title, fontWeight=600, textTransform="uppercase", letterSpacing="0.05em", fontSize="0.75rem")
    return part


def caption(parent: types.Object, name: str, words: str, **sx: Any) -> None:
    """A few faint words."""
    text(parent, name, words, color=FAINT, **sx)


def text(parent: types.Object, name: str, words: str, **sx: Any) -> None:
    style = {"color": TEXT, "fontSize": "0.85rem", **sx}
    parent.view(name, types.HeaderView(label=words, componentsProps={"label": {"sx": style}}))


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


SLIDERS: Style = {  # FiftyOne leaves them more room than a panel has
    "& .MuiBox-root": {"padding": 0},
    "&& > *": {"flex": "1 1 220px", "maxHeight": "none"},
}


def slider(parent: types.Object, name: str, label: str, value: float, on_change: Handler) -> None:
    """A value from 0 to 1."""
    parent.float(
        name,
        min=0,
        max=1,
        default=value,
        on_change=on_change,
        view=types.SliderView(label=label, multiple_of=0.01, value_precision=2),
    )


def joint_table(
    parent: types.Object, run: state.Run, shown: list[str], colors: Mapping[str, str], on_choose: Handler
) -> None:
    """The joints by part of the body and side; the names of the rows and columns switch all of theirs.

    Each button carries what is wanted after it, so that a click that arrives twice does no harm.
    """
    cells: dict[tuple[str, str], list[str]] = {}
    for joint in run.joints:
        cells.setdefault((state.part(joint), state.side(joint)), []).append(joint)
    sides = [side for side in state.SIDES if any(cell[1] == side for cell in cells)]
    width = " minmax(0, max-content)"
    grid = table(parent, "table", f"max-content{width * max(len(sides), 1)}")

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

    def cell(part: str, side: str, place: Style | None = None) -> None:
        line = row(grid, f"cell_{part}_{side}", gap=0.75, place=place)
        for joint in cells.get((part, side), []):
            on = joint in shown
            button(
                line,
                f"joint_{joint}",
                spoken(joint.removeprefix(f"{side}_")),
                on_choose,
                on=on,
                color=colors.get(run.joints[joint], PLAIN),
                tip=spoken(joint),
                params={"joints": [other for other in run.joints if (other in shown) != (other == joint)]},
            )

    group("all", list(run.joints))
    for side in sides:
        group(side, [joint for joint in run.joints if state.side(joint) == side])
    for part in dict.fromkeys(state.part(joint) for joint in run.joints):
        group(part, [joint for joint in run.joints if state.part(joint) == part])
        if (part, "middle") in cells:
            cell(part, "middle", {"gridColumn": "2 / -1"})
            if any((part, side) in cells for side in sides):
                caption(grid, f"below_{part}", " ")
        if any((part, side) in cells for side in sides):
            for side in sides:
                cell(part, side)
