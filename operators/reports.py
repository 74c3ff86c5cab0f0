"""How far an operation is and how it went: in the App, or in the status of a delegated operation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import fiftyone.operators as foo
import fiftyone.operators.types as types

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_BETWEEN_STATUSES = 2.0  # of a delegated operation, in the database


class State(Protocol):
    total: int
    done: int
    failed: int
    failures: list[tuple[str, str]]

    def summary(self) -> str: ...


S = TypeVar("S", bound=State)
T = TypeVar("T")


def carry_out(
    ctx: foo.ExecutionContext,
    steps: Iterator[S],
    progress: Callable[[S], dict[str, Any]],
    result: Callable[[S], dict[str, Any]],
    outputs: Callable[[bool], types.Property],
) -> Iterator[Any] | dict[str, Any]:
    """Go through an operation's steps and report on them.

    Args:
        ctx: of the operator that changes the dataset
        steps: yields the operation's state, the same object each time: before the first step, and after each
        progress: ``progress`` (0 to 1) and ``label`` of a state
        result: of the last state, for the operator's output
        outputs: what shows that result; gets whether there were failures

    Returns:
        what ``execute()`` returns: on a worker the result, in the App a generator of its triggers
    """

    def in_app() -> Iterator[Any]:
        state = next(steps)
        for _ in now_and_then(steps, SECONDS_BETWEEN_REPORTS):
            yield ctx.ops.set_progress(**progress(state))
        yield ctx.ops.reload_dataset()
        yield ctx.ops.notify(state.summary(), variant="warning" if state.failed else "success")
        yield ctx.ops.show_output(outputs(bool(state.failures)).to_json(), result(state))

    def on_worker() -> dict[str, Any]:
        state = next(steps)
        for _ in now_and_then(steps, SECONDS_BETWEEN_STATUSES):
            ctx.set_progress(**progress(state))
        ctx.set_progress(**progress(state))
        return result(state)

    return on_worker() if ctx.delegated else told(ctx, in_app())


def told(ctx: foo.ExecutionContext, triggers: Iterator[Any]) -> Iterator[Any]:
    """An operation's triggers in the App; an error becomes the last of them, in place of the progress.

    FiftyOne shows what ``execute()`` raises. Where a generator raises, the App tells only of a network error.
    """
    try:
        yield from triggers
    except Exception as error:
        if "operator_uri" not in ctx.request_params:  # not the App: foo.execute_operator() raises it
            raise
        logger.exception("%s failed", ctx.request_params["operator_uri"])
        sentence = str(error) or type(error).__name__
        outputs = types.Object()
        outputs.str("error", label="Error")
        yield ctx.ops.notify(sentence, variant="error")
        yield ctx.ops.show_output(types.Property(outputs).to_json(), {"error": sentence})


def now_and_then(steps: Iterator[T], seconds: float) -> Iterator[T]:
    """Goes through all steps, and yields the first and then at most one in so many seconds."""
    reported = -math.inf
    for step in steps:
        if time.monotonic() - reported > seconds:
            reported = time.monotonic()
            yield step


def finished(state: State, what: str = "images") -> dict[str, Any]:
    """FiftyOne's progress of an operation that goes through images."""
    count = state.done + state.failed
    return {"progress": count / max(state.total, 1), "label": f"{count} of {state.total} {what}"}


def failures_table(outputs: types.Object) -> None:
    """The table of the ``failures`` of a result: ``file`` and ``reason``."""
    table = types.TableView()
    table.add_column("file", label="File")
    table.add_column("reason", label="What to know")
    outputs.list("failures", types.Object(), label="Images with a problem", view=table)
