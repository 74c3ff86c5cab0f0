"""The panel "Pose evaluation": the figures of an evaluation, each of which leads to its samples."""

from __future__ import annotations

from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from ..inference.joints import spoken
from . import evaluation_plots as plots
from . import finds, state, view

EVALUATE = "@pose-heatmaps/higherhrnet/evaluate_heatmaps"
DELETE = "@pose-heatmaps/higherhrnet/delete_evaluation"


class EvaluationPanel(foo.Panel):
    """Shows results that are stored; a click on a bar or cell sets the view to the samples behind it."""

    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(
            name="pose_evaluation",
            label="Pose evaluation",
            icon="query_stats",
            category=foo.Categories.ANALYZE,
            surfaces="grid",
            help_markdown="What a pose model finds and misses; click a bar or a cell to see its samples",
        )

    def on_load(self, ctx: foo.ExecutionContext) -> None:
        """Drawn from what is stored."""

    def on_change_dataset(self, ctx: foo.ExecutionContext) -> None:
        self._forget(ctx)

    def on_change_view(self, ctx: foo.ExecutionContext) -> None:
        """Drawn anew: it may not be what the panel shows any more."""

    def choose_evaluation(self, ctx: foo.ExecutionContext) -> None:
        ctx.panel.set_state("key", ctx.params["key"])
        self._forget(ctx)

    def _forget(self, ctx: foo.ExecutionContext) -> None:
        ctx.panel.set_state("shown", None)
        ctx.panel.set_state("size", None)

    def choose_size(self, ctx: foo.ExecutionContext) -> None:
        ctx.panel.set_state("size", ctx.params["size"])

    def show_status(self, ctx: foo.ExecutionContext) -> None:
        """A part of a joint's bar."""
        joint, status = plots.joint_of(ctx.params["y"]), ctx.params["trace"]
        size = ctx.panel.get_state("size")
        people = f" of {size} people" if size else ""
        self._select(ctx, f"{spoken(joint)} {status}{people}", joint=joint, status=status, size=size)

    def show_seen_as(self, ctx: foo.ExecutionContext) -> None:
        """A cell of the confusion of joints."""
        joint, other = plots.joint_of(ctx.params["y"]), plots.joint_of(ctx.params["x"])
        self._select(ctx, f"{spoken(joint)} seen as {spoken(other)}", joint=joint, seen_as=other)

    def show_stray(self, ctx: foo.ExecutionContext) -> None:
        """A part of a joint's bar of stray peaks."""
        joint, kind = plots.joint_of(ctx.params["y"]), ctx.params["trace"]
        self._select(ctx, f"{kind} peaks of {spoken(joint)}", joint=joint, kind=kind)

    def show_reliability(self, ctx: foo.ExecutionContext) -> None:
        """A bin of peak values."""
        low = round(float(ctx.params["x"]) - 0.05, 1)
        self._select(ctx, f"stray peaks from {low:g} to {low + 0.1:g}", stray=(low, round(low + 0.1, 1)))

    def show_worst(self, ctx: foo.ExecutionContext) -> None:
        kind = ctx.params["kind"]
        self._select(ctx, f"mostly {kind}{' peaks' if kind == 'false' else ''}", worst=kind)

    def show_all(self, ctx: foo.ExecutionContext) -> None:
        ctx.panel.set_state("shown", None)
        ctx.ops.set_view(ctx.dataset.view())

    def _select(self, ctx: foo.ExecutionContext, title: str, joint: str | None = None, **what: Any) -> None:
        from ..evaluation import summary

        key = _chosen(ctx)
        if key is None:
            return
        samples = summary.select(ctx.dataset, key, joint, **what)
        stages = samples._serialize()
        ctx.panel.set_state("shown", {"title": title, "samples": len(samples), "view": finds.stages(stages)})
        ctx.request_params.update(view=stages, view_name=None)
        ctx.ops.set_view(samples)
        _show_map(ctx, key, joint)

    def render(self, ctx: foo.ExecutionContext) -> types.Property:
        panel = types.Object()
        body = view.body(panel)
        key = _chosen(ctx)
        if key is None:
            view.text(body, "empty", "No run of pose heatmaps has been compared with labelled people yet.")
            view.button(view.row(body, "offers"), "evaluate", "Evaluate pose heatmaps", EVALUATE, on=True, prompt=True)
        else:
            self._results(ctx, body, key)
        return types.Property(panel, view=types.GridView(orientation="vertical", align_y="top"))

    def _results(self, ctx: foo.ExecutionContext, body: types.Object, key: str) -> None:
        from ..evaluation import records, summary

        keys = _evaluations(ctx.dataset)
        if len(keys) > 1:
            line = view.row(body, "evaluations")
            for name in keys:
                view.button(line, f"key_{name}", name, self.choose_evaluation, on=name == key, params={"key": name})
        results = records.load_results(ctx.dataset, key)
        if results is None:
            view.text(body, "unfinished", f"The evaluation '{key}' did not come to its end; run it again to go on.")
            return
        view.text(body, "figures", summary.sentences(results), color=view.TEXT)
        shown = ctx.panel.get_state("shown")
        if shown and shown["view"] != finds.stages(ctx.request_params.get("view")):
            shown = None  # somebody chose another view
        line = view.row(body, "shown")
        for kind, count in results["worst"].items():
            name = "false peaks" if kind == "false" else kind
            tip = f"Show the samples whose most frequent mistake is: {name}"
            view.button(line, f"worst_{kind}", f"{name} {count}", self.show_worst, tip=tip, params={"kind": kind})
        view.button(line, "all", "All samples", self.show_all, disabled=not (shown or ctx.has_custom_view))
        view.button(line, "delete", "Delete…", DELETE, prompt=True, params={"eval_key": key})
        text = "Click a bar or a cell to see its samples"
        if shown:
            text = f"Shown: {shown['title']}; samples: {shown['samples']:,}, the one with most mistakes first"
        view.text(body, "selection", text, color=view.ACCENT)
        self._plots(ctx, body, results)

    def _plots(self, ctx: foo.ExecutionContext, body: types.Object, results: dict[str, Any]) -> None:
        size = ctx.panel.get_state("size")
        view.text(body, "title_statuses", "What became of each labelled joint")
        sizes = view.row(body, "sizes")
        there = [name for name, joints in results["statuses"].items() if any(map(sum, joints.values()))]
        for name in (None, *there):
            view.button(
                sizes,
                f"size_{name}",
                f"{name or 'all'} people",
                self.choose_size,
                on=size == name,
                params={"size": name},
            )
        plots.draw(body, "statuses", *plots.statuses(results, size), on_click=self.show_status)
        view.text(body, "title_seen", "Which joint's map is highest at the place of a labelled joint")
        plots.draw(body, "seen", *plots.confusion(results), on_click=self.show_seen_as)
        view.text(body, "title_reliability", "How many peaks of a value are at a joint of theirs")
        plots.draw(body, "reliability", *plots.reliability(results), on_click=self.show_reliability)
        view.text(body, "title_stray", "Peaks that are not at a joint of theirs")
        plots.draw(body, "stray", *plots.stray(results), on_click=self.show_stray)


def _evaluations(dataset: fo.Dataset) -> list[str]:
    from ..evaluation import evaluate, records

    return list(records.list_records(dataset, evaluate.KIND))


def _chosen(ctx: foo.ExecutionContext) -> str | None:
    """The evaluation that the panel is about: the chosen one, else the last made."""
    keys = _evaluations(ctx.dataset)
    key = ctx.panel.get_state("key")
    return key if key in keys else state.last_made(ctx.dataset, keys) if keys else None


def _show_map(ctx: foo.ExecutionContext, key: str, joint: str | None) -> None:
    """Switch the map of a joint on, in place of the run's others, and the labels."""
    from ..evaluation import records
    from ..inference import runs

    record = records.read_record(ctx.dataset, key)
    if record is None or joint is None:
        return
    label_field = record.settings["label_field"]
    run = runs.read_record(ctx.dataset, label_field)
    heatmaps = runs.heatmap_fields(ctx.dataset)
    # not by the prefix where there is a record: the run pose_flip begins with pose_ too
    maps = [name for name in heatmaps if (name in run.fields if run else name.startswith(f"{label_field}_"))]
    kept = [name for name in ctx.active_fields if name not in maps]
    wanted = [runs.field_name(label_field, joint), record.settings["gt_field"]]
    fields = [*kept, *(name for name in wanted if name not in kept)]
    if set(fields) != set(ctx.active_fields):
        ctx.ops.set_active_fields(fields)
