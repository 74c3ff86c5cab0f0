"""Operator: run a HigherHRNet on a view and attach one heatmap per joint and their maximum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.operators.types as types

from . import forms, generation, reports

if TYPE_CHECKING:
    from ..inference.pipeline import Progress
    from ..inference.settings import Settings

LONG = 10 * 60  # seconds from which on a worker is the better place


class GenerateHeatmaps(foo.Operator):
    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(
            name="generate_heatmaps",
            label="Generate pose heatmaps",
            description="Show where a pose model looks for each joint: heatmaps per joint, their maximum, and people",
            icon="/assets/icon.svg",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
            allow_distributed_execution=True,  # of FiftyOne Enterprise; the open-source version has shards
            risk_level=types.RiskLevel.MEDIUM,
        )

    def resolve_placement(self, ctx: foo.ExecutionContext) -> types.Placement:
        return types.Placement(
            types.Places.SAMPLES_GRID_SECONDARY_ACTIONS,
            types.Button(label="Generate pose heatmaps", icon="/assets/icon.svg", prompt=True),
        )

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        inputs = types.Object()
        _form(ctx, inputs)
        return types.Property(inputs, view=types.View(label="Generate pose heatmaps"))

    def execute(self, ctx: foo.ExecutionContext) -> Iterator[Any] | dict[str, Any]:
        shards = generation.shards_of(ctx.params)
        if shards > 1:
            settings = generation.settings_of(ctx.params)
            queued = generation.queue(self.uri, ctx.target_view(), settings, shards, *generation.choices(ctx.params))
            return generation.report_queued(ctx, len(queued))
        if ctx.delegated:
            return generation.run_delegated(ctx)
        return reports.told(ctx, generation.run_in_app(ctx))

    def resolve_output(self, ctx: foo.ExecutionContext) -> types.Property:
        return generation.outputs()

    def resolve_run_name(self, ctx: foo.ExecutionContext) -> str:
        return f"{self.config.label}{generation.part_of(ctx.params)}"

    def __call__(
        self,
        sample_collection: fo.core.collections.SampleCollection,
        label_field: str = "pose",
        model: str = "higherhrnet-lite-coco",
        checkpoint: str | None = None,
        maps: Sequence[str] = ("max", "joints"),
        keypoints: bool = True,
        storage: str = "files",
        maps_dir: str | None = None,
        resolution: str = "network",
        dtype: str = "uint8",
        floor: float = 0.02,
        input_size: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        precision: str = "float32",
        batch_size: int | None = None,
        num_readers: int | None = None,
        device: str | None = None,
        all_groups: bool = False,
        skip_existing: bool = True,
        existing: str | None = None,
        shards: int = 1,
        delegate: bool | None = None,
        progress: bool | None = None,
    ) -> Progress | foo.ExecutionResult | list[foo.ExecutionResult]:
        """Attach pose heatmaps to the samples of a dataset or view.

        Args:
            sample_collection: a dataset or view of images
            label_field: prefix of the fields that the run writes
            model: name of a model
            checkpoint: a local file with weights for it; the model ``"custom"`` takes a HigherHRNet of any size
            maps: ``"max"``, ``"joints"`` (all of them) and names of joints
            keypoints: also group the joints into people
            all_groups: keep every group of joints, however doubtful, as published figures of AP have it; but for copies
                of people, where weights have a pose refiner
            storage: ``"files"`` (PNG) or ``"memory"`` (in the database)
            maps_dir: root of the files; None = ``<default_dataset_dir>/pose-heatmaps/<dataset name>``
            resolution: ``"network"`` (half of the network's input) or ``"image"``
            dtype: ``"uint8"``, or ``"float32"`` with storage ``"memory"``
            floor: map values below it become 0
            input_size: short side of the network's input, pixels; None = the model's own
            flip: average with the mirrored image
            scales: average over these scales of the input
            precision: ``"float32"``, or ``"bfloat16"``, which is faster where the hardware computes with it; its
                rounding decides where the network wavers between two answers
            batch_size: images per forward pass; None = automatic
            num_readers: threads that decode images; None = automatic
            device: ``"cpu"``, ``"cuda:0"`` and so on; None = the best there is
            skip_existing: leave out samples that are done
            existing: where the label field has a run with other settings: None = error, ``"replace"`` it, or
                ``"append"``: keep it, and do the samples that it has not done
            shards: number of delegated operations to split the run into, for as many workers as there are
            delegate: queue the run for FiftyOne's delegated workers instead of running it here; None = where there are
                several shards
            progress: with or without a progress bar; None = FiftyOne's default

        Returns:
            the state at the end, with counts and failures; of a run that is delegated the queued operation, or, with
            several shards, all of them

        Raises:
            ValueError: if the view, the settings, a field, the folder or the weights cannot work
        """
        from ..inference import pipeline
        from ..inference.settings import Settings

        if shards < 1:
            raise ValueError(f"shards is {shards}; it must be at least 1.")
        if shards > 1 and delegate is False:
            raise ValueError("Shards are for FiftyOne's delegated workers: leave delegate out, or shards at 1.")
        settings = Settings(
            label_field=label_field,
            model=model,
            checkpoint=checkpoint,
            maps=(maps,) if isinstance(maps, str) else tuple(maps),
            keypoints=keypoints,
            all_groups=all_groups,
            storage=storage,
            maps_dir=maps_dir,
            resolution=resolution,
            dtype=dtype,
            floor=floor,
            input_size=input_size,
            flip=flip,
            scales=tuple(scales),
            precision=precision,
            batch_size=batch_size,
            num_readers=num_readers,
            device=device,
        )
        if shards == 1 and not delegate:
            return pipeline.run(
                sample_collection, settings, skip_existing=skip_existing, existing=existing, progress=progress
            )
        queued = generation.queue(self.uri, sample_collection, settings, shards, skip_existing, existing)
        return queued if shards > 1 else queued[0]


# --- the form


def _form(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    from ..inference import checkpoints

    inputs.view_target(ctx, action_description="Generate pose heatmaps for")
    forms.label_field(inputs, ctx.dataset)
    models = types.Dropdown()
    for entry in checkpoints.MODELS.values():
        models.add_choice(entry.name, label=entry.name, description=_model_description(entry))
    inputs.enum("model", models.values(), default=checkpoints.DEFAULT_MODEL, label="Model", view=models)
    chosen = checkpoints.MODELS.get(ctx.params.get("model") or checkpoints.DEFAULT_MODEL)
    if chosen and chosen.name == checkpoints.CUSTOM:
        _checkpoint_field(inputs, "Weights of a HigherHRNet of any size", required=True)
    elif chosen and not chosen.bundled:
        _checkpoint_field(inputs, f"Empty: the weights from {chosen.source}, fetched once")
    _maps_fields(ctx, inputs, _joints(generation.shown(ctx.params)))
    inputs.bool(
        "keypoints", default=True, label="People", description="Also group the joints into people, as keypoints"
    )
    _storage_fields(ctx, inputs)
    inputs.bool("advanced", default=False, label="Advanced settings", view=types.SwitchView())
    if ctx.params.get("advanced"):
        _advanced_fields(ctx, inputs, bundled=chosen is None or chosen.bundled)
    if not generation.is_queued(ctx):  # a worker has no one to tell, and would load the model once more
        _consequences(ctx, inputs)


def _joints(params: dict[str, Any]) -> Sequence[str]:
    from ..inference import checkpoints

    checkpoint = forms.chosen_path(params.get("checkpoint"))
    try:
        return checkpoints.find_model(params.get("model") or checkpoints.DEFAULT_MODEL, checkpoint).joint_set.joints
    except ValueError:  # which the form says elsewhere
        return ()


def _model_description(entry: Any) -> str:
    joints = f"{len(entry.joint_set)} joints, input {entry.input_size} px"
    if entry.bundled:
        return f"{joints}, comes with the plugin"
    if not entry.source:
        return "your own checkpoint, of any size; joints other than COCO's are described in a JSON file beside it"
    return f"{joints}, a person has to fetch it" if entry.by_hand else f"{joints}, fetched on first use"


def _checkpoint_field(inputs: types.Object, description: str, required: bool = False) -> None:
    inputs.file(
        "checkpoint",
        required=required,
        label="Checkpoint",
        description=description,
        view=types.FileExplorerView(button_label="Choose a file...", choose_button_label="Choose"),
    )


def _maps_fields(ctx: foo.ExecutionContext, inputs: types.Object, joints: Sequence[str]) -> None:
    from ..inference.joints import spoken

    choices = types.RadioGroup(orientation="horizontal")
    choices.add_choice("all", label="Maximum and every joint")
    choices.add_choice("max", label="Maximum only")
    choices.add_choice("some", label="Chosen joints")
    inputs.enum("maps", choices.values(), default="all", label="Maps", view=choices)
    if ctx.params.get("maps") == "some":
        dropdown = types.DropdownView(multiple=True)
        for joint in joints:
            dropdown.add_choice(joint, label=spoken(joint))
        inputs.list("joints", types.String(), default=[], required=True, label="Joints", view=dropdown)
        inputs.bool("maximum", default=True, label="Maximum", description="Also the maximum over all joints")


def _storage_fields(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    storages = types.RadioGroup(orientation="horizontal")
    storages.add_choice("files", label="PNG files")
    storages.add_choice("memory", label="In the database")
    inputs.enum(
        "storage",
        storages.values(),
        default="files",
        label="Storage",
        description="Files keep the dataset small and the App fast; the database needs no folder",
        view=storages,
    )
    if ctx.params.get("storage", "files") == "files":
        forms.folder(inputs, "maps_dir", "Folder", "Where the map files go; by default beside FiftyOne's datasets")
    resolutions = types.RadioGroup(orientation="horizontal")
    resolutions.add_choice("network", label="Network (small, exact)")
    resolutions.add_choice("image", label="Image (large, smooth)")
    inputs.enum("resolution", resolutions.values(), default="network", label="Resolution", view=resolutions)


def _advanced_fields(ctx: foo.ExecutionContext, inputs: types.Object, bundled: bool) -> None:
    if bundled:
        _checkpoint_field(inputs, "Weights for this network from a file, instead of its own")
    inputs.float("floor", default=0.02, min=0, max=0.99, label="Floor", description="Values below it become 0")
    if ctx.params.get("storage") == "memory":
        dtypes = types.RadioGroup(orientation="horizontal")
        dtypes.add_choice("uint8", label="8 bits")
        dtypes.add_choice("float32", label="32-bit floats")
        inputs.enum("dtype", dtypes.values(), default="uint8", label="Values", view=dtypes)
    inputs.bool(
        "all_groups",
        default=False,
        label="Doubtful people",
        description="Keep every group of joints, as published figures of AP have it; the App has more to load then",
    )
    inputs.int("input_size", min=64, label="Input size", description="Short side of the network's input, in pixels")
    inputs.bool("flip", default=False, label="Flip test", description="Average with the mirrored image; twice the time")
    inputs.str("scales", default="1", label="Scales", description="Average over these scales, such as: 0.5, 1, 2")
    precisions = types.RadioGroup(orientation="horizontal")
    precisions.add_choice("float32", label="float32 (the same everywhere)")
    precisions.add_choice("bfloat16", label="bfloat16 (fast)")
    inputs.enum("precision", precisions.values(), default="float32", label="Precision", view=precisions)
    inputs.int("batch_size", min=1, label="Batch size", description="Empty: automatic")
    inputs.int("num_readers", min=1, label="Readers", description="Threads that decode images; empty: automatic")
    inputs.str("device", label="Device", description="cpu, cuda:0, …; empty: the best there is")
    inputs.int("shards", min=1, default=1, label="Shards", description="Split into operations for several workers")
    inputs.bool(
        "skip_existing", default=True, label="Skip finished samples", description="Those with an error are tried again"
    )


def _consequences(ctx: foo.ExecutionContext, inputs: types.Object) -> None:
    """Say what the run will do, or why it cannot be done."""
    from ..inference import pipeline

    view = ctx.target_view()
    try:
        settings = generation.settings_of(ctx.params)
    except ValueError as error:
        forms.refuse(inputs, [str(error)])
        return
    # Each look at the problems reads the weights for their hash: no more of them than are needed.
    found = pipeline.problems(view, settings)
    replaced = pipeline.problems(view, settings, "replace") if found else found
    existing = None  # not what was chosen before the settings were changed again, and the App still sends
    if found != replaced:
        ways = types.RadioGroup()
        ways.add_choice(
            "replace",
            label="Make them anew",
            description="In place of what is there, sample by sample; old map files are deleted last",
        )
        ways.add_choice("append", label="Keep them", description="Only the other samples get maps, of the new settings")
        inputs.enum("existing", ways.values(), label="This label field holds something else already", view=ways)
        existing = ctx.params.get("existing")
        if existing == "replace":
            found = replaced
        elif existing:
            found = pipeline.problems(view, settings, existing)
    if found:
        forms.refuse(inputs, found)
    elif not ctx.requesting_delegated_execution:  # then nobody reads it, and the worker's device may not be here
        _notice(ctx, inputs, view, settings, existing)


def _notice(
    ctx: foo.ExecutionContext,
    inputs: types.Object,
    view: fo.core.collections.SampleCollection,
    settings: Settings,
    existing: str | None,
) -> None:
    from ..inference import checkpoints, estimates, recording, runs, weights
    from ..inference.views import whole_samples

    dataset, view = ctx.dataset, whole_samples(view)
    settings = settings.resolved(dataset)
    total = count = len(view)
    status = runs.field_name(settings.label_field, "status")
    skip_existing, _ = generation.choices(ctx.params)
    entry = checkpoints.find_model(settings.model, settings.checkpoint)
    again = existing == "replace" or recording.starts_over(dataset, settings, entry.joint_set, None, existing)
    if skip_existing and not again and dataset.has_field(status):
        count -= view.match({status: runs.DONE}).count()
    if not count:
        forms.notice(inputs, f"All {forms.samples(total)} have these maps already; there is nothing to do.")
        return
    maps = len(settings.maps)
    fields = f"{maps} heatmap field{'s' if maps != 1 else ''}"
    sizes = estimates.known_sizes(view)
    size = forms.size(count * estimates.bytes_per_image(settings, maps, sizes))
    place = f"in {settings.maps_dir}" if settings.storage == "files" else "in the database"
    seconds = 0.0
    try:
        seconds = count * estimates.seconds_per_image(settings)
        time = f"about {forms.duration(seconds)} here"
    except checkpoints.CheckpointError as error:
        forms.refuse(inputs, [str(error)])
        return
    except (RuntimeError, ValueError) as error:  # a GPU that somebody else fills, or that only a worker has
        time = "how long cannot be said here"
        forms.warn(inputs, "device", str(error).splitlines()[0])
    done = f" ({forms.samples(total - count)} done already)" if count < total else ""
    text = f"{forms.samples(count)}{done}, {fields}, about {size} {place}, {time}."
    if settings.resolution == "image" and not sizes:
        text += " The megabytes are those of images of 640 x 480; compute_metadata() would tell more."
    fetched = weights.fetch_size(entry, settings.checkpoint)
    if fetched:
        text += f" Before that, about {forms.size(fetched)} of weights will be fetched."
    shards = generation.shards_of(ctx.params)
    if shards > 1:
        text += f" Queues {shards} operations, for workers: `fiftyone delegated launch`."
    elif seconds > LONG:
        text += " Better schedule it for a worker."
    forms.notice(inputs, text)
    if settings.storage == "memory" and maps > 1:
        forms.warn(
            inputs, "memory", "The App loads maps in the database with every page, shown or not. Files keep it fast."
        )
