import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from inference import checkpoints
from inference.calibration import Calibration
from inference.predictor import Predictor

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


def rewritten(folder: Path, calibration: str) -> Path:
    """The bundled weights with another calibration."""
    source, target = checkpoints.find_model("higherhrnet-lite-coco").asset, folder / "w.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(source), target, {**metadata, "calibration": calibration})
    return target


def test_it_is_stored_with_the_weights_and_used_by_the_predictor(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    maps = {}
    for calibration in ("[]", json.dumps(KNOTS)):
        model = checkpoints.load(checkpoint=rewritten(tmp_path, calibration))
        predictor = Predictor(model.network, model.entry.joint_set.flip, 64, device="cpu", precision=torch.float32)
        maps[calibration] = predictor.predict([predictor.prepare(photo)]).heatmaps
    plain, calibrated = maps.values()
    assert plain.max() > 0.01
    assert torch.allclose(calibrated, Calibration(KNOTS).apply(plain), atol=1e-6)


def test_a_calibration_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    for calibration in ("[[0.5]]", "[1, 2]", "nonsense", "[[0.5, 0.4], [0.2, 0.6]]"):
        with pytest.raises(checkpoints.CheckpointError, match="calibration"):
            checkpoints.load(checkpoint=rewritten(tmp_path, calibration))
