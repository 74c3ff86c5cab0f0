"""Losses: masked heatmap regression, and associative embedding (arXiv 1611.05424) for the tags."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

# Energy of one joint, the sum of a squared Gaussian of deviation 2: a loss of 1 is one joint missed per channel.
JOINT_ENERGY = 12.57


def heatmap_loss(
    predicted: Tensor, target: Tensor, mask: Tensor, foreground: float, hard: float, empty: Tensor
) -> Tensor:
    """Masked and weighted squared error.

    The weight is ``1 + foreground * target`` (finds joints sooner, but lifts the background: anneal it), and where
    nobody is, predicted as p, it is ``1 + hard * p``, which makes confident false alarms cost most. Not so inside
    people: it would teach that an uncertain knee is to be as dark as an empty street.

    Args:
        predicted, target: (B, K, h, w)
        mask: (B, K, h, w), 0 to 1
        foreground, hard: weights >= 0
        empty: (B, 1, h, w), 1 where surely nobody is, else 0; ``hard`` applies there only

    Returns:
        a scalar, in units of one missed joint per channel and photo
    """
    error = (predicted - target) ** 2
    weight = 1 + foreground * target
    if hard:
        weight = weight + hard * empty * predicted.detach().clamp(0, 1)
    return (error * weight * mask).sum() / (predicted.shape[0] * predicted.shape[1] * JOINT_ENERGY)


def place_loss(
    maps: Tensor, target: Tensor, mask: Tensor, places: Tensor, boxes: Tensor, contrast: float = 10.0
) -> Tensor:
    """Where in a person's box is the joint? Cross-entropy over the pixels, less the entropy of the joint's Gaussian.

    The squared error of a joint that the network is unsure of is least where its map is low, and its gradient is small
    there. This loss compares the pixels of a box with each other: a constant does not count, and a joint that is seen
    faintly costs much. It is 0 where the map is the joint's Gaussian.

    Args:
        maps, target: (B, K, h, w) float32; pixels at which the target shows another person's joint take no part
        mask: (B, K, h, w), 0 where a pixel takes no part either
        places: (B, P, K, 3) joints x, y (pixels, corner origin) and their Gaussians' deviation, 0 = no joint
        boxes: (B, P, 4) left, top, right, bottom of where these people's joints are looked for
        contrast: of two pixels, one has e times the other's share where it is higher by 1 / contrast

    Returns:
        mean over the joints, in nats
    """
    photo, person, joint = torch.nonzero(places[..., 2] > 0, as_tuple=True)
    if not len(photo):
        return maps.sum() * 0
    x, y, deviation = places[photo, person, joint].T[:, :, None]
    left, top, right, bottom = boxes[photo, person].T[:, :, None]
    columns, rows = (torch.arange(size, device=maps.device) + 0.5 for size in (maps.shape[3], maps.shape[2]))
    across, down = (torch.exp(-((at - to) ** 2) / (2 * deviation**2)) for at, to in ((columns, x), (rows, y)))
    wanted = down[:, :, None] * across[:, None]
    inside = ((rows > top) & (rows < bottom))[:, :, None] & ((columns > left) & (columns < right))[:, None]
    inside &= (mask[photo, joint] > 0) & (target[photo, joint] < wanted + 0.1)
    inside |= wanted > 0.5  # some joints are just outside of their person's box

    def shares(values: Tensor) -> Tensor:
        return (contrast * values).masked_fill(~inside, -1e4).flatten(1).log_softmax(1)

    return functional.kl_div(shares(maps[photo, joint]), shares(wanted), reduction="batchmean", log_target=True)


def tag_loss(tags: Tensor, positions: Tensor, margin: float = 2.0) -> tuple[Tensor, Tensor]:
    """Pull the tags of one person together, push people of one photo apart.

    The push is a squared hinge on the distance of two people's mean tags, ``max(0, 1 - d / margin)^2``: unlike
    ``exp(-d^2)`` its gradient is largest where all tags are the same.

    Args:
        tags: (B, K, h, w) float32
        positions: (B, P, K) int64 positions y * w + x, -1 where there is no joint

    Returns:
        pull (mean squared distance of a joint's tag to its person's mean) and push (mean over pairs, 0 to 1)
    """
    batch, joints = tags.shape[:2]
    there = positions >= 0  # B, P, K
    values = tags.reshape(batch, joints, -1).gather(2, positions.clamp_min(0).transpose(1, 2)).transpose(1, 2)
    count = there.sum(2)  # B, P
    mean = (values * there).sum(2) / count.clamp_min(1)
    person = count > 0
    spread = (((values - mean[..., None]) ** 2) * there).sum(2) / count.clamp_min(1)
    pull = spread.sum() / person.sum().clamp_min(1)
    distance = (mean[:, :, None] - mean[:, None, :]).abs()
    pairs = (person[:, :, None] & person[:, None, :]).triu(1)
    push = ((1 - distance / margin).clamp_min(0) ** 2 * pairs).sum() / pairs.sum().clamp_min(1)
    return pull, push


def halve_mask(mask: Tensor) -> Tensor:
    """(B, K, h, w) to (B, K, h/2, w/2): every second pixel."""
    return mask[..., ::2, ::2]


def schedule(progress: float, values: list[float]) -> float:
    """Piecewise linear over the run: ``values`` at equal distances from progress 0 to 1."""
    place = min(max(progress, 0.0), 1.0) * (len(values) - 1)
    index = min(int(place), max(len(values) - 2, 0))
    following = values[min(index + 1, len(values) - 1)]
    return values[index] + (following - values[index]) * (place - index)


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, channels-last in memory, by the ImageNet mean and deviation."""
    mean, deviation = _statistics(images.device)
    return ((images.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """The ImageNet mean and deviation. Kept, because copying them to a GPU waits for all that it has to do."""
    return torch.tensor([0.485, 0.456, 0.406], device=device), torch.tensor([0.229, 0.224, 0.225], device=device)
