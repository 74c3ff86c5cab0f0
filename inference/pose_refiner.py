"""Where a person's joints are, judged by all maps around that person: a small network after grouping.

Grouping takes each joint at a peak of its own map. Where a young network is unsure, the other joints often tell which
of two places it is, or that it is neither. The refiner looks at heatmaps and tags in a window around each person, as
large as the person needs, and says for each joint how likely it is where (as PoseFix, arXiv 1812.03595, does from the
image), and which OKS with a real person can be expected of the result. Then it looks once more, at windows around what
it found. Heatmaps stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .joints import JointSet
from .network import BasicBlock, conv_bn
from .pose_prior import PosePrior

Array = NDArray[np.float32]
# Lengths are in units of the person's size, as in pose_prior.py.
HALF = 2.25  # from the middle of a window to its sides
CELLS = 48  # of a window, on each side
CELL = 2 * HALF / CELLS
TAG_DEVIATION = 0.5  # a tag so far from the person's mean tag fits to exp(-1/2)
DRAWN = 1.5  # cells: deviation of the Gaussians that show where joints were seen before
LOOKS = 2
AREA_ROOT = 1.6  # root of a person's area: the median
AROUND = 0.1  # with a joint's tolerance: the radius of the circle of whose places a joint's is the mean
NEARBY = torch.tensor([(x / 3, y / 3) for y in range(-3, 4) for x in range(-3, 4) if x**2 + y**2 <= 9])
FAINT = 0.02  # added to the maps' values there: where they are dark, shares decide alone
LEAST = 1e-3  # value with which a joint in a dark place is shown to the second look: it is there
WIDTHS = (48, 96, 128)  # channels at 1/2, 1/4 and 1/8 of a window
SCORE_WIDTH = 64
AT_ONCE = 16  # people, each of whom takes 0.6 MB for every kind of map
NO_TAGS = "The tags of the network are no numbers: its weights are damaged, or their training diverged."


class RefinerNetwork(nn.Module):
    """A U-Net on windows. Its result begins as what the heatmaps say, most where the tag fits.

    Args:
        joints: number of joints K
    """

    def __init__(self, joints: int):
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.stem = nn.Sequential(conv_bn(3 * joints, fine, stride=2), BasicBlock(fine))
        self.down = nn.ModuleList(
            nn.Sequential(conv_bn(above, below, stride=2), BasicBlock(below), BasicBlock(below))
            for above, below in ((fine, middle), (middle, coarse))
        )
        self.up = nn.ModuleList(
            conv_bn(below, above, 1, relu=False) for above, below in ((fine, middle), (middle, coarse))
        )
        self.after = nn.ModuleList([nn.Sequential(BasicBlock(fine), BasicBlock(fine)), BasicBlock(middle)])
        self.head = nn.Conv2d(fine, 4 * joints, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.score = nn.Sequential(nn.Linear(coarse + 2 * joints, SCORE_WIDTH), nn.ReLU(), nn.Linear(SCORE_WIDTH, 1))
        self.contrast = nn.Parameter(torch.full((joints, 2), 4.0))  # of the heatmaps, everywhere and where the tag fits

    def forward(self, heatmaps: Tensor, fits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Where the joints are, and how good a pose that is.

        Args:
            heatmaps, fits: (N, K, CELLS, CELLS), as :class:`Windows` has them
            drawn: (N, K, CELLS, CELLS), as :func:`draw` makes it

        Returns:
            logarithms of the shares of a joint's likelihood that the cells have, (N, K, CELLS, CELLS), and the logit of
            the OKS to be expected (N,), of joints at the likeliest places
        """
        # Twice: the network's own values seldom exceed 0.5.
        fine = self.stem(torch.cat([2 * heatmaps, fits, drawn], dim=1))
        middle = self.down[0](fine)
        coarse = self.down[1](middle)
        middle = self.after[1](F.relu(middle + F.interpolate(self.up[1](coarse), scale_factor=2, mode="bilinear")))
        fine = self.after[0](F.relu(fine + F.interpolate(self.up[0](middle), scale_factor=2, mode="bilinear")))
        everywhere, fitting = self.contrast[:, :, None, None].unbind(1)
        logits = F.pixel_shuffle(self.head(fine), 2) + heatmaps * (everywhere + fitting * fits)
        shares = logits.flatten(2).log_softmax(2)
        sure = shares.amax(dim=2).detach() / 4  # about -2 to 0
        clues = torch.cat([coarse.mean(dim=(2, 3)), sure, drawn.flatten(2).amax(dim=2)], dim=1)
        return shares.view_as(logits), self.score(clues)[:, 0]


@dataclass(frozen=True)
class Windows:
    """What is around N of an image's people.

    Attributes:
        people: (N,) who they are: those of whom enough joints fit one pose
        centres: (N, 2) pixels
        sizes: (N,) pixels
        heatmaps: (N, K, C, C) float32, of the network's own values
        fits: (N, K, C, C) float32, 0 to 1, how well the tags fit to the person's; 0 outside of the image
    """

    people: NDArray[np.intp]
    centres: NDArray[np.float64]
    sizes: NDArray[np.float64]
    heatmaps: Tensor
    fits: Tensor


def cut_windows(
    heatmaps: Array,
    tags: Array,
    joints: Array,
    shape: tuple[int, int],
    prior: PosePrior,
    half: float = HALF,
    cells: int = CELLS,
) -> Windows:
    """The windows around people.

    Args:
        heatmaps: (K, h, w) float32
        tags: (T, h', w', D) float32
        joints: (P, K, 3) x, y, value; value 0 = absent
        shape: (H, W) in whose pixels the joints are
        prior: says where a person's middle is and how large they are
        half, cells: of a window, if not those of the refiner
    """
    height, width = shape
    expected, sizes, fits = prior.fit_robustly(joints[:, :, :2].astype(float), joints[:, :, 2].astype(float))
    people = np.flatnonzero(fits.any(axis=1))
    centres, sizes = expected[people].mean(axis=1), sizes[people]
    across, down = (np.clip(joints[people, :, axis] / (width, height)[axis], 0, 1) for axis in (0, 1))
    rows = np.minimum((down * tags.shape[1]).astype(np.intp), tags.shape[1] - 1)
    columns = np.minimum((across * tags.shape[2]).astype(np.intp), tags.shape[2] - 1)
    weights = (fits[people] * joints[people, :, 2])[:, :, None]
    channels = np.arange(joints.shape[1]) if len(tags) > 1 else np.zeros(joints.shape[1], np.intp)
    means = (weights * tags[channels, rows, columns]).sum(axis=1) / weights.sum(axis=1)  # N, D

    # Twice as many places as cells, on each side: maps may be finer than cells.
    steps = half * ((np.arange(2 * cells) + 0.5) / cells - 1)
    xs, ys = ((centres[:, axis, None] + sizes[:, None] * steps) / (width, height)[axis] for axis in (0, 1))
    grid = np.stack(np.broadcast_arrays(xs[:, None], ys[:, :, None]), axis=-1)
    places = torch.from_numpy(2 * grid - 1).float().view(1, -1, 2 * cells, 2)

    def sampled(maps: Array) -> Tensor:
        """(C, h, w) at all places: (N, C, 2 cells, 2 cells)."""
        found = F.grid_sample(torch.from_numpy(maps)[None], places, align_corners=False)
        return found.view(len(maps), len(people), 2 * cells, 2 * cells).transpose(0, 1)

    inside = torch.from_numpy(((grid > 0) & (grid < 1)).all(axis=-1))[:, None]
    distances = torch.zeros(len(people), len(tags), 2 * cells, 2 * cells)
    for d in range(tags.shape[3]):
        mean = torch.from_numpy(means[:, d].astype(np.float32))[:, None, None, None]
        distances += (sampled(np.ascontiguousarray(tags[..., d])) - mean) ** 2
    # The mean over D: with the flip test there are two tags, which are as near as one.
    fit = inside * torch.exp(-distances / (2 * tags.shape[3] * TAG_DEVIATION**2))
    fit = F.avg_pool2d(fit, 2).expand(-1, len(heatmaps), -1, -1)
    seen = F.avg_pool2d(sampled(np.ascontiguousarray(heatmaps)), 2)
    return Windows(people, centres, sizes, seen, fit)


def draw(places: Tensor, values: Tensor, deviations: Tensor | None = None) -> Tensor:
    """Joints as Gaussians in windows: (N, K, CELLS, CELLS), on the CPU.

    Args:
        places: (N, K, 2) x, y in cells
        values: (N, K) their heights; 0 = absent
        deviations: (K,) of the Gaussians, cells; None = those by which grouping's joints are shown
    """
    spread = torch.tensor(2 * DRAWN**2) if deviations is None else 2 * deviations[:, None] ** 2
    middles = torch.arange(CELLS) + 0.5
    across, down = (torch.exp(-((middles - places[:, :, axis, None]) ** 2) / spread) for axis in (0, 1))
    return values[:, :, None, None] * down[:, :, :, None] * across[:, :, None]


def to_cells(places: NDArray[np.floating], windows: Windows) -> Tensor:
    """Pixels (N, K, 2) to cells of the windows, float32."""
    units = (places - windows.centres[:, None]) / windows.sizes[:, None, None]
    return torch.from_numpy((units / HALF + 1) * CELLS / 2).float()


def likeliest(shares: Tensor) -> Tensor:
    """Where (N, K, CELLS, CELLS) logarithms are highest, by a parabola through the neighbours: (N, K, 2) in cells."""
    best = shares.flatten(2).argmax(dim=2)
    rows, columns = best // CELLS, best % CELLS
    people, joints = torch.arange(len(shares))[:, None], torch.arange(shares.shape[1])[None]

    def top(along: Tensor, values: Tensor) -> Tensor:
        """Where the parabola through three cells is highest; the middle of a cell at the edge."""
        before, middle, after = values.unbind(-1)
        bend = before - 2 * middle + after
        curved = (bend < 0) & (along > 0) & (along < CELLS - 1)
        return along + 0.5 + torch.where(curved, (before - after) / (2 * bend), 0).clamp(-0.5, 0.5)

    near = torch.arange(-1, 2)
    around_x = shares[people[..., None], joints[..., None], rows[..., None], _within(columns[..., None] + near)]
    around_y = shares[people[..., None], joints[..., None], _within(rows[..., None] + near), columns[..., None]]
    return torch.stack([top(columns, around_x), top(rows, around_y)], dim=-1)


def _within(cells: Tensor) -> Tensor:
    return cells.clamp(0, CELLS - 1)


def tolerances(sigmas: Sequence[float]) -> Tensor:
    """Half of the deviation of the Gaussian that OKS is of a joint's distance, for people of median area: (K,)."""
    return AREA_ROOT * torch.tensor(sigmas)


def smoothed(shares: Tensor, deviations: Tensor) -> Tensor:
    """Logarithms (N, K, CELLS, CELLS) of shares, which Gaussians of these deviations (K,), cells, have smoothed."""
    cells = torch.arange(CELLS)
    blur = torch.exp(-((cells[:, None] - cells) ** 2) / (2 * deviations[:, None, None] ** 2))
    blur = blur / blur.sum(dim=2, keepdim=True)
    return (blur @ shares.exp() @ blur.transpose(1, 2)).clamp_min(1e-12).log()


def values_at(heatmaps: Array, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """The values (N, K, G) of heatmaps (K, h, w), at least 0, at places (N, K, G, 2) in pixels of a shape (H, W)."""
    count, joints, points, _ = places.shape
    grid = (2 * places / torch.tensor(shape[::-1]) - 1).transpose(0, 1).reshape(joints, count * points, 1, 2)
    found = F.grid_sample(torch.from_numpy(heatmaps)[:, None], grid, padding_mode="border", align_corners=False)
    return found.view(joints, count, points).transpose(0, 1).clamp_min(0)


@dataclass(frozen=True)
class PoseRefiner:
    """Says where people's joints are most likely by all maps around them, and how right that can be expected to be.

    Attributes:
        network: in eval mode, float32, on the CPU
        flip: for each joint, the joint that it becomes in a mirrored window
        sigmas: of OKS, for each joint
    """

    network: RefinerNetwork
    flip: tuple[int, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], joint_set: JointSet) -> PoseRefiner:
        """With these parameters and buffers.

        Raises:
            ValueError: if they are not those of a refiner for so many joints, or not finite
        """
        network = RefinerNetwork(len(joint_set))
        wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        if wanted != {name for name in state if not name.endswith("num_batches_tracked")}:
            raise ValueError("names are missing or unknown.")
        if not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise ValueError("some of its values are not finite.")
        try:
            network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
        except RuntimeError as error:
            raise ValueError(f"some of its tensors have other shapes: {error}") from error
        return cls(network.eval().requires_grad_(False), joint_set.flip, joint_set.sigmas)

    def places(
        self, heatmaps: Array, tags: Array, joints: Array, shape: tuple[int, int], prior: PosePrior
    ) -> tuple[NDArray[np.intp], Array, Array]:
        """Where joints are most likely; see :func:`cut_windows` for the arguments.

        Returns:
            which people were judged (N,), their joints' places (N, K, 2), pixels, and the OKS (N,) to be expected there

        Raises:
            ValueError: if a tag near them is no number
        """
        parts = []
        for start in range(0, max(1, len(joints)), AT_ONCE):
            people, found, expected = self.look(heatmaps, tags, joints[start : start + AT_ONCE], shape, prior)
            for _ in range(1, LOOKS):  # of those who cannot be judged again, the first answer holds
                again, better, score = self.look(heatmaps, tags, found, shape, prior)
                found[again], expected[again] = better, score
            parts.append((people + start, found[:, :, :2], expected))
        people, places, expected = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return people, places, expected

    @torch.inference_mode()
    def look(
        self, heatmaps: Array, tags: Array, joints: Array, shape: tuple[int, int], prior: PosePrior
    ) -> tuple[NDArray[np.intp], Array, Array]:
        """As :meth:`places` after one look; joints (N, K, 3) come with the heatmaps' values."""
        windows = cut_windows(heatmaps, tags, joints, shape, prior)
        if not len(windows.people):
            return windows.people, np.zeros((0, len(heatmaps), 3), np.float32), np.zeros(0, np.float32)
        judged = joints[windows.people]
        values = torch.from_numpy(judged[:, :, 2]).clamp(0, 1)
        drawn = draw(to_cells(judged[:, :, :2], windows), values)
        shares, logits = self._both_ways(windows.heatmaps, windows.fits, drawn)
        if not torch.isfinite(shares).all() or not torch.isfinite(logits).all():
            raise ValueError(NO_TAGS)
        places = self._locate(shares, windows, heatmaps, shape)
        seen = values_at(heatmaps, places[:, :, None], shape).clamp_min(LEAST)
        return windows.people, torch.cat([places, seen], dim=2).numpy(), torch.sigmoid(logits).numpy()

    def _locate(self, shares: Tensor, windows: Windows, heatmaps: Array, shape: tuple[int, int]) -> Tensor:
        """The places (N, K, 2), pixels: around the likeliest, the mean by share and by the map's own, finer values.

        The likeliest is that of smoothed shares: OKS asks for a place within a tolerance.
        """
        tolerance = tolerances(self.sigmas)
        logs = smoothed(shares, tolerance / CELL)
        top = (likeliest(logs) * 2 / CELLS - 1) * HALF
        units = top[:, :, None] + (AROUND + tolerance)[:, None, None] * NEARBY  # N, K, places, 2
        grid = (units / HALF).flatten(0, 1)[:, None]
        near = F.grid_sample(logs.flatten(0, 1)[:, None], grid, padding_mode="border", align_corners=False)
        sizes, centres = (torch.from_numpy(lengths).float() for lengths in (windows.sizes, windows.centres))
        places = units * sizes[:, None, None, None] + centres[:, None, None]
        seen = values_at(heatmaps, places, shape)
        weights = (near.view_as(seen) + (seen + FAINT).log()).softmax(dim=2)
        return (weights[..., None] * places).sum(dim=2)

    def _both_ways(self, *windows: Tensor) -> tuple[Tensor, Tensor]:
        """The means of what the network says of windows (N, K, CELLS, CELLS) and of their mirror images.

        This is no flip test: only windows of maps are mirrored, the photo is seen once.
        """
        flip = list(self.flip)
        shares, logits = self.network(*(torch.cat([window, window[:, flip].flip(3)]) for window in windows))
        (shares, mirrored_shares), (logits, mirrored_logits) = shares.chunk(2), logits.chunk(2)
        return (shares + mirrored_shares.flip(3)[:, flip]) / 2, (logits + mirrored_logits) / 2
