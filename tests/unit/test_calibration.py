import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter

from inference import checkpoints
from inference.calibration import Calibration
from inference.labels import find_people, see
from inference.network import MOST_SMOOTHING, smooth
from inference.predictor import Predictor
from inference.settings import Settings

KNOTS = ((0.1, 0.05), (0.4, 0.6), (1.0, 0.95))


def test_a_curve_of_straight_pieces() -> None:
    values = torch.linspace(-0.2, 1.0, 241)
    expected = np.interp(values.clamp(min=0).numpy(), [0, *(x for x, _ in KNOTS)], [0, *(y for _, y in KNOTS)])
    calibrated = Calibration(KNOTS).apply(values)
    assert np.allclose(calibrated[values >= 0].numpy(), expected[values >= 0], atol=1e-6)
    assert (calibrated.diff() > 0).all(), "it must rise everywhere, also below 0"
    assert calibrated[-1] == pytest.approx(0.95)


def test_no_knots_are_the_identity() -> None:
    values = torch.randn(3, 4)
    assert torch.equal(Calibration().apply(values), values)


@pytest.mark.parametrize("knots", [((0.2, 0.1), (0.5, 0.1)), ((0.5, 0.2), (0.4, 0.9)), ((0.0, 0.1),)])
def test_a_curve_that_does_not_rise_is_refused(knots: tuple) -> None:
    with pytest.raises(ValueError, match="must rise"):
        Calibration(knots)


def test_it_is_stored_with_the_weights_and_used_by_the_predictor(rewritten: Callable[..., Path]) -> None:
    photo = skimage.data.astronaut()
    maps = {}
    for calibration in ("[]", json.dumps(KNOTS)):
        model = checkpoints.load(checkpoint=rewritten(calibration=calibration))
        predictor = Predictor(model.network, model.entry.joint_set.flip, 256, device="cpu")
        maps[calibration] = predictor.predict([predictor.prepare(photo)]).heatmaps
    plain, calibrated = maps.values()
    assert plain.max() > 0.2
    assert torch.allclose(calibrated, Calibration(KNOTS).apply(plain), atol=1e-6)


def test_people_are_found_in_the_networks_own_values_and_have_the_calibrated_ones(
    rewritten: Callable[..., Path],
) -> None:
    found = []
    for calibration in ("[]", json.dumps(KNOTS)):
        model = checkpoints.load(checkpoint=rewritten(calibration=calibration))
        model.network.context_gate = None
        predictor = Predictor(model.network, model.entry.joint_set.flip, 128, device="cpu", precision=torch.float32)
        assert predictor.grouping.detection_threshold == 0.1
        settings = Settings(keypoints=True)
        (seen,) = see(predictor, settings, [predictor.prepare(skimage.data.astronaut())], joints=False)
        assert seen.grouping is predictor.grouping
        found.append(find_people(seen, model.entry.joint_set.grouping_order).joints)
    plain, calibrated = found
    assert len(plain)
    assert np.array_equal(plain[:, :, :2], calibrated[:, :, :2])
    values = torch.from_numpy(plain[:, :, 2])
    assert np.allclose(calibrated[:, :, 2], Calibration(KNOTS).apply(values), atol=0.02)
    assert not np.allclose(calibrated[:, :, 2], values, atol=0.02)


def test_a_calibration_that_makes_no_sense_is_refused(rewritten: Callable[..., Path]) -> None:
    for calibration in ("[[0.5]]", "[1, 2]", "nonsense", "[[0.5, 0.4], [0.2, 0.6]]"):
        with pytest.raises(checkpoints.CheckpointError, match="calibration"):
            checkpoints.load(checkpoint=rewritten(calibration=calibration))


def test_smoothing_is_a_gaussian() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 3, 40, 56)).astype(np.float32)
    expected = gaussian_filter(maps, 2.0, mode="mirror", truncate=3, axes=(2, 3))
    assert np.allclose(smooth(torch.from_numpy(maps), 2.0).numpy(), expected, atol=1e-5)


def test_smoothing_is_stored_with_the_weights_and_is_only_of_the_results(rewritten: Callable[..., Path]) -> None:
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        coarse, fine = checkpoints.load(checkpoint=rewritten(smoothing="0")).network(images)
        smooth_coarse, smooth_fine = checkpoints.load(checkpoint=rewritten(smoothing="4")).network(images)
    assert torch.equal(smooth_coarse, smooth(coarse, 1.0))
    assert torch.equal(smooth_fine, smooth(fine, 2.0)), "the finer maps are made from what was not smoothed"


@pytest.mark.parametrize("smoothing", ["-1", "1e-30", "nan", "inf", "1e9", "nonsense", "[4]"])
def test_a_smoothing_that_makes_no_sense_is_refused(rewritten: Callable[..., Path], smoothing: str) -> None:
    with pytest.raises(checkpoints.CheckpointError, match="smoothing"):
        checkpoints.load(checkpoint=rewritten(smoothing=smoothing))


def test_the_strongest_smoothing_works_on_the_smallest_input(rewritten: Callable[..., Path]) -> None:
    model = checkpoints.load(checkpoint=rewritten(smoothing=str(MOST_SMOOTHING)))
    predictor = Predictor(model.network, model.entry.joint_set.flip, 64, scales=(0.5, 1), device="cpu")
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert predictor.predict([predictor.prepare(photo)]).heatmaps.isfinite().all()
