"""Which models there are, and their weights: found, verified, read without executing anything.

To add a model, add an entry to :data:`MODELS` (or a pair ``<name>.safetensors``, ``<name>.json`` to ``assets/``).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .calibration import Calibration
from .joints import COCO, CROWDPOSE, JOINT_SETS, JointSet
from .network import HigherHRNet, NetworkConfig

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEFAULT_MODEL = "higherhrnet-lite-coco"
OPENMMLAB = "https://download.openmmlab.com/mmpose/bottom_up/"
AUTHORS = "https://drive.google.com/uc?id="
SWAHR = "https://drive.google.com/drive/folders/13FFvwK7bDZLD4H_toueopbLhJqFjimlu"


class CheckpointError(ValueError):
    """A checkpoint that cannot or must not be used; the message says why and what to do."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that people can ask for by name.

    Attributes:
        name: of the model
        network: its sizes
        joint_set: what its channels mean
        input_size: short side of the network input, pixels
        license: of the weights
        source: a file in ``assets/``, or the address where a person finds the weights
        sha256: of the bundled file; None where the file is the user's
    """

    name: str
    network: NetworkConfig
    joint_set: JointSet
    input_size: int
    license: str
    source: str
    sha256: str | None = None

    @property
    def bundled(self) -> bool:
        return self.sha256 is not None


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights.

    Attributes:
        entry: what it is
        network: in eval mode, float32, on the CPU
        sha256: of the file that the weights came from
    """

    entry: ModelEntry
    network: HigherHRNet
    sha256: str


def _published() -> dict[str, ModelEntry]:
    w32, w48 = NetworkConfig(), NetworkConfig(width=48)
    crowdpose, aic = NetworkConfig(joints=14), NetworkConfig(joints=14)
    openmmlab, authors = "Apache-2.0", "MIT"
    challenger = JointSet(
        name="ai-challenger-14",
        joints=(
            *("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
            *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "head_top", "neck"),
        ),
        flip=(3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8, 12, 13),
        limbs=(
            *((0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11)),
            *((12, 13), (13, 0), (13, 3), (0, 6), (3, 9), (6, 9)),
        ),
        grouping_order=(12, 13, 0, 3, 6, 9, 1, 4, 2, 5, 7, 10, 8, 11),
        sigmas=(0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089, 0.079, 0.079),
    )
    file = f"{OPENMMLAB}higher_hrnet"
    rows: tuple[tuple[str, NetworkConfig, JointSet, int, str, str], ...] = (
        ("w32-512-coco", w32, COCO, 512, openmmlab, f"{file}32_coco_512x512-8ae85183_20200713.pth"),
        ("w32-640-coco", w32, COCO, 640, openmmlab, f"{file}32_coco_640x640-a22fe938_20200712.pth"),
        ("w48-512-coco", w48, COCO, 512, openmmlab, f"{file}48_coco_512x512-60fedcbc_20200712.pth"),
        (
            "w32-512-crowdpose",
            crowdpose,
            CROWDPOSE,
            512,
            openmmlab,
            f"{file}32_crowdpose_512x512-1aa4a132_20201017.pth",
        ),
        ("w32-512-aic", aic, challenger, 512, openmmlab, f"{file}32_aic_512x512-9a674c33_20210130.pth"),
        ("w32-512-coco-official", w32, COCO, 512, authors, f"{AUTHORS}1V9Iz0ZYy9m8VeaspfKECDW0NKlGsYmO1"),
        ("w48-640-coco", w48, COCO, 640, authors, f"{AUTHORS}10j9Wx_I2H6qaw-prAdlJ44fLryDtA-ah"),
    )
    entries = [
        ModelEntry(f"higherhrnet-{name}", network, joint_set, size, terms, source)
        for name, network, joint_set, size, terms, source in rows
    ]
    entries.append(ModelEntry("swahr-w32-512-coco", w32, COCO, 512, authors, SWAHR))
    entries.append(ModelEntry("swahr-w48-640-coco", w48, COCO, 640, authors, SWAHR))
    return {entry.name: entry for entry in entries}


def _bundled() -> dict[str, ModelEntry]:
    entries = {}
    for path in sorted(ASSETS.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        entries[values["name"]] = ModelEntry(
            name=values["name"],
            network=NetworkConfig.from_dict(values["network"]),
            joint_set=JOINT_SETS[values["joint_set"]],
            input_size=values["input_size"],
            license=values["license"],
            source=values["file"],
            sha256=values["sha256"],
        )
    return entries


MODELS: dict[str, ModelEntry] = {**_bundled(), **_published()}


def find_model(name: str) -> ModelEntry:
    """The entry of a model.

    Raises:
        ValueError: if there is no model of that name; the message lists those that there are
    """
    if name not in MODELS:
        raise ValueError(f"There is no model '{name}'. The models are: {', '.join(MODELS)}.")
    return MODELS[name]


def weights_path(entry: ModelEntry, checkpoint: str | Path | None = None) -> Path:
    """The file of a model's weights.

    Raises:
        CheckpointError: if it is not there; the message says where to get it
    """
    path = Path(checkpoint).expanduser() if checkpoint else ASSETS / entry.source
    if not checkpoint and not entry.bundled:
        raise CheckpointError(
            f"The weights of '{entry.name}' do not come with this plugin. Fetch them from {entry.source} and give "
            f"the file as 'checkpoint', or use the bundled model '{DEFAULT_MODEL}'."
        )
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}; check the path.")
    return path


def load(name: str = DEFAULT_MODEL, checkpoint: str | Path | None = None) -> LoadedModel:
    """A model with its weights, from ``assets/`` or from the user's ``checkpoint``.

    Reads safetensors and PyTorch files (never unpickling code), plain or in a ``state_dict`` entry, with the names of
    the authors' or OpenMMLab's code; SWAHR's scale layers, which only training needs, are dropped.

    Raises:
        ValueError: if there is no model of that name
        CheckpointError: if the file is missing, damaged, has another hash than it should, holds code, or holds the
            weights of another architecture
    """
    entry = find_model(name)
    path = weights_path(entry, checkpoint)
    sha256 = file_sha256(path)
    _verify(path, sha256, None if checkpoint else entry.sha256)
    state = _normalise_names(_read(path), path)
    network = HigherHRNet(entry.network)
    _check_fit(network, state, entry, path)
    network.load_state_dict(state, strict=False)
    network.calibration = _read_calibration(path)
    return LoadedModel(entry, network.eval(), sha256)


def copy_bundled(name: str, path: str | Path) -> None:
    """Put a bundled model's weights where FiftyOne's model zoo looks for them.

    Raises:
        CheckpointError: if the model's weights do not come with the plugin
    """
    source, target = weights_path(find_model(name)), Path(path)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, sha256: str, expected: str | None) -> None:
    # OpenMMLab's file names end with the first eight digits of the file's SHA-256: -<digits>_<date>.pth
    published = re.search(r"-([0-9a-f]{8})(?:_\d{8})?\.pth$", path.name)
    expected = expected or (published.group(1) if published else "")
    if not sha256.startswith(expected):
        raise CheckpointError(
            f"{path} is not the file that was published: its SHA-256 is {sha256}, expected {expected}. "
            "It is damaged or was changed; fetch it again."
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights (Python code or objects), or is damaged, and was not opened. Use a file "
            "that holds tensors only, for example one saved with torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # what torch and safetensors raise depends on where the damage is
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged or cut off. Fetch it again."
        ) from error
    while isinstance(values, Mapping) and "state_dict" in values:
        values = values["state_dict"]
    tensors = {str(k): v for k, v in values.items() if isinstance(v, Tensor)} if isinstance(values, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no weights: expected names with tensors, plain or under 'state_dict'.")
    return tensors


def _read_calibration(path: Path) -> Calibration:
    """The calibration in the metadata of a safetensors file, where it has one; it is part of what the hash covers."""
    if path.suffix != ".safetensors":
        return Calibration()
    with safe_open(path, "pt") as file:
        knots = (file.metadata() or {}).get("calibration", "[]")
    try:
        return Calibration(tuple((float(value), float(calibrated)) for value, calibrated in json.loads(knots)))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"The calibration in the metadata of {path} cannot be used: {error}") from error


def _normalise_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """To the authors' parameter names, as float32."""
    prefixes = re.compile(r"^(module\.|backbone\.|keypoint_head\.)+")
    named = {prefixes.sub("", name): tensor for name, tensor in state.items()}
    return {name: t.float() if t.is_floating_point() else t for name, t in named.items() if "conv_scale" not in name}


def _check_fit(network: HigherHRNet, state: dict[str, Tensor], entry: ModelEntry, path: Path) -> None:
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    found = {k: tuple(v.shape) for k, v in state.items() if "num_batches_tracked" not in k}
    problems = [f"'{name}' is missing" for name in expected if name not in found]
    problems += [f"'{name}' is not part of it" for name in found if name not in expected]
    problems += [
        f"'{name}' has the shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not hold the weights of '{entry.name}': {problems[0]}"
            f"{f' (and {len(problems) - 1} more differences)' if len(problems) > 1 else ''}. "
            "Choose the model that this checkpoint was made for."
        )
