"""The panel beside the grid."""

from __future__ import annotations

import json
import time
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from ..inference.runs import DONE, check_label_field, field_colors
from ..inference.views import whole_samples
from ..operators.generation import params_to_continue
from . import finds, state, view
from .controls import Controls
from .state import Run

GENERATE = "@pose-heatmaps/higherhrnet/generate_heatmaps"
COUNT_SECONDS = 10  # before it is asked again: something may write
HELP = """
Switch between the maximum over all joints and single joints, on every photo of the grid. The panel changes which
fields are on in the sidebar, and follows when you change them there.
"""


class HeatmapsPanel(Controls):
    """What is shown are the App's active fields, which the sidebar shows too; other fields stay as they are."""

    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(
            name="pose_heatmaps",
            label="Pose heatmaps",
            icon="accessibility_new",
            category=foo.Categories.ANALYZE,
            surfaces="grid",
            help_markdown=HELP,
        )

    about = ("dataset_id", "dataset_name", "view", "view_name", "filters", "extended", "group_slice")

    # --- what happens outside of the panel: it is drawn anew

    def on_load(self, ctx: foo.ExecutionContext) -> None:
        ctx.panel.set_state("counted", None)

    def on_change_view(self, ctx: foo.ExecutionContext) -> None:
        """Other samples."""

    def on_change_group_slice(self, ctx: foo.ExecutionContext) -> None:
        """Other samples."""

    def on_change_dataset(self, ctx: foo.ExecutionContext) -> None:
        """Other runs."""

    def on_change_active_fields(self, ctx: foo.ExecutionContext) -> None:
        """Other maps."""

    # --- what is shown

    def shown_fields(self, ctx: foo.ExecutionContext) -> list[str]:
        return ctx.active_fields

    def show_fields(self, ctx: foo.ExecutionContext, fields: list[str]) -> None:
        ctx.ops.set_active_fields(fields)
        # The App paints a photo anew by handing its maps to a worker. Where it is told so again before the worker is
        # done, it finds them gone and shows an error instead of the photo; photos that are loaded anew it can paint.
        ctx.ops.reload_samples()
        ctx.request_params["active_fields"] = fields

    def color_by(self, ctx: foo.ExecutionContext) -> None:
        """By field (a colour per joint) or by value (a colour scale), until the page is loaded anew."""
        by_value = ctx.params["by"] == "value"
        scale = {"default_colorscale_preset": "viridis"} if by_value else {}
        ctx.trigger("set_color_scheme", {"color_by": ctx.params["by"], **scale})

    # --- which samples

    def find(self, ctx: foo.ExecutionContext) -> None:
        run = self.chosen(ctx, state.find_runs(ctx.dataset))
        if run is None:
            return
        former = self._former(ctx)
        if former is None:
            former = {"view": ctx.request_params.get("view") or [], "name": ctx.request_params.get("view_name")}
        base = (
            ctx.dataset.load_saved_view(former["name"])
            if former["name"]
            else fo.DatasetView._build(ctx.dataset, former["view"])
        )
        name, index = ctx.params["find"], ctx.params.get("joint")
        found = finds.find(whole_samples(base), run, name, index)
        ctx.panel.set_state(
            "found", {"find": [name, index], "view": finds.stages(found._serialize()), "former": former}
        )
        ctx.request_params.update(view=found._serialize(), view_name=None)
        ctx.ops.set_view(view=found)

    def back(self, ctx: foo.ExecutionContext) -> None:
        former = self._former(ctx)
        if former is None:
            return
        ctx.panel.set_state("found", None)
        if former["name"]:
            ctx.ops.set_view(name=former["name"])
        else:
            ctx.ops.set_view(view=fo.DatasetView._build(ctx.dataset, former["view"]))

    def _former(self, ctx: foo.ExecutionContext) -> dict[str, Any] | None:
        """The view before the find, as long as the App shows the find."""
        found = ctx.panel.get_state("found")
        if not found or finds.stages(ctx.request_params.get("view")) != found["view"]:
            return None
        return found["former"]

    def adopt(self, ctx: foo.ExecutionContext) -> None:
        from ..inference import runs

        label_field = ctx.params["label_field"]
        if label_field not in state.find_runs(ctx.dataset):
            runs.adopt(ctx.dataset, label_field)
        ctx.panel.set_state("run", label_field)
        ctx.ops.reload_dataset()

    def generate(self, ctx: foo.ExecutionContext) -> None:
        """For the samples that have no maps yet."""
        ctx.prompt(GENERATE, ctx.params["settings"], on_success=self.on_generated)

    def on_generated(self, ctx: foo.ExecutionContext) -> None:
        """There are more maps."""
        ctx.panel.set_state("counted", None)

    def _count(self, ctx: foo.ExecutionContext, run: Run) -> dict[str, Any]:
        """How many samples of the view have the run's maps: asked of the database only when that may have changed."""
        request = ctx.request_params
        asked = [request.get(name) for name in ("dataset_id", "view_name", "filters", "extended", "group_slice")]
        key = json.dumps([run.maps[0], finds.stages(request.get("view")), *asked], default=str)
        counted = ctx.panel.get_state("counted")
        if not counted or counted["key"] != key or time.time() - counted["time"] > COUNT_SECONDS:
            status = None if run.adopted else run.others.get("status")
            which: dict[str, Any] | None = None  # views of patches, and those that hide the run, know no field of it
            if status and ctx.view.has_field(status):
                which = {status: DONE}  # a sample that is to be made again has its old maps until then
            elif ctx.view.has_field(run.maps[0]):
                which = {run.maps[0]: {"$ne": None}}
            done = None if which is None else ctx.view.match(which).count()
            counted = {"key": key, "time": time.time(), "total": ctx.view.count(), "done": done}
            ctx.panel.set_state("counted", counted)
        return counted

    # --- what it looks like

    def render(self, ctx: foo.ExecutionContext) -> types.Property:
        self.catch_up(ctx)
        panel = types.Object()
        body = view.body(panel)
        runs = state.find_runs(ctx.dataset) if ctx.dataset is not None else {}
        run = self.chosen(ctx, runs)
        if run is None:
            view.text(body, "empty", "This dataset has no pose heatmaps yet.")
            view.button(body, "generate", "Generate pose heatmaps", GENERATE, on=True, prompt=True)
        else:
            self.draw_controls(ctx, body, run, runs, field_colors(ctx.dataset))
            self._draw_finds(ctx, body, run)
            self._draw_colors(body)
            self._draw_run(ctx, body, run)
        if ctx.dataset is not None:
            self._draw_adopt(ctx, body)
        return types.Property(panel, view=types.GridView(orientation="vertical", align_y="top"))

    def _draw_finds(self, ctx: foo.ExecutionContext, body: types.Object, run: Run) -> None:
        joints = state.shown_joints(run, ctx.active_fields)
        joint = joints[0] if len(joints) == 1 else None
        index = run.index(joint) if joint else None
        offered = list(finds.known(run, index, joint))
        if not offered:
            return
        part = view.section(body, "finds", "Find samples")
        if ctx.view._is_generated:
            view.caption(part, "hint", "Only among whole samples: leave the patches first.")
            return
        line = view.row(part, "buttons")
        former = self._former(ctx)
        lit = ctx.panel.get_state("found")["find"] if former else None
        for name, label, tip in offered:
            wanted = index if name == "weakest" else None
            params = {"find": name, "joint": wanted}
            view.button(line, name, label, self.find, on=lit == [name, wanted], tip=tip, params=params)
        if former:
            view.button(line, "back", "Back to the former view", self.back)
        elif joint is None and run.people:
            view.caption(line, "hint", "Show a single joint to find where it is weakest.")

    def _draw_colors(self, body: types.Object) -> None:
        part = view.section(body, "colors", "Colour maps by")
        line = view.row(part, "buttons")
        view.button(line, "field", "Joint", self.color_by, tip="A colour for each joint", params={"by": "field"})
        view.button(line, "value", "Value", self.color_by, tip="A colour scale, low to high", params={"by": "value"})

    def _draw_run(self, ctx: foo.ExecutionContext, body: types.Object, run: Run) -> None:
        part = view.section(body, "about", "Run")
        view.text(part, "title_of_run", f"{run.label_field}: {run.title}")
        # A find is not to wait for its count: the App asks again when it has the view.
        finding = ctx.params.get("__method__") == "find"
        counted = ctx.panel.get_state("counted") if finding else self._count(ctx, run)
        if not counted or counted["done"] is None:
            return
        total, done = counted["total"], counted["done"]
        view.text(part, "counted", f"{done:,} of {total:,} samples in this view have its maps.")
        settings = params_to_continue(ctx.dataset, run.label_field) if done < total else None
        if settings:
            view.button(part, "generate", "Generate for the others", self.generate, params={"settings": settings})

    def _draw_adopt(self, ctx: foo.ExecutionContext, body: types.Object) -> None:
        loose = state.without_record(ctx.dataset)
        if loose:
            part = view.section(body, "adopting", "Heatmaps of no run")
            for label_field, fields in loose.items():
                count = "1 heatmap field" if len(fields) == 1 else f"{len(fields)} heatmap fields"
                line = view.row(part, label_field)
                view.text(line, "fields", f"{label_field}: {count}")
                try:
                    check_label_field(label_field)
                except ValueError as error:
                    view.caption(line, "hint", f"{error} Rename the fields to adopt them.")
                    continue
                params = {"label_field": label_field}
                view.button(line, "adopt", "Adopt", self.adopt, tip="Control them with this panel", params=params)
