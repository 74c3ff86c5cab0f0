"""HigherHRNet: "Scale-Aware Representation Learning for Bottom-Up Human Pose Estimation" (arXiv 1908.10357).

An HRNet backbone keeps a high-resolution branch through all stages. A first head predicts heatmaps and
associative-embedding tags at 1/4 of the input; a transposed convolution over features and that prediction leads
to a second head with heatmaps at 1/2. Modules stand in the order in which the data meets them, and parameter names
are those of the published checkpoints. Shapes at the line ends: B images, K joints, C = width, input H x W.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .calibration import Calibration
from .context import ContextGate
from .pose_prior import PosePrior

if TYPE_CHECKING:
    from .pose_refiner import PoseRefiner

LEAST_SMOOTHING, MOST_SMOOTHING = 0.1, 8  # input pixels; three times as much must be less than the smallest maps' sides


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a HigherHRNet. The defaults are the published W32.

    Attributes:
        width: channels C of the highest-resolution branch; branch b has C * 2**b
        stem_blocks: bottlenecks before the branches
        modules: high-resolution modules in stages 2, 3 and 4
        blocks: basic blocks per branch and module
        deconv_blocks: basic blocks after the transposed convolution
        head_width: channels of the features that the heads read, at 1/4 and at 1/2; 0 = C, as published
        joints: number of joints K
        shared_tag: one tag channel for all joints instead of one each
        center: a map of people's centres, and its tag, behind those of the joints; the network drops its result
    """

    width: int = 32
    stem_blocks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4
    deconv_blocks: int = 4
    head_width: int = 0
    joints: int = 17
    shared_tag: bool = False
    center: bool = False

    def __post_init__(self) -> None:
        if self.head_width == self.width:  # one name for each network: configurations are compared
            object.__setattr__(self, "head_width", 0)

    @property
    def heatmaps(self) -> int:
        """Number of heatmap channels, with the centre's."""
        return self.joints + self.center

    @property
    def tags(self) -> int:
        """Number of tag channels, with the centre's."""
        return 1 if self.shared_tag else self.heatmaps

    @staticmethod
    def from_dict(values: dict) -> NetworkConfig:
        """The configuration that :meth:`to_dict` wrote (JSON has lists where this has tuples)."""
        return NetworkConfig(**{**values, "modules": tuple(values["modules"])})

    def to_dict(self) -> dict:
        return {**asdict(self), "modules": list(self.modules)}


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut; the output has four times ``channels``."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_bn(inputs, 4 * channels, 1, relu=False) if inputs != 4 * channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class HighResolutionModule(nn.Module):
    """Parallel branches, then every output branch sums all branches at its own resolution."""

    def __init__(self, channels: list[int], blocks: int, outputs: list[int]):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[BasicBlock(c) for _ in range(blocks)]) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_layer(channels, source, target, width) for source in range(len(channels)))
            for target, width in enumerate(outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        fused = []
        for layers in self.fuse_layers:
            first, *others = layers.children()
            total = first(xs[0])
            for layer, x in zip(others, xs[1:], strict=True):
                total = total + layer(x)
            fused.append(self.relu(total))
        return fused


def _fuse_layer(channels: list[int], source: int, target: int, width: int) -> nn.Module:
    """From branch ``source`` to the resolution of branch ``target``, with ``width`` channels."""
    if source == target:
        return nn.Identity() if width == channels[target] else nn.Conv2d(channels[source], width, 1, bias=False)
    if source > target:  # lower resolution: project, then enlarge
        up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(*conv_bn(channels[source], width, 1, relu=False), up)
    steps = [conv_bn(channels[source], channels[source], stride=2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_bn(channels[source], width, stride=2, relu=False))


def check_smoothing(smoothing: float) -> float:
    """The same number, input pixels; ValueError where maps cannot be smoothed by it."""
    if smoothing != 0 and not LEAST_SMOOTHING <= smoothing <= MOST_SMOOTHING:
        raise ValueError(
            f"smoothing is {smoothing}; it must be 0 or from {LEAST_SMOOTHING} to {MOST_SMOOTHING} input pixels."
        )
    return smoothing


def smooth(maps: Tensor, deviation: float) -> Tensor:
    """Maps (B, C, h, w) convolved with a Gaussian of that deviation in pixels, reflected at the borders; float32."""
    reach = math.ceil(3 * deviation)
    places = torch.arange(-reach, reach + 1, device=maps.device)
    kernel = torch.softmax(-(places**2) / (2 * deviation**2), dim=0)
    channels = maps.shape[1]
    with torch.autocast(maps.device.type, enabled=False):  # half precision would make plateaus of equal values
        maps = F.pad(maps.float(), (reach,) * 4, mode="reflect")
        for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
            maps = F.conv2d(maps, kernel.view(shape).expand(channels, -1, -1, -1), groups=channels)
    return maps.contiguous(memory_format=torch.channels_last)  # as the rest of the network; padding on a GPU loses it


class HigherHRNet(nn.Module):
    """Images to heatmaps and tags.

    Args:
        config: the sizes

    ``calibration`` says what the values mean that these weights give. ``smoothing`` is the deviation, in pixels of the
    images, of a Gaussian that both results are convolved with. ``context_gate`` dims heatmaps where no body is, before
    the calibration. ``pose_prior`` and ``pose_refiner`` help to make people of the joints that they show, and the
    latter to score them. They are the identity, 0 and None, as published, unless who loads the weights sets them. Only
    the smoothing is applied here, the rest by who uses this.

    Call with images (B, 3, H, W), float, RGB, normalised by the ImageNet mean and deviation, H and W multiples
    of 32. Returns ``[(B, K + tags, H/4, W/4), (B, K, H/2, W/2)]``: heatmaps (about 0 to 1, unbounded) then tags,
    and the finer heatmaps.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.calibration = Calibration()
        self.smoothing = 0.0
        self.context_gate: ContextGate | None = None
        self.pose_prior: PosePrior | None = None
        self.pose_refiner: PoseRefiner | None = None
        widths = [config.width * 2**branch for branch in range(4)]

        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*[Bottleneck(64 if i == 0 else 256, 64) for i in range(config.stem_blocks)])

        self.transition1 = nn.ModuleList([conv_bn(256, widths[0]), nn.Sequential(conv_bn(256, widths[1], stride=2))])
        self.stage2 = self._stage(widths[:2], config.modules[0])
        self.transition2 = self._new_branch(widths, 2)
        self.stage3 = self._stage(widths[:3], config.modules[1])
        self.transition3 = self._new_branch(widths, 3)
        head = config.head_width or config.width
        self.stage4 = self._stage(widths, config.modules[2], [head])

        self.final_layers = nn.ModuleList(
            [nn.Conv2d(head, config.heatmaps + config.tags, 1), nn.Conv2d(head, config.heatmaps, 1)]
        )
        deconv = nn.Sequential(
            nn.ConvTranspose2d(head + config.heatmaps + config.tags, head, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(head),
            nn.ReLU(inplace=True),
        )
        blocks = [nn.Sequential(BasicBlock(head)) for _ in range(config.deconv_blocks)]
        self.deconv_layers = nn.ModuleList([nn.Sequential(deconv, *blocks)])

    def _stage(self, widths: list[int], modules: int, last: list[int] | None = None) -> nn.Sequential:
        """``last``: channels of the last module's output branches, if not those of all branches."""
        outputs = [widths] * (modules - 1) + [last or widths]
        return nn.Sequential(*[HighResolutionModule(widths, self.config.blocks, out) for out in outputs])

    @staticmethod
    def _new_branch(widths: list[int], branch: int) -> nn.ModuleList:
        """Existing branches pass; the new one starts from the coarsest."""
        new = nn.Sequential(conv_bn(widths[branch - 1], widths[branch], stride=2))
        return nn.ModuleList([nn.Identity() for _ in range(branch)] + [new])

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))  # B, 64, H/2, W/2
        x = self.relu(self.bn2(self.conv2(x)))  # B, 64, H/4, W/4
        x = self.layer1(x)  # B, 256, H/4, W/4

        xs = self.stage2([layer(x) for layer in self.transition1])  # B, C, H/4, W/4 and B, 2C, H/8, W/8
        xs = self.stage3([*xs, self.transition2[2](xs[-1])])  # + B, 4C, H/16, W/16
        xs = self.stage4([*xs, self.transition3[3](xs[-1])])  # from + B, 8C, H/32, W/32 to the finest only

        features = xs[0]  # B, C (or head_width), H/4, W/4
        coarse = self._head(0, features)  # B, K + tags, H/4, W/4
        features = self.deconv_layers[0](torch.cat([features, coarse.to(features.dtype)], dim=1))  # at H/2, W/2
        outputs = [coarse, self._head(1, features)]  # and B, K, H/2, W/2
        if self.smoothing:
            outputs = [smooth(maps, self.smoothing / stride) for maps, stride in zip(outputs, (4, 2), strict=True)]
        return self._without_center(*outputs) if self.config.center else outputs

    def _head(self, stage: int, features: Tensor) -> Tensor:
        """Heads may have a higher precision than the rest of the network."""
        head = self.final_layers[stage]
        return head(features.to(next(head.parameters()).dtype))

    def _without_center(self, coarse: Tensor, fine: Tensor) -> list[Tensor]:
        """Only what belongs to joints; the centre comes last among heatmaps and tags."""
        joints, tags = self.config.joints, coarse[:, self.config.heatmaps :]
        return [torch.cat([coarse[:, :joints], tags[:, :joints]], dim=1), fine[:, :joints]]
