"""What a heatmap's value means: a monotone rescaling, so that among peaks of 0.5 about half lie on a joint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """A curve of straight pieces from (0, 0), rising everywhere; the last piece goes on beyond its end.

    Attributes:
        knots: (value of the network, calibrated value) at the end of each piece, in rising order; none = the identity

    Raises:
        ValueError: if the curve does not rise everywhere
    """

    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if any(length <= 0 or slope <= 0 for length, slope in self._pieces()):
            raise ValueError("The knots of a calibration must rise in both values, from (0, 0) on.")

    def _pieces(self) -> list[tuple[float, float]]:
        """(length, slope) of each piece."""
        starts = ((0.0, 0.0), *self.knots)
        differences = [(x1 - x0, y1 - y0) for (x0, y0), (x1, y1) in zip(starts, self.knots, strict=False)]
        return [(dx, dy / dx if dx > 0 else 0.0) for dx, dy in differences]

    def apply(self, maps: Tensor) -> Tensor:
        """Heatmaps of any shape, rescaled."""
        if not self.knots:
            return maps
        slopes = [slope for _, slope in self._pieces()]
        rescaled = maps * slopes[0]
        # Few pixels of a heatmap are beyond the first piece. They are found fastest in the order of the memory.
        order = sorted(range(maps.ndim), key=rescaled.stride, reverse=True)
        flat = maps.permute(order).reshape(-1)
        above = (flat > self.knots[0][0]).nonzero().squeeze(1)
        values = flat[above]
        bent = values * slopes[0]
        for (knot, _), slope, next_slope in zip(self.knots, slopes, slopes[1:], strict=False):
            bent.add_(torch.relu(values - knot), alpha=next_slope - slope)
        rescaled.permute(order).view(-1)[above] = bent
        return rescaled
