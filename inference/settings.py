"""What people choose for a run, checked, with the automatic choices made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiftyone as fo

from . import checkpoints, runs
from .joints import JointSet
from .maps import DTYPES, RESOLUTIONS
from .predictor import PRECISIONS, Predictor, check_sizes, find_precision
from .runs import default_maps_dir

STORAGES = ("files", "memory")


@dataclass(frozen=True)
class Settings:
    """What a run computes and stores. None = automatic.

    Attributes:
        label_field: prefix of the fields that the run writes
        model: a name of :data:`.checkpoints.MODELS`
        checkpoint: a local file with weights for that model, instead of its own; becomes absolute, as ``maps_dir``
        maps: ``"max"``, ``"joints"`` (all of them) and names of joints
        keypoints: also group the peaks into people
        all_groups: keep every group of peaks with every joint, however doubtful, as published figures of AP have it;
            but for copies of people, where weights have a pose refiner
        storage: ``"files"`` = PNG beside the dataset; ``"memory"`` = in the database
        maps_dir: root of the files; None = ``<default_dataset_dir>/pose-heatmaps/<dataset name>``
        resolution: ``"network"`` or ``"image"``; see :func:`.maps.make_maps`
        dtype: ``"uint8"``, or ``"float32"`` with storage ``"memory"``
        floor: map values below it become 0
        input_size: short side of the network input, pixels; None = the model's
        flip: average with the mirrored image
        scales: average over these scales of the input
        precision: of the network: ``"float32"``, or ``"bfloat16"``, which is faster where the hardware computes with
            it; its rounding decides where the network wavers between two answers
        batch_size, num_readers, device: how it is computed; without influence on the maps
    """

    label_field: str = "pose"
    model: str = checkpoints.DEFAULT_MODEL
    checkpoint: str | None = None
    maps: tuple[str, ...] = ("max", "joints")
    keypoints: bool = True
    all_groups: bool = False
    storage: str = "files"
    maps_dir: str | None = None
    resolution: str = "network"
    dtype: str = "uint8"
    floor: float = 0.02
    input_size: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    precision: str = "float32"
    batch_size: int | None = None
    num_readers: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        runs.check_label_field(self.label_field)
        for name, value, known in (
            ("storage", self.storage, STORAGES),
            ("resolution", self.resolution, RESOLUTIONS),
            ("dtype", self.dtype, DTYPES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(known)}.")
        if self.dtype == "float32" and self.storage == "files":
            raise ValueError("PNG files hold 8 bits: use dtype='uint8', or storage='memory' to keep float32 values.")
        check_sizes(self.scales, self.input_size)
        for name in ("checkpoint", "maps_dir"):
            if getattr(self, name):  # a worker may run in another folder
                object.__setattr__(self, name, str(Path(getattr(self, name)).expanduser().absolute()))
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor is {self.floor}; it must be at least 0 and below 1.")
        for name, count in (("batch_size", self.batch_size), ("num_readers", self.num_readers)):
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1, or None for an automatic choice.")
        find_maps(self.maps, checkpoints.find_model(self.model, self.checkpoint).joint_set)

    def resolved(self, dataset: fo.Dataset) -> Settings:
        """The settings with the automatic choices made that the record keeps."""
        entry = checkpoints.find_model(self.model, self.checkpoint)
        maximum, joints = find_maps(self.maps, entry.joint_set)
        maps_dir = None
        if self.storage == "files":
            record = runs.read_record(dataset, self.label_field)
            maps_dir = self.maps_dir or (record.maps_dir if record else None) or default_maps_dir(dataset)
        return replace(
            self,
            maps=(*(("max",) if maximum else ()), *joints),
            input_size=self.input_size or entry.input_size,
            scales=tuple(float(scale) for scale in self.scales),
            maps_dir=maps_dir,
        )

    def predictor(self, model: checkpoints.LoadedModel) -> Predictor:
        """Runs a model with these settings.

        Raises:
            ValueError: if the device is not there, or lacks the precision
        """
        return Predictor(
            model.network,
            model.entry.joint_set.flip,
            self.input_size or model.entry.input_size,
            self.flip,
            self.scales,
            self.device,
            find_precision(self.precision, self.device),
        )

    def recorded(self) -> dict[str, Any]:
        """What decides how the maps look, as plain values."""
        names = ("model", "checkpoint", "keypoints", "storage", "maps_dir", "resolution", "dtype", "floor")
        values = {name: getattr(self, name) for name in (*names, "input_size", "flip", "precision")}
        values["all_groups"] = self.all_groups or None  # as in records of runs that were made before there was a choice
        return {**values, "maps": list(self.maps), "scales": list(self.scales)}


def find_maps(maps: Iterable[str], joint_set: JointSet) -> tuple[bool, tuple[str, ...]]:
    """Whether the maximum is wanted, and which joints, in the joint set's order.

    Raises:
        ValueError: if a name is unknown or nothing is asked for
    """
    wanted = {maps} if isinstance(maps, str) else set(maps)
    unknown = wanted - {"max", "joints", *joint_set.joints}
    if unknown or not wanted:
        raise ValueError(
            f"maps is {sorted(wanted)}; name 'max', 'joints' (all of them), or some of {', '.join(joint_set.joints)}."
        )
    joints = joint_set.joints if "joints" in wanted else tuple(j for j in joint_set.joints if j in wanted)
    return "max" in wanted, joints
