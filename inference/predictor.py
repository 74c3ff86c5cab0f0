"""Batches of warped images to heatmaps and tags: device, precision, flip test, scales.

The aggregation is the published one, of maps that the network has smoothed where its weights ask for it: heatmaps of
both stages, of the mirrored image and of all scales are averaged; tags come from stage 0 at scale 1 and of its mirror
image, side by side. Because averaging and bilinear enlargement are linear, the average is taken at half of the input
and enlarged later, only where it is needed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .geometry import Warp, warp_for
from .grouping import GroupingConfig
from .network import HigherHRNet

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB, for values 0 to 1
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PreparedImage:
    """An image warped for the network, one input per scale.

    Attributes:
        inputs: per scale (h, w, 3) uint8 RGB, the largest last
        warps: per scale, the warp that made it
        base: index of the scale whose frame the heatmaps use (scale 1, or the one nearest to it)
    """

    inputs: list[NDArray[np.uint8]]
    warps: list[Warp]
    base: int

    @property
    def warp(self) -> Warp:
        return self.warps[self.base]

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """What images of one batch must have in common."""
        return tuple(warp.input_wh for warp in self.warps)


@dataclass(frozen=True)
class Prediction:
    """What the network sees in a batch of B images, in the frame of the base input (H, W).

    Attributes:
        heatmaps: (B, K, H/2, W/2) float32, mean over stages, flips and scales, gated and calibrated: the ``network``
            map
        enlarged: (B, K, H, W) float32, the published aggregate; None where it is just ``heatmaps`` enlarged x 2 (a
            single scale)
        tags: (B, T, H/2, W/2, D) float32; T = K or 1, D = 2 with flip test, else 1
        own: the network's own values, neither gated nor calibrated, as large as ``enlarged`` or else as ``heatmaps``;
            None where these are the same
    """

    heatmaps: Tensor
    enlarged: Tensor | None
    tags: Tensor
    own: Tensor | None = None


class Predictor:
    """Runs a HigherHRNet on one device.

    Args:
        network: in eval mode; it is copied
        flip: for each joint, the joint that it becomes in a mirrored image
        input_size: short side of the network input at scale 1, pixels
        flip_test: also run the mirrored image
        scales: scales to run, relative to ``input_size``
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``; None = the best there is
        precision: of the network, but for its heads. bfloat16 is faster where the hardware computes with it; but where
            two places, or two ways to group, are nearly as good, its rounding decides between them

    ``grouping`` has the pose prior and the pose refiner of the weights.
    """

    def __init__(
        self,
        network: HigherHRNet,
        flip: Sequence[int],
        input_size: int,
        flip_test: bool = False,
        scales: Sequence[float] = (1.0,),
        device: str | None = None,
        precision: torch.dtype = torch.float32,
    ):
        check_sizes(scales, input_size)
        self.config = network.config
        self.input_size = input_size
        self.flip_test = flip_test
        self.scales = tuple(sorted(float(scale) for scale in scales))
        self.base = int(np.argmin([abs(scale - 1) for scale in self.scales]))
        self.device = choose_device(device)
        self.precision = precision
        self.network = for_inference(network, precision).to(self.device)
        self.context_gate, self.calibration = network.context_gate, network.calibration
        self.grouping = GroupingConfig(prior=network.pose_prior, refiner=network.pose_refiner)
        self._flip = torch.tensor(list(flip), device=self.device)
        self._mean = torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1) * 255
        self._deviation = torch.tensor(DEVIATION, device=self.device).view(1, 3, 1, 1) * 255

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Warp an image (H, W, 3), uint8 RGB, to the network's inputs. Thread-safe, CPU only."""
        wh = (image.shape[1], image.shape[0])
        warps = [warp_for(wh, self.input_size, scale, self.scales) for scale in self.scales]
        return PreparedImage([warp.apply(image) for warp in warps], warps, self.base)

    @torch.inference_mode()
    def predict(self, batch: Sequence[PreparedImage]) -> Prediction:
        """Run images of one shape through the network.

        Raises:
            ValueError: if the images differ in shape
        """
        if len({image.shape for image in batch}) != 1:
            raise ValueError("The images of a batch must have network inputs of one shape.")
        width, height = batch[0].warp.input_wh
        with self._exactly():
            merged = merge_scales(partial(self._at_scale, batch), len(self.scales), self.base, (height, width))
        heatmaps, enlarged = merged.heatmaps, merged.enlarged
        own = (heatmaps if enlarged is None else enlarged) if self.context_gate or self.calibration.knots else None
        if self.context_gate:
            factors = self.context_gate.factors(heatmaps)
            heatmaps = heatmaps * factors
            if enlarged is not None:
                enlarged = enlarged * F.interpolate(factors, size=enlarged.shape[2:], mode="bilinear")
        enlarged = None if enlarged is None else self.calibration.apply(enlarged)
        return Prediction(self.calibration.apply(heatmaps), enlarged, merged.tags, own)

    def _exactly(self) -> AbstractContextManager[None]:
        """Keeps a GPU from computing what is float32 with the 10 bits of TF32."""
        if self.device.type != "cuda" or self.precision is not torch.float32:
            return nullcontext()
        cudnn = torch.backends.cudnn
        return cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)

    def _at_scale(self, batch: Sequence[PreparedImage], index: int) -> tuple[Tensor, Tensor]:
        images = self.upload([image.inputs[index] for image in batch])
        outputs = self.network(images)
        mirrored = self.network(images.flip(3)) if self.flip_test else None
        return merge_stages(outputs, mirrored, self._flip)

    def upload(self, inputs: list[NDArray[np.uint8]]) -> Tensor:
        """Inputs of one size, (h, w, 3) uint8 RGB, as the network takes them: (B, 3, h, w) on the device."""
        images = torch.from_numpy(np.stack(inputs))
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        images = images.to(self.device).permute(0, 3, 1, 2)  # channels-last in memory
        return images.float().sub_(self._mean).div_(self._deviation).to(self.precision)


def check_sizes(scales: Sequence[float], input_size: int | None) -> None:
    """Raises ValueError, with what to do, if the network cannot run at these scales or this size (None = its own)."""
    if not scales or min(scales) <= 0:
        raise ValueError("scales must list at least one number above 0, for example (0.5, 1, 2).")
    if any(abs(2 * scale / min(scales) - round(2 * scale / min(scales))) > 1e-6 for scale in scales):
        raise ValueError(
            f"scales are {', '.join(map(str, scales))}; each must be a multiple of half of the smallest one, since "
            "the network halves its input five times, for example (0.5, 1, 2) or (1, 1.5)."
        )
    if input_size is not None and input_size < 64:
        raise ValueError(f"input_size is {input_size}; it must be at least 64 pixels.")


def merge_stages(outputs: list[Tensor], mirrored: list[Tensor] | None, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Average the heatmaps of both stages and of the mirrored image; lay the tags side by side.

    Args:
        outputs: ``[(B, K + T, h/4, w/4), (B, K, h/2, w/2)]`` of the image
        mirrored: the same of the mirrored image, as the network returns them; or None
        flip: (K,) joint that each joint becomes in a mirrored image

    Returns:
        heatmaps (B, K, h/2, w/2) and tags (B, T, h/2, w/2, D), D = 1 or 2, float32
    """
    joints = outputs[1].shape[1]

    def merge(coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        size = (fine.shape[2], fine.shape[3])
        coarse = F.interpolate(coarse.float(), size=size, mode="bilinear", align_corners=False)
        return torch.add(coarse[:, :joints], fine).mul_(0.5), coarse[:, joints:]

    heatmaps, tags = merge(*outputs)
    if mirrored is None:
        return heatmaps, tags[..., None]
    back, back_tags = (maps.flip(3) for maps in merge(*mirrored))
    if back_tags.shape[1] == joints:
        back_tags = back_tags[:, flip]
    return (heatmaps + back[:, flip]) / 2, torch.stack([tags, back_tags], dim=-1)


def merge_scales(
    at_scale: Callable[[int], tuple[Tensor, Tensor]], count: int, base: int, shape: tuple[int, int]
) -> Prediction:
    """Average the heatmaps of all scales in the frame of the base input.

    Args:
        at_scale: makes (heatmaps, tags) of a scale, as :func:`merge_stages`; is called once for each, when the maps of
            the one before are added up and gone
        count: number of scales
        base: which of them has the frame and the tags
        shape: (H, W) of the base input
    """
    sums: list[Tensor] = []
    for index in range(count):
        heatmaps, tags = at_scale(index)
        if count == 1:
            return Prediction(heatmaps, None, tags)
        if index == base:
            base_tags = tags
        for number, size in enumerate(((shape[0] // 2, shape[1] // 2), shape)):
            if index == 0:
                sums.append(torch.zeros(*heatmaps.shape[:2], *size, device=heatmaps.device))
            sums[number] += F.interpolate(heatmaps, size=size, mode="bilinear", align_corners=False)
        del heatmaps, tags
    half, full = (total.div_(count) for total in sums)
    return Prediction(half, full, base_tags)


def choose_device(device: str | None) -> torch.device:
    """The named device, or the best there is.

    Raises:
        ValueError: if that device is not there
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device is None:
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"There is no device '{device}'; use 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    there = {"cpu": True, "cuda": cuda, "mps": mps}.get(chosen.type, False)
    if chosen.type == "cuda" and there and (chosen.index or 0) >= torch.cuda.device_count():
        there = False
    if not there:
        raise ValueError(f"Device '{device}' is not available here; leave it empty to use the best that is.")
    return chosen


def find_precision(name: str, device: str | None) -> torch.dtype:
    """The precision of that name.

    Raises:
        ValueError: if the device is not faster with it than with float32, or is not there
    """
    chosen = choose_device(device)
    if name == "bfloat16" and best_precision(chosen) is not torch.bfloat16:
        raise ValueError(f"'{chosen}' of this machine is not faster with bfloat16: choose the precision float32.")
    return PRECISIONS[name]


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware computes with it (newer GPUs, CPUs with AVX-512 BF16 or AMX), else float32."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        # torch has no public name for it; without the name, float32 is right if slower
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        fast = device.type == "cpu" and supported()
    return torch.bfloat16 if fast else torch.float32


def for_inference(network: HigherHRNet, precision: torch.dtype) -> HigherHRNet:
    """A copy with folded batch norms, channels-last, in ``precision``; the heads stay in float32.

    bfloat16 has 8 significant bits: heads in it would make plateaus of equal values at the peaks.
    """
    copied = copy.deepcopy(network).eval()
    for module in list(copied.modules()):
        _fold_batch_norms(module)
    copied = copied.to(precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copied.final_layers.float()
    return copied.requires_grad_(False)


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution that stands before it among the module's children."""
    children = list(module.named_children())
    for (name, layer), (next_name, norm) in itertools.pairwise(children):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and isinstance(norm, nn.BatchNorm2d):
            transposed = isinstance(layer, nn.ConvTranspose2d)
            setattr(module, name, fuse_conv_bn_eval(layer, norm, transpose=transposed))
            setattr(module, next_name, nn.Identity())
