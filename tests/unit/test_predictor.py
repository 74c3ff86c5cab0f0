"""Running the network: folding, precision, flip test, scales."""

import weakref
from dataclasses import replace

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch.nn import functional

from inference import checkpoints
from inference.calibration import Calibration
from inference.joints import COCO
from inference.predictor import Predictor, PreparedImage, for_inference, merge_scales

SIZE = 128


@pytest.fixture(scope="module")
def bundled() -> checkpoints.LoadedModel:
    """Without its gate and its calibration: what is averaged are the network's own values."""
    model = checkpoints.load()
    model.network.context_gate, model.network.calibration = None, Calibration()
    return model


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """An even number of pixels wide and high, so that its mirror image lies the same way in the input."""
    return cv2.resize(skimage.data.astronaut(), (240, 200))


def predictor(bundled: checkpoints.LoadedModel, **settings) -> Predictor:
    return Predictor(bundled.network, COCO.flip, SIZE, device="cpu", **{"precision": torch.float32, **settings})


def test_folding_batch_norms_changes_nothing_that_shows(bundled, photo):
    runner = predictor(bundled)
    images = runner.upload(runner.prepare(photo).inputs)
    with torch.inference_mode():
        plain, folded = bundled.network(images), for_inference(bundled.network, torch.float32)(images)
    for ours, theirs in zip(folded, plain, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in runner.network.modules())


def test_bfloat16_gives_the_same_maps_but_for_rounding(bundled, photo):
    exact, fast = (
        runner.predict([runner.prepare(photo)]).heatmaps
        for runner in (predictor(bundled), predictor(bundled, precision=torch.bfloat16))
    )
    assert fast.dtype == torch.float32
    assert float((exact - fast).abs().max()) < 0.06
    assert float((exact - fast).abs().mean()) < 0.005


def test_a_batch_gives_each_image_what_it_gets_alone(bundled, photo):
    runner = predictor(bundled)
    images = [runner.prepare(picture) for picture in (photo, photo[::-1], photo[:, ::-1])]
    together = runner.predict(images)
    for index, image in enumerate(images):
        alone = runner.predict([image])
        torch.testing.assert_close(together.heatmaps[index], alone.heatmaps[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.tags[index], alone.tags[0], atol=1e-3, rtol=0)


def test_flip_test_sees_an_input_and_its_mirror_image_alike(bundled, photo):
    runner = predictor(bundled, flip_test=True)
    image = runner.prepare(photo)
    mirror = replace(image, inputs=[np.ascontiguousarray(inputs[:, ::-1]) for inputs in image.inputs])

    there, mirrored = runner.predict([image]), runner.predict([mirror])

    torch.testing.assert_close(mirrored.heatmaps.flip(3)[:, list(COCO.flip)], there.heatmaps, atol=1e-3, rtol=0)
    tags = mirrored.tags.flip(3)[:, list(COCO.flip)].flip(4)  # the mirror image's own tags come first
    torch.testing.assert_close(tags, there.tags, atol=1e-2, rtol=0)
    once = predictor(bundled).predict([image])
    assert float((once.heatmaps - there.heatmaps).abs().max()) > 1e-3, "the flip test has no effect"


@pytest.mark.parametrize("flip", [False, True])
def test_scales_are_averaged_in_the_frame_of_scale_one(bundled, photo, flip: bool):
    runner = predictor(bundled, scales=(2.0, 0.5, 1.0), flip_test=flip)
    image = runner.prepare(photo)
    assert [inputs.shape[:2] for inputs in image.inputs] == [(64, 128), (128, 256), (256, 512)]
    assert image.warp.input_wh == (256, 128)

    seen = runner.predict([image])

    assert seen.heatmaps.shape == (1, 17, 64, 128)
    assert seen.tags.shape == (1, 17, 64, 128, 1 + flip)
    single = predictor(bundled, flip_test=flip)
    each = [
        single.predict([PreparedImage([inputs], [warp], 0)])
        for inputs, warp in zip(image.inputs, image.warps, strict=True)
    ]
    mean = sum(functional.interpolate(one.heatmaps, size=(128, 256), mode="bilinear") for one in each) / 3
    torch.testing.assert_close(seen.enlarged, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.tags, each[1].tags, atol=1e-3, rtol=0)


def test_of_several_scales_only_one_is_held():
    """But for the tags of scale one."""
    alive: list[weakref.ref] = []

    def at_scale(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert [reference() is not None for reference in alive].count(True) <= (1 if index > 1 else 0)
        size = (32 * 2**index, 16 * 2**index)
        heatmaps, tags = torch.rand(2, 17, *size), torch.rand(2, 17, *size, 1)
        alive.extend((weakref.ref(heatmaps), weakref.ref(tags)))
        return heatmaps, tags

    merged = merge_scales(at_scale, 4, base=1, shape=(128, 64))
    assert len(alive) == 8
    assert merged.enlarged.shape == (2, 17, 128, 64)
    assert merged.tags is alive[3]()


def test_wrong_settings_are_refused_in_a_sentence(bundled, photo):
    runner = predictor(bundled)
    with pytest.raises(ValueError, match="one shape"):
        runner.predict([runner.prepare(photo), runner.prepare(photo.transpose(1, 0, 2))])
    with pytest.raises(ValueError, match="at least 64"):
        Predictor(bundled.network, COCO.flip, 32)
    with pytest.raises(ValueError, match="at least one number above 0"):
        predictor(bundled, scales=())
    with pytest.raises(ValueError, match="'cuda:99' is not available"):
        Predictor(bundled.network, COCO.flip, SIZE, device="cuda:99")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        Predictor(bundled.network, COCO.flip, SIZE, device="gpu")
