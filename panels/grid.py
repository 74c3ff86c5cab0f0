"""The panel "Pose heatmaps" beside the grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import state, view

GENERATE = "@pose-heatmaps/higherhrnet/generate_heatmaps"


class HeatmapsPanel(foo.Panel):
    """Switches between a run's maximum and its joints by changing the active fields, which the sidebar shows too."""

    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(
            name="pose_heatmaps",
            label="Pose heatmaps",
            icon="accessibility_new",
            category=foo.Categories.ANALYZE,
            surfaces="grid",
            help_markdown="Show the maximum over all joints, or single joints, on every photo of the grid",
        )

    def on_load(self, ctx: foo.ExecutionContext) -> None:
        _count(ctx)

    def on_change_view(self, ctx: foo.ExecutionContext) -> None:
        _count(ctx)

    def on_change_dataset(self, ctx: foo.ExecutionContext) -> None:
        _count(ctx)

    def on_change_active_fields(self, ctx: foo.ExecutionContext) -> None:
        """Drawn anew: somebody changed the sidebar."""

    def choose_run(self, ctx: foo.ExecutionContext) -> None:
        """Another run, and its maps in place of the former one's."""
        runs = state.find_runs(ctx.dataset)
        old, new = _chosen(ctx, runs), runs.get(ctx.params["run"])
        if new is None or old is None:
            return
        joints = state.shown_joints(old, ctx.active_fields)
        maximum = old.maximum in ctx.active_fields
        kept = state.wanted_fields(old, ctx.active_fields, False, ())
        ctx.panel.set_state("run", new.label_field)
        _show(ctx, state.wanted_fields(new, kept, maximum, joints))
        _count(ctx)

    def show_maximum(self, ctx: foo.ExecutionContext) -> None:
        self._show(ctx, maximum=True)

    def show_joints(self, ctx: foo.ExecutionContext) -> None:
        self._show(ctx, joints=ctx.params["joints"])

    def show_nothing(self, ctx: foo.ExecutionContext) -> None:
        self._show(ctx)

    def adopt(self, ctx: foo.ExecutionContext) -> None:
        from ..inference import runs

        runs.adopt(ctx.dataset, ctx.params["label_field"])
        ctx.panel.set_state("run", ctx.params["label_field"])
        _count(ctx)
        ctx.ops.reload_dataset()

    def _show(self, ctx: foo.ExecutionContext, maximum: bool = False, joints: Iterable[str] = ()) -> None:
        run = _chosen(ctx, state.find_runs(ctx.dataset))
        if run is not None:
            _show(ctx, state.wanted_fields(run, ctx.active_fields, maximum, joints))

    def render(self, ctx: foo.ExecutionContext) -> types.Property:
        panel = types.Object()
        body = view.body(panel)
        runs = state.find_runs(ctx.dataset)
        run = _chosen(ctx, runs)
        if run is None:
            self._offer(ctx, body)
        else:
            self._controls(ctx, body, run, runs)
        return types.Property(panel, view=types.GridView(orientation="vertical", align_y="top"))

    def _offer(self, ctx: foo.ExecutionContext, body: types.Object) -> None:
        view.text(body, "empty", "This dataset has no pose heatmaps yet.")
        line = view.row(body, "offers")
        view.button(line, "generate", "Generate pose heatmaps", GENERATE, on=True, prompt=True)

    def _controls(
        self, ctx: foo.ExecutionContext, body: types.Object, run: state.Run, runs: dict[str, state.Run]
    ) -> None:
        active = ctx.active_fields
        shown = state.shown_joints(run, active)
        maximum = run.maximum in active
        modes = view.row(body, "modes")
        view.button(modes, "maximum", "Maximum", self.show_maximum, on=maximum, disabled=run.maximum is None)
        view.button(
            modes,
            "all",
            "Joints",
            self.show_joints,
            on=bool(shown),
            disabled=not run.joints,
            params={"joints": shown or list(run.joints)},
        )
        view.button(modes, "off", "Off", self.show_nothing, on=not shown and not maximum)
        view.joint_table(body, run, shown, _colors(ctx.dataset), self.show_joints)
        counted = ctx.panel.get_state("counted") or {}
        if "total" in counted:
            view.text(body, "counted", f"{counted['done']:,} of {counted['total']:,} samples in the view have maps")


def _chosen(ctx: foo.ExecutionContext, runs: dict[str, state.Run]) -> state.Run | None:
    """The run that the panel is about: the chosen one, else the first that is shown, else the last made."""
    chosen = runs.get(ctx.panel.get_state("run") or "")
    if chosen is None and runs:
        shown = [run for run in runs.values() if set(run.maps) & set(ctx.active_fields)]
        chosen = (shown or list(runs.values())[::-1])[0]
    return chosen


def _show(ctx: foo.ExecutionContext, fields: list[str]) -> None:
    if set(fields) != set(ctx.active_fields):
        ctx.ops.set_active_fields(fields)
        ctx.request_params["active_fields"] = fields  # what is drawn next is what will be shown


def _count(ctx: foo.ExecutionContext) -> None:
    run = _chosen(ctx, state.find_runs(ctx.dataset))
    if run is not None:
        total, done = ctx.view.aggregate([fo.Count(), fo.Count(state.done_field(run))])
        ctx.panel.set_state("counted", {"total": total, "done": done})


def _colors(dataset: fo.Dataset) -> dict[str, Any]:
    scheme = dataset.app_config.color_scheme
    return {entry["path"]: entry["fieldColor"] for entry in (scheme.fields if scheme else None) or []}
