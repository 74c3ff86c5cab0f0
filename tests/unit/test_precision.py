"""What people see does not depend on the arithmetic, and settings that the network cannot take are sentences."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from inference import checkpoints
from inference.joints import COCO
from inference.labels import find_people, see
from inference.network import HigherHRNet, NetworkConfig
from inference.predictor import Predictor, for_inference
from inference.settings import Settings

SMALL = NetworkConfig(width=4, stem_blocks=1, modules=(1, 1, 1), blocks=1, deconv_blocks=1)


@pytest.fixture(scope="module")
def small() -> HigherHRNet:
    """A small network whose batch norms are far from doing nothing."""
    torch.manual_seed(0)
    network = HigherHRNet(SMALL).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.normal_(0.6, 0.3)
    return network


def test_folding_is_exact_where_batch_norms_do_something(small: HigherHRNet) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, folded = small(images), for_inference(small, torch.float32)(images)
        bare = for_inference(HigherHRNet(SMALL), torch.float32)(images)
    for ours, theirs, other in zip(folded, plain, bare, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
        assert float((other - theirs).abs().max() / theirs.abs().max()) > 0.1  # the comparison can fail
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in small.modules()), "the original was changed"


def test_folding_moves_no_joint_by_half_a_pixel(photos: Path) -> None:
    network = checkpoints.load().network.eval()
    image = cv2.imread(str(photos / "astronaut.jpg"))[..., ::-1]
    people = []
    for folded in (True, False):
        runner = Predictor(network, COCO.flip, 256, device="cpu", precision=torch.float32)
        if not folded:
            runner.network = network
        (seen,) = see(runner, Settings(), [runner.prepare(image)], joints=False)
        people.append(find_people(seen, COCO.grouping_order, all_groups=False))
    ours, theirs = people
    assert len(ours.joints) == len(theirs.joints) >= 1
    assert (ours.joints != theirs.joints).any()  # other arithmetic
    assert np.abs(ours.joints - theirs.joints)[:, :, :2].max() < 0.5
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


def test_bfloat16_moves_no_peak_by_more_than_a_pixel(photos: Path) -> None:
    network = checkpoints.load().network
    image = cv2.imread(str(photos / "astronaut.jpg"))[..., ::-1]
    exact, fast = (
        runner.predict([runner.prepare(image)]).heatmaps[0].numpy()
        for runner in (
            Predictor(network, COCO.flip, 256, device="cpu", precision=precision)
            for precision in (torch.float32, torch.bfloat16)
        )
    )
    sure = [joint for joint in range(17) if exact[joint].max() > 0.3]
    assert len(sure) >= 5  # nose, eyes, shoulders
    for joint in sure:
        there, here = (np.unravel_index(maps[joint].argmax(), maps[joint].shape) for maps in (exact, fast))
        assert np.abs(np.subtract(there, here)).max() <= 1, COCO.joints[joint]
        assert fast[joint].max() == pytest.approx(exact[joint].max(), abs=0.05), COCO.joints[joint]
    assert (exact != fast).any()


@pytest.mark.parametrize("scales", [(0.75, 1.0), (1.0, 1.3), (0.3, 1.0, 2.0)])
def test_scales_that_the_network_cannot_halve_are_refused_beforehand(
    scales: tuple[float, ...], small: HigherHRNet
) -> None:
    with pytest.raises(ValueError, match=r"scales.*half of the smallest.*for example \(0\.5, 1, 2\)"):
        Predictor(small, COCO.flip, 320, scales=scales, device="cpu")


@pytest.mark.parametrize("scales", [(1.0,), (0.7,), (0.5, 1.0, 1.5), (1.0, 1.5), (2.0, 1.0), (0.1, 0.3)])
@pytest.mark.parametrize("shape", [(48, 64), (100, 37), (9, 200)])
def test_the_scales_that_are_accepted_work_for_every_image(
    scales: tuple[float, ...], shape: tuple[int, int], small: HigherHRNet
) -> None:
    runner = Predictor(small, COCO.flip, 64, scales=scales, device="cpu", precision=torch.float32)
    image = runner.prepare(np.full((*shape, 3), 128, np.uint8))
    width, height = image.warp.input_wh
    seen = runner.predict([image, image])
    assert seen.heatmaps.shape == (2, 17, height // 2, width // 2)
    assert seen.tags.shape == (2, 17, height // 2, width // 2, 1)
    assert (seen.enlarged is None) == (len(scales) == 1)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "", "xla", "cuda:-3"])
def test_a_device_that_is_not_there_is_a_sentence(device: str, small: HigherHRNet) -> None:
    with pytest.raises(ValueError, match=f"'{device}'.*; (use|leave it empty)"):
        Predictor(small, COCO.flip, 64, device=device)
