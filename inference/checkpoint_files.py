"""Checkpoint files: read in every published layout without executing anything, described, and written.

Knows files and the network's parameter names. Which models there are, and where their files lie, is in checkpoints.py.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from .calibration import Calibration
from .context import ContextGate
from .joints import JointSet
from .network import HigherHRNet, NetworkConfig, check_smoothing
from .pose_prior import PosePrior
from .pose_refiner import PoseRefiner

Parsed = TypeVar("Parsed")
ENDINGS = (".pth.tar", ".safetensors", ".pth", ".pt")
MAX_WIDTH = 256  # of a network that is still believed
SETTLED_SECONDS = 2  # younger files may change again without a change of their time
# keys in the metadata of what training/export.py writes
CALIBRATION, SMOOTHING, CONTEXT_GATE, POSE_PRIOR = "calibration", "smoothing", "context_gate", "pose_prior"
POSE_REFINER = "pose_refiner."  # with which the names of its tensors begin
MADE_FROM = "made_from"  # key in the metadata of a converted file: SHA-256 of the file that it was made from
EXACT = "exact"  # and whether its values are the same


class CheckpointError(ValueError):
    """A checkpoint that cannot or must not be used; the message says why and what to do."""


@dataclass(frozen=True)
class CheckpointFile:
    """What a checkpoint file holds.

    Attributes:
        path: of the file
        state: its tensors by the authors' parameter names; without SWAHR's scale layers, which only training needs
        metadata: of a safetensors file
        pose_refiner: tensors of a pose refiner by its own names; empty where there is none
    """

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str]
    pose_refiner: dict[str, Tensor]


def read(path: Path) -> CheckpointFile:
    """Read safetensors or a PyTorch file: plain or in a ``state_dict`` entry, the authors' names or OpenMMLab's.

    Raises:
        CheckpointError: if the file is missing, damaged, holds code or no weights, or says that it was trained with UDP
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; check the path.")
    values = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    metadata = metadata_of(path)
    _refuse_udp(path, values)
    while isinstance(values, Mapping) and "state_dict" in values:
        values = values["state_dict"]
    tensors = {str(k): v for k, v in values.items() if isinstance(v, Tensor)} if isinstance(values, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no weights: expected names with tensors, plain or under 'state_dict'.")
    # module. = data parallel, 1. = the authors' half-precision wrapper, the others = OpenMMLab
    prefixes = re.compile(r"^(module\.|1\.|backbone\.|keypoint_head\.)+")
    state = {prefixes.sub("", name): tensor for name, tensor in tensors.items()}
    refiner = {k.removeprefix(POSE_REFINER): v for k, v in state.items() if k.startswith(POSE_REFINER)}
    state = {k: v for k, v in state.items() if "conv_scale" not in k and not k.startswith(POSE_REFINER)}
    return CheckpointFile(path, state, metadata, refiner)


def describe(file: CheckpointFile) -> NetworkConfig:
    """The sizes of a HigherHRNet with these weights, from names and shapes; its ``joints`` are all heatmap channels.

    Raises:
        CheckpointError: if these are not the weights of a HigherHRNet
    """

    def length(names: str) -> int:
        return len({match.group(1) for match in (re.match(names, name) for name in file.state) if match})

    shapes = {name: tuple(tensor.shape) for name, tensor in file.state.items()}
    width, outputs, heatmaps = (
        shapes.get(f"{name}.weight", (0,))[0] for name in ("transition1.0.0", "final_layers.0", "final_layers.1")
    )
    if not (1 <= width <= MAX_WIDTH and heatmaps):
        raise CheckpointError(
            f"{file.path} does not hold the weights of a HigherHRNet: it has no 'transition1' or no two 'final_layers'."
        )
    if outputs - heatmaps not in (1, heatmaps):
        raise CheckpointError(
            f"{file.path} does not hold the weights of a HigherHRNet with tags: its heads have {outputs} and "
            f"{heatmaps} channels, which leaves {outputs - heatmaps} for tags, neither one per joint nor one for all."
        )
    head = shapes["final_layers.0.weight"][1] if len(shapes["final_layers.0.weight"]) > 1 else width
    return NetworkConfig(
        width=width,
        stem_blocks=length(r"layer1\.(\d+)\."),
        modules=(length(r"stage2\.(\d+)\."), length(r"stage3\.(\d+)\."), length(r"stage4\.(\d+)\.")),
        blocks=length(r"stage2\.0\.branches\.0\.(\d+)\."),
        deconv_blocks=length(r"deconv_layers\.0\.(\d+)\.") - 1,  # the first is the transposed convolution
        head_width=0 if head == width else head,
        joints=heatmaps,
        shared_tag=outputs - heatmaps == 1 and heatmaps > 1,
    )


def config_for(file: CheckpointFile, joints: int, expected: NetworkConfig | None, name: str) -> NetworkConfig:
    """The network of a file's weights, all of which fit it.

    Args:
        joints: of the model's joint set; one channel more is a centre map
        expected: the sizes that it must have (but for joints and tags); None = any
        name: of the model, for messages

    Raises:
        CheckpointError: if something does not fit; a sentence that says what
    """
    found = describe(file)
    found = replace(found, joints=joints, center=True) if found.joints == joints + 1 else found
    differences = []
    if found.joints != joints:
        differences.append(f"it has heatmaps for {found.joints} joints instead of {joints}")
    for field, what in (
        ("width", "width"),
        ("stem_blocks", "stem blocks"),
        ("modules", "modules"),
        ("blocks", "blocks a branch"),
        ("deconv_blocks", "blocks after the deconvolution"),
        ("head_width", "channels before the heads (0 = the width)"),
    ):
        if expected is not None and getattr(found, field) != getattr(expected, field):
            differences.append(f"its {what}: {getattr(found, field)} instead of {getattr(expected, field)}")
    differences = differences or _misfits(file.state, found)
    if differences:
        more = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise CheckpointError(
            f"{file.path} does not hold the weights of '{name}': {differences[0]}{more}. Choose the model that this "
            f"checkpoint was made for; for joints of your own, describe them in {joints_path(file.path)}."
        )
    return found


def calibration_of(file: CheckpointFile) -> Calibration:
    """The calibration in the metadata of a safetensors file; it is part of what the file's hash covers."""

    def parse(text: str) -> Calibration:
        return Calibration(tuple((float(value), float(calibrated)) for value, calibrated in json.loads(text)))

    return _entry(file, CALIBRATION, parse) or Calibration()


def smoothing_of(file: CheckpointFile) -> float:
    """The smoothing in the metadata of a safetensors file, input pixels; 0 where there is none."""
    return _entry(file, SMOOTHING, lambda text: check_smoothing(float(text))) or 0.0


def context_gate_of(file: CheckpointFile, joints: int) -> ContextGate | None:
    """The context gate in the metadata of a safetensors file, for so many joints; None where there is none."""

    def parse(text: str) -> ContextGate:
        gate = ContextGate.from_json(text)
        if len(gate.weights) != joints:
            raise ValueError(f"it has {len(gate.weights)} weights, the network {joints} joints.")
        return gate

    return _entry(file, CONTEXT_GATE, parse)


def pose_prior_of(file: CheckpointFile, joints: int) -> PosePrior | None:
    """The pose prior in the metadata of a safetensors file, of so many joints; None where there is none."""

    def parse(text: str) -> PosePrior:
        prior = PosePrior.from_json(text)
        if len(prior.mean) != joints:
            raise ValueError(f"it has {len(prior.mean)} joints, the network {joints}.")
        return prior

    return _entry(file, POSE_PRIOR, parse)


def pose_refiner_of(file: CheckpointFile, joint_set: JointSet) -> PoseRefiner | None:
    """The pose refiner among the tensors of a file, for these joints; None where there is none."""
    if not file.pose_refiner:
        return None
    try:
        if POSE_PRIOR not in file.metadata:
            raise ValueError("there is no pose prior beside it, which says how large people are.")
        return PoseRefiner.from_state(file.pose_refiner, joint_set)
    except ValueError as error:
        raise CheckpointError(f"The pose refiner in {file.path} cannot be used: {error}") from error


def _entry(file: CheckpointFile, key: str, parse: Callable[[str], Parsed]) -> Parsed | None:
    """What is parsed from an entry of the file's metadata; None where there is none."""
    if key not in file.metadata:
        return None
    try:
        return parse(file.metadata[key])
    except (ValueError, TypeError, KeyError) as error:
        what = key.replace("_", " ")
        raise CheckpointError(f"The {what} in the metadata of {file.path} cannot be used: {error}") from error


def _misfits(state: dict[str, Tensor], config: NetworkConfig) -> list[str]:
    with torch.device("meta"):
        network = HigherHRNet(config)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    found = {k: tuple(v.shape) for k, v in state.items() if "num_batches_tracked" not in k}
    return [
        *(f"'{name}' is missing" for name in expected if name not in found),
        *(f"'{name}' is not part of it" for name in found if name not in expected),
        *(
            f"'{name}' has the shape {found[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
        *(f"'{name}' is not a dense tensor" for name, tensor in state.items() if tensor.layout != torch.strided),
    ]


def write(path: Path, file: CheckpointFile, half: bool, metadata: dict[str, str]) -> bool:
    """Write weights as safetensors: without optimiser, counters and scale layers; through a temporary file.

    Args:
        half: in half precision; else as they are

    Returns:
        whether all values are the same

    Raises:
        OSError: if the file cannot be written
    """
    tensors = {**file.state, **{POSE_REFINER + name: tensor for name, tensor in file.pose_refiner.items()}}
    state = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in tensors.items()
        if "num_batches_tracked" not in name
    }
    exact = all(tensor.dtype == tensors[name].dtype for name, tensor in state.items())
    partial = path.with_name(f"{path.name}.partial")
    made = {MADE_FROM: file_sha256(file.path), EXACT: str(exact).lower()}
    kept = (CALIBRATION, SMOOTHING, CONTEXT_GATE, POSE_PRIOR)
    made |= {key: file.metadata[key] for key in kept if key in file.metadata}
    partial.write_bytes(save(state, {"format": "pt", **metadata, **made}))  # save_file() would keep others from reading
    partial.replace(path)
    return exact


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty if there is none that can be read."""
    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def twin_path(path: Path) -> Path:
    """Where the plugin looks for a converted file in place of a checkpoint: the same name, as safetensors."""
    return path.with_name(_stem(path) + ".safetensors")


def joints_path(path: Path) -> Path:
    """Where the joints of a checkpoint are described if they are of the user's own: the same name, as JSON."""
    return path.with_name(_stem(path) + ".json")


def _stem(path: Path) -> str:
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), path.suffix)
    return path.name.removesuffix(ending)


def file_sha256(path: Path) -> str:
    """Of a file's bytes, which are read again when the file has changed."""
    status = path.stat()
    if time.time() - status.st_mtime < SETTLED_SECONDS:
        return _sha256.__wrapped__(path)
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=64)
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return {"state_dict": load_file(path), "meta": metadata_of(path)}
    except Exception as error:  # what safetensors raises depends on where the damage is
        raise _damaged(path) from error


# Old checkpoints keep their best result as a NumPy scalar, pickled under the names of NumPy 1 or 2. Making one runs
# none of the file's code.
_SCALARS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (np.dtype, "numpy.dtype"),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]
_scalars_lock = threading.Lock()  # torch keeps the allowed names for the whole process


def _read_torch(path: Path) -> Any:
    try:
        with _scalars_lock, torch.serialization.safe_globals(_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights (Python code or objects), or is damaged, and was not opened. Use a file "
            "that holds tensors only, for example one saved with torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # what torch raises depends on where the damage is
        raise _damaged(path) from error


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read as a checkpoint: it is damaged or cut off. Fetch it again.")


def _refuse_udp(path: Path, values: Any) -> None:
    """UDP-trained weights have the same names and shapes, but need another warp of the image."""
    meta = values.get("meta") if isinstance(values, Mapping) else None
    for where, text in (("file name", path.name), ("'meta'", json.dumps(meta, default=str))):
        text = re.sub(r"use_udp\W{1,6}false", "", text.lower())
        if re.search(r"(?<![a-z])udp(?![a-z])|udpheatmap", text):
            raise CheckpointError(
                f"{path} was trained with UDP (its {where} says so), whose geometry differs from that of this plugin: "
                "its maps would be shifted. Use weights that were trained without UDP."
            )
