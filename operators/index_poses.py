"""Operator: embed the poses of a run, and hand them to FiftyOne Brain: similar poses, a map of all, unusual ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, reports

if TYPE_CHECKING:
    from ..evaluation.indexing import Choices, Progress
DUPLICATES = 0.05  # cosine distance; the form's proposal


class IndexPoses(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="index_poses",
            label="Index poses",
            description="Find similar, unusual and duplicate poses: embeddings from the maps, for FiftyOne Brain",
            icon="/assets/icon.svg",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            risk_level=types.RiskLevel.MEDIUM,
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        inputs = types.Object()
        _form(ctx, inputs)
        return types.Property(inputs, view=types.View(label="Index poses"))

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any] | dict[str, Any]:
        from ..evaluation import indexing

        steps = indexing.process(
            ctx.target_view(),
            _choices(_filled(ctx)),
            skip_existing=ctx.params.get("skip_existing", True),
            num_readers=ctx.params.get("num_readers"),
        )
        return reports.carry_out(ctx, steps, _progress, _result, _outputs)

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        return _outputs(bool((ctx.results or {}).get("failures")))

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        label_field: str = "pose",
        brain_key: str | None = None,
        people: bool = True,
        visualization: str | None = "pca",
        uniqueness: bool = True,
        duplicates: float | None = None,
        backend: str | None = None,
        skip_existing: bool = True,
        num_readers: int | None = None,
        delegate: bool = False,
        progress: bool | None = None,
    ) -> Progress | foo.ExecutionResult:
        """Index the poses of a dataset or view.

        Samples get ``<brain_key>_embedding``, people are detections with embeddings of their own in
        ``<brain_key>_people``. The brain runs are ``<brain_key>`` and ``<brain_key>_people`` (similarity),
        ``<brain_key>_map`` and ``<brain_key>_people_map`` (visualization), and ``<brain_key>_uniqueness``.

        Args:
            sample_collection: a dataset or view of images; it chooses samples, all of whose people count
            label_field: of the run
            brain_key: prefix of the fields and of the brain runs; None = ``<label_field>_poses``
            people: also index every person; needs the run's keypoints
            visualization: ``"pca"``, ``"umap"`` (needs umap-learn), or None
            uniqueness: also compute ``<brain_key>_uniqueness``
            duplicates: also mark samples (``<brain_key>_near_duplicate``) with another one within this cosine distance,
                for example 0.05; None = no
            backend: of FiftyOne Brain's similarity; None = its default
            skip_existing: leave out samples that were embedded; those with an error are tried again
            num_readers: threads that decode maps; None = one per core
            delegate: queue the operation for FiftyOne's delegated workers instead of running it here
            progress: with or without a progress bar; None = FiftyOne's default

        Returns:
            how it went, with counts and failures; for ``delegate=True`` the queued operation

        Raises:
            ValueError: before anything is written, if something cannot work
        """
        from ..evaluation import indexing

        params = {
            "label_field": label_field,
            "brain_key": brain_key,
            "people": people,
            "visualization": visualization or "none",
            "uniqueness": uniqueness,
            "duplicates": duplicates,
            "backend": backend,
        }
        choices = _choices(params)
        if not delegate:
            return indexing.index(
                sample_collection, choices, skip_existing=skip_existing, num_readers=num_readers, progress=progress
            )
        found = indexing.problems(sample_collection, choices)
        if found:
            raise ValueError(" ".join(found))
        # The form's parameter `duplicates` is a yes or no.
        params = {**params, "duplicates": duplicates is not None, "duplicates_within": duplicates}
        given = {name: value for name, value in params.items() if value is not None}
        return foo.execute_operator(
            self.uri,
            {"view": sample_collection.view()},
            params={**given, "skip_existing": skip_existing, "num_readers": num_readers},
            request_delegation=True,
        )


def _filled(ctx: foo.ExecutionContext) -> dict[str, Any]:
    """The parameters with those that the form leaves out: it asks for people only where the run has some."""
    from ..inference import runs

    label_field = ctx.params.get("label_field") or next(iter(runs.list_records(ctx.dataset)), None)
    has_people = ctx.dataset.has_field(runs.field_name(label_field or "", "keypoints"))
    people = has_people and ctx.params.get("people", True)
    return {**ctx.params, "label_field": label_field, "people": people}


def _choices(params: dict[str, Any]) -> Choices:
    """Raises ValueError, with what to do, if they make no sense."""
    from ..evaluation.indexing import Choices

    label_field = params.get("label_field") or "pose"
    visualization = params.get("visualization") or "pca"
    duplicates = params.get("duplicates_within") or params.get("duplicates")
    return Choices(
        label_field=label_field,
        key=params.get("brain_key") or f"{label_field}_poses",
        people=params.get("people", True),
        visualization=None if visualization == "none" else visualization,
        uniqueness=params.get("uniqueness", True),
        duplicates=DUPLICATES if duplicates is True else duplicates or None,
        backend=params.get("backend") or None,
    )


# --- the form


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..evaluation import indexing
    from ..inference import runs

    inputs.view_target(ctx, action_description="Index the poses of")
    found = list(runs.list_records(ctx.dataset))
    if not found:
        forms.refuse(inputs, ["This dataset has no run of pose heatmaps. Run generate_heatmaps first."])
        return
    names = types.Dropdown()
    for name in found:
        names.add_choice(name, label=name)
    inputs.enum("label_field", names.values(), default=found[0], required=True, label="Run", view=names)
    params = _filled(ctx)
    label_field = params["label_field"]
    inputs.str(
        "brain_key",
        label="Key",
        description=f"Name of the index, and what its fields begin with; empty: {label_field}_poses",
    )
    if ctx.dataset.has_field(runs.field_name(label_field, "keypoints")):
        inputs.bool(
            "people", default=True, label="People", description="Also index every person, also those that a view hides"
        )
    maps = types.RadioGroup(orientation="horizontal")
    maps.add_choice("pca", label="PCA")
    maps.add_choice("umap", label="UMAP (needs umap-learn)")
    maps.add_choice("none", label="None")
    inputs.enum("visualization", maps.values(), default="pca", label="Map for the Embeddings panel", view=maps)
    inputs.bool("uniqueness", default=True, label="Uniqueness", description="How unusual each sample's pose is")
    inputs.bool(
        "duplicates",
        default=False,
        label="Near duplicates",
        description=f"Mark samples whose cosine distance to another one is at most {DUPLICATES}",
    )
    inputs.bool(
        "skip_existing", default=True, label="Skip finished samples", description="Those with an error are tried again"
    )
    try:
        choices = _choices(params)
    except ValueError as error:
        forms.refuse(inputs, [str(error)])
        return
    problems = indexing.problems(ctx.target_view(), choices)
    if problems:
        forms.refuse(inputs, problems)
        return
    text = (
        f"{forms.samples(len(ctx.target_view()))}. Then select one and press 'Sort by similarity', index {choices.key}"
    )
    more = f"; the Embeddings panel has {choices.key}_map" if choices.visualization else ""
    forms.notice(inputs, f"{text}{more}.")


# --- the run


def _progress(state: Progress) -> dict[str, Any]:
    progress = reports.finished(state)
    return progress if state.step == "embeddings" else {**progress, "label": f"{state.step} done"}


def _result(state: Progress) -> dict[str, Any]:
    return {
        "summary": state.summary(),
        "brain_keys": ", ".join(state.brain_keys),
        "failures": [{"file": path, "reason": reason} for path, reason in state.failures],
    }


def _outputs(failures: bool) -> types.Property:
    outputs = types.Object()
    outputs.str("summary", label="Result")
    outputs.str("brain_keys", label="Brain runs")
    if failures:
        reports.failures_table(outputs)
    return types.Property(outputs, view=types.View(label="Index of poses"))
