"""A joint seldom comes alone: where few other joints are seen nearby, what looks like one is mostly a speck."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = 8  # pixels of the network's maps
MOST_REACH = 64  # cells


@dataclass(frozen=True)
class ContextGate:
    """Dims heatmaps by how likely a body is there, judged by all joints' maps in a square around the place.

    The highest value of each joint's map in that square is taken; which joint it is of does not matter. Whoever is
    alone in a picture is found by all joints together, and a lit window by one or two.

    Attributes:
        weights: of these K values, the highest first; at least 0, so that more evidence never dims anything
        bias: with it, the weighted sum is the logit of the factor
        reach: the square reaches so many cells of 8 map pixels (16 input pixels) to each side of the place's own

    Raises:
        ValueError: if a number is out of its range
    """

    weights: tuple[float, ...]
    bias: float
    reach: int

    def __post_init__(self) -> None:
        if not self.weights or not all(math.isfinite(weight) and weight >= 0 for weight in self.weights):
            raise ValueError("there must be a weight for each joint, finite and not below 0.")
        if not math.isfinite(self.bias):
            raise ValueError("the bias must be finite.")
        if not isinstance(self.reach, int) or not 0 <= self.reach <= MOST_REACH:
            raise ValueError(f"the reach must be a whole number from 0 to {MOST_REACH}.")

    @classmethod
    def from_json(cls, text: str) -> ContextGate:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError or KeyError: if it is something else
        """
        read = json.loads(text)
        return cls(tuple(float(weight) for weight in read["weights"]), float(read["bias"]), read["reach"])

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def factors(self, maps: Tensor) -> Tensor:
        """What to multiply heatmaps (B, K, h, w) by: (B, 1, h, w) float32, 0 to 1."""
        logits = evidence(maps, self.reach) @ torch.tensor(self.weights, device=maps.device) + self.bias
        factors = F.interpolate(torch.sigmoid(logits)[:, None], scale_factor=CELL, mode="bilinear")
        return factors[:, :, : maps.shape[2], : maps.shape[3]]


def evidence(maps: Tensor, reach: int) -> Tensor:
    """The highest value of each joint's map within ``reach`` cells of each cell, sorted.

    Args:
        maps: (B, K, h, w)
        reach: cells

    Returns:
        (B, ceil(h / 8), ceil(w / 8), K) float32, highest first, at least 0
    """
    cells = F.max_pool2d(maps.float(), CELL, ceil_mode=True).clamp(min=0)
    near = F.max_pool2d(cells, 2 * reach + 1, 1, reach)
    return near.permute(0, 2, 3, 1).sort(dim=3, descending=True).values
