"""The plots of the panel "Pose evaluation": data and layout for plotly, from results that are stored."""

from __future__ import annotations

from typing import Any

import fiftyone.operators.types as types

from ..evaluation.matching import STATUSES
from ..inference.joints import spoken
from . import view

COLORS = {
    "found": "#2a9d8f",
    "shifted": "#e9c46a",
    "swapped": "#f15bb5",
    "taken": "#8d99ae",
    "missed": "#e63946",
    "false": "#ff9f1c",
}
ROW = 19  # pixels of a joint's bar
SCALE = [[0, "rgba(42,157,143,0)"], [0.05, "rgba(42,157,143,0.25)"], [1, "rgba(42,157,143,1)"]]

Plot = tuple[list[dict[str, Any]], dict[str, Any]]


def joint_of(label: str) -> str:
    return label.replace(" ", "_")


def draw(parent: types.Object, name: str, data: list[dict[str, Any]], layout: dict[str, Any], on_click: Any) -> None:
    """Put a plot into a panel, as wide as the panel is."""
    box = view.plot_box(parent, f"{name}_box", layout["height"])
    box.plot(name, data=data, layout=layout, config={"displayModeBar": False}, on_click=on_click)


def _layout(height: int, **more: Any) -> dict[str, Any]:
    small = {"font": {"size": 12}, "margin": {"l": 110, "r": 10, "t": 26, "b": 34}, "height": height}
    legend = {
        "showlegend": True,
        "legend": {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1, "yanchor": "bottom"},
    }
    return {**small, **legend, **more}


def _bars(names: list[str], parts: dict[str, list[int]], title: str) -> Plot:
    """A bar for each joint, of parts with a name each."""
    labels = [spoken(name) for name in names]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "y": labels,
            "x": counts,
            "marker": {"color": COLORS[part]},
            "hovertemplate": f"%{{y}} {part}: %{{x}}<extra></extra>",
        }
        for part, counts in parts.items()
        if any(counts)
    ]
    layout = _layout(
        ROW * len(names) + 70,
        barmode="stack",
        bargap=0.25,
        xaxis={"title": {"text": title, "font": {"size": 12}}},
        yaxis={"autorange": "reversed", "dtick": 1},
    )
    return data, layout


def statuses(results: dict[str, Any], size: str | None) -> Plot:
    """What became of each joint's labels, of people of one size or of all."""
    joints = results["joints"]
    of = [results["statuses"][name] for name in results["statuses"] if size in (None, name)]
    parts = {
        status: [sum(counts[joint][number] for counts in of) for joint in joints]
        for number, status in enumerate(STATUSES)
    }
    return _bars(joints, parts, "labelled joints")


def stray(results: dict[str, Any]) -> Plot:
    """Peaks that are not at a joint of theirs, by kind."""
    joints = results["joints"]
    kinds = ("false", "shifted", "swapped")
    parts = {kind: [results["stray_peaks"][joint].get(kind, 0) for joint in joints] for kind in kinds}
    return _bars(joints, parts, "peaks")


def confusion(results: dict[str, Any]) -> Plot:
    """Which joint's map is highest at labelled joints; the colours are shares of a row."""
    rows = [spoken(name) for name in results["joints"]]
    counts = [results["seen_as"][name] for name in results["joints"]]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    data = [
        {
            "type": "heatmap",
            "x": [*rows, "nothing"],
            "y": rows,
            "z": shares,
            "customdata": counts,
            "colorscale": SCALE,
            "showscale": False,
            "xgap": 1,
            "ygap": 1,
            "hovertemplate": "%{y} seen as %{x}: %{customdata} (%{z:.0%})<extra></extra>",
        }
    ]
    layout = _layout(
        ROW * len(rows) + 120,
        showlegend=False,
        margin={"l": 110, "r": 10, "t": 6, "b": 100},
        xaxis={"tickangle": -60, "dtick": 1, "showgrid": False},
        yaxis={"autorange": "reversed", "dtick": 1, "showgrid": False},
    )
    return data, layout


def reliability(results: dict[str, Any]) -> Plot:
    """The share of peaks at a joint of theirs, by the peaks' value."""
    bins = [part for part in results["reliability"] if part["true"] + part["stray"]]
    middles = [round((part["from"] + part["to"]) / 2, 2) for part in bins]
    shares = [part["true"] / (part["true"] + part["stray"]) for part in bins]
    counts = [f"{part['true']} of {part['true'] + part['stray']} peaks" for part in bins]
    data = [
        {
            "type": "bar",
            "name": "at a joint",
            "x": middles,
            "y": shares,
            "width": [0.09] * len(bins),
            "customdata": counts,
            "marker": {"color": COLORS["found"]},
            "hovertemplate": "%{customdata} at a joint (%{y:.0%})<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "share = value",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"dash": "dot", "width": 1, "color": "#8d99ae"},
            "hoverinfo": "skip",
        },
    ]
    layout = _layout(
        240,
        margin={"l": 50, "r": 10, "t": 26, "b": 40},
        xaxis={"range": [0, 1], "title": {"text": "value of the peak", "font": {"size": 12}}},
        yaxis={"range": [0, 1], "tickformat": ".0%"},
    )
    return data, layout
