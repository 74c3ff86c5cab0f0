"""The controls that both panels have: which run, its maximum or its joints, the next joint, the people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import fiftyone.operators as foo
import fiftyone.operators.types as types

from ..inference.joints import spoken
from . import state, view
from .state import Run

_newest: dict[str | None, dict[str, Any]] = {}  # what the App showed at the newest event of each panel


class Controls(foo.Panel):
    """Says which fields are shown and draws the buttons for it; what "shown" is, the panels know.

    A button carries what is wanted, never a change of what there is: the App sends some clicks twice.
    """

    about: tuple[str, ...] = ()  # what of a request tells what the App shows

    def execute(self, ctx: foo.ExecutionContext) -> Any:
        ctx.event = _newest[ctx.panel_id] = {name: ctx.request_params.get(name) for name in self.about}
        return super().execute(ctx)

    def catch_up(self, ctx: foo.ExecutionContext) -> bool:
        """Where the App shows something else by now, make the answer about that; whether it was so.

        Events are answered beside each other: a late answer would bring back what was shown before.
        """
        newest = _newest.get(ctx.panel_id)
        late = newest is not None and getattr(ctx, "event", newest) != newest
        if late:
            ctx.request_params.update(newest)
            ctx._dataset = ctx._view = None
        return late

    def shown_fields(self, ctx: foo.ExecutionContext) -> list[str]:
        """The fields that are shown, maps and others."""
        raise NotImplementedError

    def show_fields(self, ctx: foo.ExecutionContext, fields: list[str]) -> None:
        """Show these fields and no others. From then on :meth:`shown_fields` is these, in this call too."""
        raise NotImplementedError

    def choose_run(self, ctx: foo.ExecutionContext) -> None:
        """Another run, and its maps in place of those of all others: what is shown decides, not what was chosen."""
        runs = state.find_runs(ctx.dataset)
        new = runs.get(ctx.params["run"])
        if new is None:
            return
        ctx.panel.set_state("run", new.label_field)
        shown = kept = self.shown_fields(ctx)
        for run in runs.values():
            kept = state.wanted_fields(run, kept, False, ())
        maximum = any(run.maximum in shown for run in runs.values())
        joints = {joint for run in runs.values() for joint in state.shown_joints(run, shown)}
        self._show(ctx, state.wanted_fields(new, kept, maximum, joints))

    def show_maximum(self, ctx: foo.ExecutionContext) -> None:
        self._show_maps(ctx, maximum=True)

    def show_joints(self, ctx: foo.ExecutionContext) -> None:
        self._show_maps(ctx, joints=ctx.params["joints"])

    def show_nothing(self, ctx: foo.ExecutionContext) -> None:
        self._show_maps(ctx)

    def show_people(self, ctx: foo.ExecutionContext) -> None:
        run = self.chosen(ctx, state.find_runs(ctx.dataset))
        people = run and run.people
        if people:
            others = [name for name in self.shown_fields(ctx) if name != people]
            self._show(ctx, [*others, people] if ctx.params["on"] else others)

    def _show_maps(self, ctx: foo.ExecutionContext, maximum: bool = False, joints: Iterable[str] = ()) -> None:
        run = self.chosen(ctx, state.find_runs(ctx.dataset))
        if run is not None:
            self._show(ctx, state.wanted_fields(run, self.shown_fields(ctx), maximum, joints))

    def _show(self, ctx: foo.ExecutionContext, fields: list[str]) -> None:
        if set(fields) != set(self.shown_fields(ctx)):
            self.show_fields(ctx, fields)

    def chosen(self, ctx: foo.ExecutionContext, runs: dict[str, Run]) -> Run | None:
        """The run that the panel is about: the chosen one, else one that is shown, else the last made."""
        chosen = runs.get(ctx.panel.get_state("run") or "")
        if chosen is None and runs:
            active = set(self.shown_fields(ctx))
            shown = next((run for run in runs.values() if active & set(run.maps)), None)
            chosen = shown or runs[state.last_made(ctx.dataset, runs)]
        return chosen

    def draw_controls(
        self, ctx: foo.ExecutionContext, parent: types.Object, run: Run, runs: dict[str, Run], colors: dict[str, str]
    ) -> None:
        shown = self.shown_fields(ctx)
        joints, maximum = state.shown_joints(run, shown), run.maximum in shown
        if len(runs) > 1:
            line = view.row(parent, "runs")
            view.caption(line, "run", "Run")
            for name, other in runs.items():
                on = name == run.label_field
                view.button(line, f"run_{name}", name, self.choose_run, on=on, tip=other.title, params={"run": name})

        line = view.row(parent, "modes", columnGap=1)
        choose = view.segments(line, "mode")
        view.button(
            choose,
            "maximum",
            "Maximum",
            self.show_maximum,
            on=maximum,
            tip="Show the maximum over all joints",
            disabled=not run.maximum,
        )
        view.button(
            choose,
            "joints",
            "Joints",
            self.show_joints,
            on=bool(joints),
            tip="Show the joints, each in its own colour",
            disabled=not run.joints,
            params={"joints": joints or list(run.joints)},
        )
        view.button(choose, "off", "Off", self.show_nothing, on=not joints and not maximum, tip="Show no maps")
        if run.people:
            on = run.people in shown
            tip = "Hide the skeletons" if on else "Show the skeletons of the people found"
            view.button(line, "people", "Skeletons", self.show_people, on=on, tip=tip, params={"on": not on})

        if run.joints:
            view.joint_table(parent, run, joints, colors, self.show_joints)
            line = view.row(parent, "steps")
            previous, following = state.neighbours(run, joints)
            view.button(
                line, "previous", "‹ Previous", self.show_joints, tip="Previous joint", params={"joints": [previous]}
            )
            view.button(line, "next", "Next ›", self.show_joints, tip="Next joint", params={"joints": [following]})
            if len(joints) == 1:
                number = list(run.joints).index(joints[0]) + 1
                view.caption(line, "step", f"{spoken(joints[0])}, joint {number} of {len(run.joints)}")
