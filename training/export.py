"""Write a run's weights as a bundled model: `python -m training.export --data DIR --run runs/lite`.

Writes `<assets>/<name>.safetensors` (fp16, the exponential moving average, with their smoothing, a context gate and a
calibration fitted on the held-out photos of `--data`, a pose prior fitted on its training photos, and the pose refiner
that is given) and `<assets>/<name>.json`, which says what the weights are. Both are written under a temporary name and
renamed, so that a reader never sees half a file. With `--card` it also measures them for the model card.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from inference.calibration import Calibration
from inference.checkpoint_files import POSE_REFINER, read
from inference.checkpoints import ASSETS
from inference.context import ContextGate
from inference.joints import COCO
from inference.network import HigherHRNet, NetworkConfig, check_smoothing
from inference.pose_prior import PosePrior
from inference.pose_refiner import PoseRefiner
from training.calibrate import fit
from training.context import fit_context_gate
from training.dataset import read_shards, split
from training.evaluate import add_network_arguments, read_trained
from training.poses import fit_pose_prior
from training.train import write

LICENSE = (
    "Trained on data that is licensed for research: LSP Extended, Penn-Fudan, Flickr8k, a set of full-body photos, "
    "ADE20K. COCO annotations are CC BY 4.0; COCO, Flickr8k and Open Images photos are under their Flickr licences."
)
DATA = "COCO 2017, Open Images, Flickr8k, Penn-Fudan and full-body photos, LSP Extended, ADE20K (no people)"


def export(
    state: dict[str, Tensor],
    config: NetworkConfig,
    assets: Path,
    name: str,
    input_size: int,
    photos_seen: int,
    calibration: Calibration,
    smoothing: float = 0.0,
    context_gate: ContextGate | None = None,
    pose_prior: PosePrior | None = None,
    pose_refiner: Mapping[str, Tensor] | None = None,
) -> dict:
    """Write weights and their description.

    Args:
        state: parameters and buffers by their published names; any dtype
        config: the network they belong to
        assets: folder to write to
        name: of the model, also the files' stem
        input_size: short side in pixels at which the network is to be used
        photos_seen: training photos behind these weights, start included
        calibration: of their values, as smoothing and gate leave them
        smoothing: of maps and tags, input pixels
        context_gate: of their maps
        pose_prior: for their grouping
        pose_refiner: parameters and buffers of the refiner of the people that it makes

    Returns:
        what was written to the JSON file

    Raises:
        ValueError: if weights are missing, one is not a finite fp16 number, the smoothing could not be loaded, the
            refiner is none, or has no pose prior beside it
    """
    weights = {k: v.detach().half().contiguous() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    wanted = {k for k in HigherHRNet(config).state_dict() if not k.endswith("num_batches_tracked")}
    if weights.keys() != wanted:
        raise ValueError(
            f"The weights do not fit the network: {sorted(weights.keys() ^ wanted)[:3]} are in one of them only. "
            "Export with the configuration that the run was trained with."
        )
    if pose_refiner:
        if not pose_prior:
            raise ValueError("A pose refiner needs a pose prior, which says how large people are.")
        PoseRefiner.from_state(pose_refiner, COCO)
        weights |= {POSE_REFINER + k: v.half() for k, v in pose_refiner.items() if "num_batches_tracked" not in k}
    broken = [k for k, v in weights.items() if not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{broken[0]} has values that fp16 cannot hold; the run diverged, export an earlier one.")
    metadata = {
        "config": json.dumps(config.to_dict()),
        "calibration": json.dumps(calibration.knots),
        "smoothing": str(check_smoothing(smoothing)),
    }
    if context_gate:
        metadata["context_gate"] = context_gate.to_json()
    if pose_prior:
        metadata["pose_prior"] = pose_prior.to_json()
    data = save(weights, metadata)
    about = {
        "name": name,
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "network": config.to_dict(),
        "joint_set": "coco-17",
        "input_size": input_size,
        "license": LICENSE,
        "data": DATA,
        "photos_seen": photos_seen,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    assets.mkdir(parents=True, exist_ok=True)
    write(assets / f"{name}.safetensors", data)
    write(assets / f"{name}.json", (json.dumps(about, indent=2) + "\n").encode())
    return about


def mean(state: dict[str, Tensor], other: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two that one training led from to the other: often better than both (arXiv 2203.05482).

    Args:
        state, other: weights of the same network
        share: of ``state``, 0 to 1

    Raises:
        ValueError: if they are not of the same network
    """
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in other.items()}:
        raise ValueError(
            "The weights to average with are those of another network. A run can be averaged with what it began "
            "from if that has as many blocks and channels."
        )
    return {name: torch.lerp(other[name].float(), value.float(), share) for name, value in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_network_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of the training shards")
    parser.add_argument("--name", default="higherhrnet-lite-coco")
    parser.add_argument("--input-size", type=int, default=256)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--average", type=Path, help="a .safetensors file, such as the run's start, to average with")
    parser.add_argument("--share", type=float, default=0.6, help="of the run in that average (default: %(default)s)")
    parser.add_argument("--smoothing", type=float, default=0.0, help="deviation of a Gaussian, input pixels")
    parser.add_argument("--pose-refiner", type=Path, help="what training.refine_poses wrote; else none")
    parser.add_argument("--photos-seen", type=int, help="training photos behind the weights, if not the run's")
    parser.add_argument(
        "--card", type=Path, help="a folder with val/ and person_free/: measure, and fill the model card"
    )
    arguments = parser.parse_args()
    if arguments.card and arguments.assets.resolve() != ASSETS:
        parser.error(f"--card is about the weights that the plugin brings: leave --assets at {ASSETS}.")
    trained = read_trained(arguments.run, arguments.weights)
    config, state = trained.config, trained.state
    photos = arguments.photos_seen or trained.photos or 0
    if arguments.average:
        state = mean(state, read(arguments.average).state, arguments.share)
    network = HigherHRNet(config).eval()
    network.load_state_dict({k: v.half().float() for k, v in state.items()}, strict=False)
    network.smoothing = check_smoothing(arguments.smoothing)
    training_photos, held = split(read_shards(arguments.data), **trained.held_out)
    network.context_gate = fit_context_gate(network, held, arguments.input_size)
    calibration = fit(network, held, arguments.input_size)
    about = export(
        state,
        config,
        arguments.assets,
        arguments.name,
        arguments.input_size,
        photos,
        calibration,
        arguments.smoothing,
        network.context_gate,
        fit_pose_prior(training_photos),
        load_file(arguments.pose_refiner) if arguments.pose_refiner else None,
    )
    print(json.dumps({**about, "calibration": calibration.knots}, indent=2))
    if arguments.card:  # a process of its own: this one knows the weights that were there before
        command = [sys.executable, "-m", "training.card", "--data", str(arguments.card), "--name", arguments.name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
