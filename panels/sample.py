"""The panel in an open sample."""

from __future__ import annotations

import math
from typing import Any

import fiftyone.operators as foo
import fiftyone.operators.types as types
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from ..inference.joints import spoken
from ..inference.runs import DONE, field_colors
from . import overlay, state, view
from .controls import Controls
from .state import Run

SCRIPT = "@pose-heatmaps/higherhrnet/sample_fields"  # in dist/index.umd.js
OPACITY, THRESHOLD = 0.8, 0.0
HELP = """
What the model saw in this sample: the maps on the photo, how high each joint's map peaks, and the people found.
"""


class SampleHeatmapsPanel(Controls):
    """The sidebar of an open sample is out of a Python panel's reach: FiftyOne sets and tells only the grid's fields.

    A script in the App reaches it where it can, and says so when the panel opens. Elsewhere the panel's own picture
    shows the maps. The script itself has to be there: asked for an answer that nobody gives, FiftyOne 1.22 leaves the
    panel empty.
    """

    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(
            name="pose_heatmaps_sample",
            label="Pose heatmaps",
            icon="accessibility_new",
            category=foo.Categories.ANALYZE,
            surfaces="modal",
            help_markdown=HELP,
        )

    about = ("current_sample",)

    # --- what happens outside of the panel

    def on_load(self, ctx: foo.ExecutionContext) -> None:
        ctx.panel.set_state("scripted", False)
        ctx.panel.set_state("fields", list(ctx.active_fields))
        ctx.panel.set_state("seen", None)

    def execute(self, ctx: foo.ExecutionContext) -> Any:
        result = super().execute(ctx)
        if ctx.params.get("__method__") == "on_load":
            # Last of all, when the panel is drawn already.
            ctx.prompt(SCRIPT, {}, on_success=self.on_script, skip_prompt=True)
        return result

    def on_change_current_sample(self, ctx: foo.ExecutionContext) -> None:
        """Drawn anew."""

    def on_script(self, ctx: foo.ExecutionContext) -> None:
        """The script has answered, with the fields that the open sample shows, or None where it cannot tell."""
        fields = ctx.params["result"]["fields"]
        if fields is not None:
            ctx.panel.set_state("scripted", True)
            self._follow(ctx, fields)

    def on_sidebar(self, ctx: foo.ExecutionContext) -> None:
        """Somebody changed the sidebar of the open sample."""
        self._follow(ctx, ctx.params["fields"])

    def _follow(self, ctx: foo.ExecutionContext, fields: list[str]) -> None:
        if set(fields) != set(self.shown_fields(ctx)):
            ctx.panel.set_state("fields", fields)
            self._draw_picture(ctx)

    # --- what is shown

    def shown_fields(self, ctx: foo.ExecutionContext) -> list[str]:
        return ctx.panel.get_state("fields") or []

    def show_fields(self, ctx: foo.ExecutionContext, fields: list[str]) -> None:
        ctx.panel.set_state("fields", fields)
        if ctx.panel.get_state("scripted"):
            ctx.trigger(SCRIPT, {"fields": fields})
        self._draw_picture(ctx)

    def show_bar(self, ctx: foo.ExecutionContext) -> None:
        """A click on a bar shows its joint."""
        run = self.chosen(ctx, state.find_runs(ctx.dataset))
        joint = str(ctx.params.get("y") or "").replace(" ", "_")
        if run is not None and joint in run.joints:
            self._show(ctx, state.wanted_fields(run, self.shown_fields(ctx), False, [joint]))

    def set_opacity(self, ctx: foo.ExecutionContext) -> None:
        self._set(ctx, "opacity", float(ctx.params["value"]))

    def set_threshold(self, ctx: foo.ExecutionContext) -> None:
        self._set(ctx, "threshold", float(ctx.params["value"]))

    def color_by(self, ctx: foo.ExecutionContext) -> None:
        self._set(ctx, "by_value", ctx.params["by"] == "value")

    def compare(self, ctx: foo.ExecutionContext) -> None:
        self._set(ctx, "beside", ctx.params["run"])

    def _set(self, ctx: foo.ExecutionContext, name: str, value: Any) -> None:
        if ctx.panel.get_state(name) != value:
            ctx.panel.set_state(name, value)
            self._draw_picture(ctx)

    # --- the sample

    def _look(self, ctx: foo.ExecutionContext, run: Run) -> dict[str, Any] | None:
        """What does not change with the controls, read once for a sample and run: the peaks and the people."""
        seen, of = ctx.panel.get_state("seen"), [ctx.current_sample, run.label_field]
        if seen and seen["of"] == of:
            return seen
        document = _document(ctx)
        if document is None:
            return None
        seen = {
            "of": of,
            "maximum": bool(document.get(run.maximum or "")),
            "peaks": overlay.peaks(document, run),
            "people": _people(document, run),
            "status": document.get(run.others.get("status", "")),
        }
        ctx.panel.set_state("seen", seen)
        self._draw_picture(ctx, document)
        return seen

    def _draw_picture(self, ctx: foo.ExecutionContext, document: dict[str, Any] | None = None) -> None:
        runs = state.find_runs(ctx.dataset)
        run = self.chosen(ctx, runs)
        document = document or _document(ctx)
        if run is None or document is None:
            return
        shown = self.shown_fields(ctx)
        joints, maximum = state.shown_joints(run, shown), run.maximum in shown
        pictured = {"picture": run}
        beside = ctx.panel.get_state("beside")
        if beside in runs and beside != run.label_field:
            pictured["beside_picture"] = runs[beside]
        photo = overlay.read_photo(document["filepath"])
        for name, other in pictured.items():
            fields = state.wanted_fields(other, [], maximum, joints)
            uri = (
                None if photo is None else _picture(ctx, photo, document, fields, ring=not maximum and len(joints) == 1)
            )
            ctx.panel.set_data(f"body.{name}", uri)

    # --- what it looks like

    def render(self, ctx: foo.ExecutionContext) -> types.Property:
        if self.catch_up(ctx):
            ctx.panel.set_state("seen", None)
        panel = types.Object()
        body = view.body(panel)
        runs = state.find_runs(ctx.dataset)
        run = self.chosen(ctx, runs)
        if run is None:
            view.text(body, "empty", "This dataset has no pose heatmaps yet.")
        else:
            if ctx.panel.get_state("scripted"):
                watch = types.View(component="PoseHeatmapsSidebar", composite_view=True, on_sidebar=self.on_sidebar)
                body.obj("watch", view=watch)
            colors = field_colors(ctx.dataset)
            self.draw_controls(ctx, body, run, runs, colors)
            seen = self._look(ctx, run)
            if seen is None:
                view.text(body, "no_sample", "The sample that is open here is not in the dataset.")
            elif all(peak is None for peak in seen["peaks"].values()) and not seen["maximum"]:
                why = "" if seen["status"] in (None, DONE) else f" {seen['status']}"
                view.text(body, "no_maps", f"This sample has no maps of the run '{run.label_field}'.{why}")
            else:
                self._render_picture(ctx, body, run, runs)
                shown = state.shown_joints(run, self.shown_fields(ctx))
                self._render_peaks(body, run, seen["peaks"], shown, colors)
                _render_people(body, run, seen["people"], shown)
        return types.Property(panel, view=types.GridView(orientation="vertical", align_y="top"))

    def _render_picture(self, ctx: foo.ExecutionContext, body: types.Object, run: Run, runs: dict[str, Run]) -> None:
        whole = {"maxWidth": "100%", "maxHeight": "46vh", "borderRadius": "6px", "display": "block"}
        wide = {"image": {"style": whole}}
        body.view("picture", types.ImageView(componentsProps=wide, alt="The photo with the maps that are shown"))
        beside = ctx.panel.get_state("beside")
        others = [name for name in runs if name != run.label_field]
        if others:
            line = view.row(body, "comparison")
            view.caption(line, "with", "Beside it")
            tip, alone = "Show no other run beside it", beside not in others
            view.button(line, "alone", "Nothing", self.compare, on=alone, tip=tip, params={"run": None})
            for name in others:
                tip, on = f"Show the run {name} beside it", beside == name
                view.button(line, f"with_{name}", name, self.compare, on=on, tip=tip, params={"run": name})
            if beside in others:
                body.view("beside_picture", types.ImageView(componentsProps=wide, alt=f"The same with {beside}"))
        line = view.row(body, "look", columnGap=3, width="100%", **view.SLIDERS)
        view.slider(line, "opacity", "Opacity", _setting(ctx, "opacity", OPACITY), self.set_opacity)
        view.slider(line, "threshold", "Threshold", _setting(ctx, "threshold", THRESHOLD), self.set_threshold)
        by_value = bool(ctx.panel.get_state("by_value"))
        line = view.row(body, "colors")
        view.caption(line, "by", "Colour by")
        choose = view.segments(line, "buttons")
        view.button(
            choose, "field", "Joint", self.color_by, on=not by_value, tip="Colour by joint", params={"by": "field"}
        )
        view.button(choose, "value", "Value", self.color_by, on=by_value, tip="Colour by value", params={"by": "value"})

    def _render_peaks(
        self,
        body: types.Object,
        run: Run,
        peaks: dict[str, float | None],
        shown: list[str],
        colors: dict[str, str],
    ) -> None:
        if not peaks:
            return
        view.section(body, "peaks", "Highest value of each joint's map")
        joints = list(peaks)[::-1]
        bars = {
            "type": "bar",
            "orientation": "h",
            "x": [peaks[joint] or 0 for joint in joints],
            "y": [spoken(joint) for joint in joints],
            "text": ["no map" if peaks[joint] is None else f"{peaks[joint]:.2f}" for joint in joints],
            "textposition": "outside",
            "cliponaxis": False,
            "hovertemplate": "%{y}: %{text}<extra>click to show it</extra>",
            "marker": {
                "color": [colors.get(run.joints[joint], view.PLAIN) for joint in joints],
                "opacity": [1 if not shown or joint in shown else 0.35 for joint in joints],
            },
        }
        height = 24 * len(joints) + 40
        view.plot_box(body, "peaks_box", height).plot(
            "chart",
            data=[bars],
            layout={
                "height": height,
                "margin": {"l": 100, "r": 30, "t": 4, "b": 24},
                "xaxis": {"range": [0, 1.08], "tickvals": [0, 0.25, 0.5, 0.75, 1], "fixedrange": True},
                "yaxis": {"fixedrange": True, "ticksuffix": "  "},
                "bargap": 0.3,
                "font": {"size": 12},
            },
            config={"displayModeBar": False, "scrollZoom": False},
            on_click=self.show_bar,
            height=f"{height}px",
        )


def _render_people(body: types.Object, run: Run, people: list[dict[str, Any]] | None, shown: list[str]) -> None:
    if people is None:
        return
    part = view.section(body, "found", "People found")
    if not people:
        view.text(part, "none", "Nobody was found in this sample.")
        return
    joints = [joint for joint in shown if run.index(joint) is not None][:3]
    grid = view.table(part, "people", f"repeat({2 + len(joints)}, max-content)", columnGap=3)
    for number, words in enumerate(["person", "score", *map(spoken, joints)]):
        view.caption(grid, f"head_{number}", words)
    for number, person in enumerate(people, 1):
        # labels that were attached may have fewer values than joints
        by_joint = dict(zip(run.order, person["values"], strict=False))
        values = [by_joint.get(joint) for joint in joints]
        cells = [f"{number}", f"{person['score']:.2f}", *("not found" if v is None else f"{v:.2f}" for v in values)]
        for place, words in enumerate(cells):
            view.text(grid, f"cell_{number}_{place}", words)


def _document(ctx: foo.ExecutionContext) -> dict[str, Any] | None:
    """The open sample as the database holds it: making FiftyOne's objects of all its maps takes longer."""
    if not ctx.current_sample:
        return None
    samples, own = ctx.dataset._sample_collection, {"_id": ObjectId(ctx.current_sample)}
    found = samples.find_one(own)
    if found is None and ctx.view._is_generated:  # a patch, say: it names its sample
        patch = ctx.view._dataset._sample_collection.find_one(own, ["_sample_id"]) or {}
        found = samples.find_one({"_id": patch.get("_sample_id")})
    return found


def _people(document: dict[str, Any], run: Run) -> list[dict[str, Any]] | None:
    """Scores and the heatmap's values at the joints, None where a joint was not found; best first."""
    label = document.get(run.people or "")
    if not label:
        return None
    people = [
        {
            "score": person.get("score") or 0,
            "values": [
                None if value is None or math.isnan(value) else value for value in person.get("confidence") or ()
            ],
        }
        for person in label.get("keypoints") or ()
    ]
    return sorted(people, key=lambda person: -person["score"])


def _picture(
    ctx: foo.ExecutionContext, photo: NDArray[np.uint8], document: dict[str, Any], fields: list[str], ring: bool
) -> str:
    """The photo with these maps, as a data URI; ``ring`` marks the peak of each."""
    colors = field_colors(ctx.dataset)
    found = {field: overlay.read_map(document, field) for field in fields}
    maps = [(values, colors.get(field, view.PLAIN)) for field, values in found.items() if values is not None]
    threshold = _setting(ctx, "threshold", THRESHOLD)
    by_value = bool(ctx.panel.get_state("by_value"))
    picture = overlay.draw(photo, maps, _setting(ctx, "opacity", OPACITY), threshold, by_value)
    for values, color in maps if ring else ():
        overlay.mark_peak(picture, values, color, threshold)
    return overlay.data_uri(picture)


def _setting(ctx: foo.ExecutionContext, name: str, default: float) -> float:
    value = ctx.panel.get_state(name)
    return default if value is None else float(value)
