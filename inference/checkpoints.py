"""Which models there are, and their weights: bundled, fetched on first use, or the user's own file.

To add a model, add a row to :func:`_published` (or a pair ``<name>.safetensors``, ``<name>.json`` to ``assets/``).
Where their files are, weights.py knows; what is in a file, checkpoint_files.py.

From the repository root: ``python -m inference.checkpoints convert SRC DST.safetensors`` makes a small safe file of any
checkpoint; ``python -m inference.checkpoints fetch NAME`` fetches a model's weights before they are needed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from . import fetching, weights
from .checkpoint_files import (
    CheckpointError,
    calibration_of,
    config_for,
    context_gate_of,
    describe,
    joints_path,
    pose_prior_of,
    pose_refiner_of,
    read,
    smoothing_of,
    twin_path,
    write,
)
from .joints import AI_CHALLENGER, COCO, CROWDPOSE, JOINT_SETS, JointSet
from .network import HigherHRNet, NetworkConfig

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEFAULT_MODEL = "higherhrnet-lite-coco"
CUSTOM = "custom"
OPENMMLAB = "https://download.openmmlab.com/mmpose/bottom_up/"
FOLDER = "https://drive.google.com/drive/folders/"  # only a person can fetch from it
SWAHR = f"{FOLDER}13FFvwK7bDZLD4H_toueopbLhJqFjimlu"


@dataclass(frozen=True)
class ModelEntry:
    """A model that people can ask for by name.

    Attributes:
        name: of the model
        network: its sizes; None = what the user's checkpoint has
        joint_set: what its channels mean
        input_size: short side of the network input, pixels
        license: of the weights
        source: a file in ``assets/``, or the address of the weights; empty where only the user has them
        file: name of the published file, also on mirrors
        sha256: of the bundled file, or the beginning of the published one's; empty where none was published
        reported_ap: as published: on COCO val2017 with flip test / and with several scales
    """

    name: str
    network: NetworkConfig | None
    joint_set: JointSet
    input_size: int
    license: str
    source: str
    file: str = ""
    sha256: str = ""
    reported_ap: str = ""

    @property
    def bundled(self) -> bool:
        return bool(self.source) and "://" not in self.source

    @property
    def asset(self) -> Path:
        """The bundled file."""
        return ASSETS / self.source

    @property
    def by_hand(self) -> bool:
        """Whether only a person can fetch the file: from a folder of Google Drive."""
        return self.source.startswith(FOLDER)


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights.

    Attributes:
        entry: what it is
        network: in eval mode, float32, on the CPU
        sha256: what tells its weights from others; see :class:`.weights.Weights`
    """

    entry: ModelEntry
    network: HigherHRNet
    sha256: str


def _published() -> list[ModelEntry]:
    w32, w48, fourteen = NetworkConfig(), NetworkConfig(width=48), NetworkConfig(joints=14)
    openmmlab = (
        # name, network, joints, input size, file (its SHA-256 begins with the digits behind the dash), reported AP
        ("w32-512-coco", w32, COCO, 512, "32_coco_512x512-8ae85183_20200713", "67.7 / 70.6"),
        ("w32-640-coco", w32, COCO, 640, "32_coco_640x640-a22fe938_20200712", "68.6 / 70.6"),
        ("w48-512-coco", w48, COCO, 512, "48_coco_512x512-60fedcbc_20200712", "68.6 / 71.6"),
        ("w32-512-crowdpose", fourteen, CROWDPOSE, 512, "32_crowdpose_512x512-1aa4a132_20201017", "65.5 (CrowdPose)"),
        ("w32-512-aic", fourteen, AI_CHALLENGER, 512, "32_aic_512x512-9a674c33_20210130", "31.5 (AI Challenger)"),
    )
    entries = []
    for name, network, joint_set, size, stem, reported in openmmlab:
        file, digits = f"higher_hrnet{stem}.pth", stem.split("-")[1].split("_")[0]
        source = OPENMMLAB + file
        entries.append(
            ModelEntry(f"higherhrnet-{name}", network, joint_set, size, "Apache-2.0", source, file, digits, reported)
        )

    def authors(name: str, network: NetworkConfig, size: int, source: str, file: str, reported: str) -> ModelEntry:
        return ModelEntry(name, network, COCO, size, "MIT", source, file, reported_ap=reported)

    drive = fetching.GOOGLE_DRIVE
    entries += [
        authors(
            "higherhrnet-w32-512-coco-official",
            w32,
            512,
            f"{drive}1V9Iz0ZYy9m8VeaspfKECDW0NKlGsYmO1",
            "pose_higher_hrnet_w32_512.pth",
            "67.1 / 69.9",
        ),
        authors(
            "higherhrnet-w48-640-coco",
            w48,
            640,
            f"{drive}10j9Wx_I2H6qaw-prAdlJ44fLryDtA-ah",
            "pose_higher_hrnet_w48_640.pth.tar",
            "69.9 / 72.1",
        ),
        authors("swahr-w32-512-coco", w32, 512, SWAHR, "swahr-w32-512-coco.pth", "68.9 / 71.4"),
        authors("swahr-w48-640-coco", w48, 640, SWAHR, "swahr-w48-640-coco.pth", "70.8 / 73.2"),
    ]
    return [*entries, ModelEntry(CUSTOM, None, COCO, 512, "the checkpoint's own", source="")]


def _bundled() -> list[ModelEntry]:
    entries = []
    for path in sorted(ASSETS.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        entries.append(
            ModelEntry(
                name=values["name"],
                network=NetworkConfig.from_dict(values["network"]),
                joint_set=JOINT_SETS[values["joint_set"]],
                input_size=values["input_size"],
                license=values["license"],
                source=values["file"],
                sha256=values["sha256"],
            )
        )
    return entries


MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in (*_bundled(), *_published())}


def find_model(name: str, checkpoint: str | Path | None = None) -> ModelEntry:
    """The entry of a model; with the joints that a JSON file beside the checkpoint describes, if there is one.

    Raises:
        ValueError: if there is no model of that name (the message lists those that there are), or if the JSON file is
            not a joint set
    """
    if name not in MODELS:
        raise ValueError(f"There is no model '{name}'. The models are: {', '.join(MODELS)}.")
    entry = MODELS[name]
    description = joints_path(Path(checkpoint).expanduser()) if checkpoint else None
    if description is None or not description.is_file():
        return entry
    return replace(entry, joint_set=JointSet.from_json(description)) if _is_joint_set(description) else entry


def _is_joint_set(path: Path) -> bool:
    """Whether a JSON file is meant as one; beside bundled weights lies one that describes the model."""
    try:
        return "joints" in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return b'"joints"' in path.read_bytes()  # a damaged one, which is to be said


def load(name: str = DEFAULT_MODEL, checkpoint: str | Path | None = None) -> LoadedModel:
    """A model with its weights: bundled, fetched on first use, or from the user's ``checkpoint``.

    Raises:
        ValueError: if there is no model of that name
        CheckpointError: if the weights cannot be had, are damaged, have another hash than they should, hold code, or
            are those of another architecture; the message says what to do
    """
    entry = find_model(name, checkpoint)
    found = weights.find(entry, checkpoint) or weights.fetch(entry)
    file = read(found.path)
    config = config_for(file, len(entry.joint_set), entry.network, name)
    network = HigherHRNet(config)
    network.calibration, network.smoothing = calibration_of(file), smoothing_of(file)
    network.context_gate = context_gate_of(file, config.joints)
    network.pose_prior = pose_prior_of(file, config.joints)
    network.pose_refiner = pose_refiner_of(file, entry.joint_set)
    state = {name: tensor.float() for name, tensor in file.state.items() if "num_batches_tracked" not in name}
    network.load_state_dict(state, strict=False)  # only the counters are missing
    return LoadedModel(entry, network.eval(), found.sha256)


# --- converting


def convert(
    source: str | Path, target: str | Path | None = None, *, name: str | None = None, half: bool = False
) -> Path:
    """Make a small safe file of any checkpoint: safetensors without optimiser, counters and training-only layers.

    The plugin prefers it from then on: beside the source under the same name it is used in its place, and as a model's
    own weights whenever that model is asked for.

    Args:
        source: a checkpoint in any layout
        target: ends with .safetensors; None = as :func:`conversion_target` says
        name: of the published model whose own weights it becomes
        half: in half precision, which halves the size and moves heatmap values by about a thousandth

    Returns:
        the path of the new file

    Raises:
        ValueError: if there is no model of that name, or a JSON file beside the source is not a joint set
        CheckpointError: if the source cannot be used, or the target cannot be written
    """
    source = Path(source).expanduser()
    target = Path(target).expanduser() if target else conversion_target(source, name)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} must end with .safetensors.")
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{source} is a safetensors file already; name another one for the result.")
    try:
        if name:
            target.parent.mkdir(parents=True, exist_ok=True)
            weights.install(find_model(name), source, target, half)
            return target
        config = examine(source)
        write(target, read(source), half, {"network": json.dumps(config.to_dict())})
        if joints_path(source).is_file() and joints_path(source) != joints_path(target):
            shutil.copyfile(joints_path(source), joints_path(target))
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def conversion_target(source: Path, name: str | None = None) -> Path:
    """Where the plugin looks for a converted file: beside the source, or where a model's own weights are kept.

    Raises:
        ValueError: if there is no model of that name
        CheckpointError: if the model has no published weights, or the source is such a file already
    """
    if not name:
        target = twin_path(source)
        if target == source:
            raise CheckpointError(f"{source} is a safetensors file already; there is nothing to convert.")
        return target
    entry = find_model(name)
    if entry.bundled or not entry.source:
        raise CheckpointError(f"'{name}' has no published file that could be converted.")
    return weights.installed_path(entry)


def examine(source: Path) -> NetworkConfig:
    """The network of a checkpoint of any size.

    Raises:
        ValueError: if a JSON file beside it is not a joint set
        CheckpointError: if it holds no weights of a HigherHRNet, or not for the joints that the JSON file describes
    """
    file = read(source)
    described = find_model(CUSTOM, source).joint_set
    joints = describe(file).joints if described is COCO else len(described)
    return config_for(file, joints, None, "a HigherHRNet")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inference.checkpoints")
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert", help="make a small safe file of any checkpoint")
    converting.add_argument("source", metavar="SRC")
    converting.add_argument("target", metavar="DST.safetensors")
    converting.add_argument("--half", action="store_true", help="in half precision: half the size")
    fetched = commands.add_parser("fetch", help="fetch a model's weights before they are needed")
    fetched.add_argument("name", metavar="NAME")
    arguments = parser.parse_args()
    try:
        if arguments.command == "fetch":
            print(weights.fetch(find_model(arguments.name)).path)
        else:
            path = convert(arguments.source, arguments.target, half=arguments.half)
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB of {Path(arguments.source).stat().st_size / 1e6:.1f} MB")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
