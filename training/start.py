"""What a run begins with: weights of an earlier edition, in a network that may be larger."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from inference.checkpoint_files import read
from inference.network import BasicBlock, Bottleneck, HigherHRNet


def start_from(network: HigherHRNet, path: Path) -> None:
    """Take over weights of a network that has at most as many blocks and as wide heads.

    The larger network computes at first what the smaller one did: blocks that the file lacks begin as the identity,
    and channels that it lacks begin at random, but nothing that was there before listens to them (Net2Net, arXiv
    1511.05641).

    Raises:
        ValueError: if the networks differ by more than that
    """
    weights = {name: value.float() for name, value in read(path).state.items()}
    new: dict[str, torch.nn.BatchNorm2d] = {}  # blocks that the file lacks: what comes before the shortcut is added
    for name, block in network.named_modules():
        if any(key.startswith(f"{name}.") for key in weights):
            continue
        if isinstance(block, BasicBlock):
            new[f"{name}."] = block.bn2
        elif isinstance(block, Bottleneck) and block.downsample is None:
            new[f"{name}."] = block.bn3
    state = network.state_dict()
    unknown = sorted(weights.keys() - state.keys())
    if unknown:
        raise ValueError(f"{path} has {len(unknown)} weights that the network lacks, such as {unknown[0]}.")
    finest = f"stage4.{network.config.modules[2] - 1}.fuse_layers.0.0.weight"
    if finest in state:  # else the identity
        weights.setdefault(finest, torch.eye(network.config.width)[:, :, None, None])
    # exported weights lack num_batches_tracked
    rest = (key for key in state.keys() - weights.keys() if not key.endswith("num_batches_tracked"))
    missing = sorted(key for key in rest if not key.startswith(tuple(new)))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} weights of the network, such as {missing[0]}; only whole blocks may be new."
        )
    if any(weights[f"final_layers.{i}.bias"].shape != state[f"final_layers.{i}.bias"].shape for i in (0, 1)):
        raise ValueError(f"{path} has heatmaps or tags for other joints than the network; start from one for the same.")
    narrow = [n for n, w in weights.items() if any(a < b for a, b in zip(state[n].shape, w.shape, strict=True))]
    if narrow:
        raise ValueError(f"{path} has more channels in {narrow[0]} than the network; start from a narrower one.")
    deconv = "deconv_layers.0.0.0.weight"  # it alone has inputs first, and reads the first heads' result after features
    heads = network.config.heatmaps + network.config.tags
    for name, weight in weights.items():
        if weight.shape == state[name].shape:
            continue
        if name == deconv:
            weights[name] = widened(state[name].transpose(0, 1), weight.transpose(0, 1), heads).transpose(0, 1)
        else:
            weights[name] = widened(state[name], weight)
    network.load_state_dict(weights, strict=False)
    for norm in new.values():
        torch.nn.init.zeros_(norm.weight)


def check_edition(path: Path, photos: int) -> None:
    """The folder of bundled weights holds the last edition only, and most parts started from an earlier one.

    Raises:
        ValueError: if the JSON beside the weights says that another number of photos is behind them
    """
    about = path.with_suffix(".json")
    seen = json.loads(about.read_text())["photos_seen"] if about.exists() else photos
    if seen != photos:
        raise ValueError(
            f"{path} is an edition of {seen} photos, and the configuration's start_photos are {photos}. Take the "
            "edition that it means from the repository's history (training/README.md says how) and name that file as "
            "'start', or set start_photos to begin with this one."
        )


def widened(larger: Tensor, weight: Tensor, last_inputs: int = 0) -> Tensor:
    """A weight among those of a layer with more channels.

    Args:
        larger: (outputs, inputs, ...) or (outputs,), what the new channels begin with
        weight: the same with at most as many outputs and inputs; its outputs get nothing from the new inputs
        last_inputs: so many inputs stay the last ones
    """
    result = larger.clone()
    outputs = len(weight)
    if weight.ndim == 1:
        result[:outputs] = weight
        return result
    first_inputs = weight.shape[1] - last_inputs
    result[:outputs] = 0
    result[:outputs, :first_inputs] = weight[:, :first_inputs]
    if last_inputs:
        result[:outputs, -last_inputs:] = weight[:, -last_inputs:]
    return result


def restart_tags(network: HigherHRNet, deviation: float) -> None:
    """Give the tag head weights at which it moves.

    A head near zero gives everybody the same tag. All joints start with the same weights, so that the tags of
    one person begin alike; the second stage starts without listening to them.
    """
    joints = network.config.joints
    parameters = dict(network.named_parameters())
    weight, bias = (parameters[f"final_layers.0.{name}"] for name in ("weight", "bias"))
    with torch.no_grad():
        weight[joints:] = torch.randn(1, *weight.shape[1:]) * deviation
        bias[joints:] = 0
        # transposed convolutions have inputs first
        parameters["deconv_layers.0.0.0.weight"][-network.config.tags :] = 0
