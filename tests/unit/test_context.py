"""Maps that are dimmed where no body is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch.nn import functional

from inference import checkpoints
from inference.calibration import Calibration
from inference.context import ContextGate, evidence
from inference.joints import COCO
from inference.predictor import Prediction, Predictor
from training import context
from training.context import fit_context_gate, fit_gate, whose
from training.dataset import Photo

GATE = ContextGate((1.0, 2.0, 3.0, *[0.5] * 14), -3.0, 2)


def test_evidence_is_the_highest_value_of_each_joint_nearby() -> None:
    maps = torch.full((1, 3, 40, 52), -0.1)
    maps[0, 0, 3, 3] = 0.9
    maps[0, 2, 20, 25] = 0.4
    found = evidence(maps, 1)[0].permute(2, 0, 1)
    assert found.shape == (3, 5, 7), "cells that the map fills only partly count"
    assert found[:, 0, 0].tolist() == pytest.approx([0.9, 0, 0])
    assert found[:, 1, 1].tolist() == pytest.approx([0.9, 0, 0])
    assert found[:, 1, 2].tolist() == pytest.approx([0.4, 0, 0]), "two cells away from the first"
    maps[0, 1, 20, 25] = 0.6
    assert evidence(maps, 1)[0, 2, 3].tolist() == pytest.approx([0.6, 0.4, 0]), "the highest first, whosever"


def test_a_joint_among_others_stays_and_a_lonely_one_is_dimmed() -> None:
    maps = torch.zeros(1, 17, 64, 100)
    maps[0, 3, 10, 10] = 0.6
    for joint in range(8):
        maps[0, joint, 50, 70 + joint] = 0.6
    factors = GATE.factors(maps)
    assert factors.shape == (1, 1, 64, 100)
    assert factors[0, 0, 10, 10] < 0.15
    assert factors[0, 0, 50, 74] > 0.6
    more = GATE.factors(maps + torch.rand_like(maps))
    assert (more >= factors).all(), "more evidence never dims anything"


def test_files_keep_it() -> None:
    assert ContextGate.from_json(GATE.to_json()) == GATE
    good = json.loads(GATE.to_json())
    for bad, words in (
        ({**good, "weights": []}, "for each joint"),
        ({**good, "weights": [-1.0, *good["weights"][1:]]}, "not below 0"),
        ({**good, "bias": float("nan")}, "bias must be finite"),
        ({**good, "reach": 2.5}, "whole number"),
        ({**good, "reach": 1000}, "from 0 to 64"),
    ):
        with pytest.raises(ValueError, match=words):
            ContextGate.from_json(json.dumps(bad))


def test_it_comes_with_the_weights(rewritten: Callable[..., Path]) -> None:
    assert checkpoints.load(checkpoint=rewritten(context_gate=GATE.to_json())).network.context_gate == GATE
    short = json.dumps({**json.loads(GATE.to_json()), "weights": [1.0] * 5})
    for text in ("nonsense", "[]", "{}", '{"weights": 1, "bias": 0, "reach": 2}', short):
        with pytest.raises(checkpoints.CheckpointError, match="context gate"):
            checkpoints.load(checkpoint=rewritten(context_gate=text))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_maps_are_gated_before_they_are_calibrated(rewritten: Callable[..., Path], scales: tuple[float, ...]) -> None:
    network = checkpoints.load(checkpoint=rewritten(calibration="[]")).network
    photo = skimage.data.astronaut()

    def predicted(gate: ContextGate | None, calibration: Calibration) -> Prediction:
        network.context_gate, network.calibration = gate, calibration
        predictor = Predictor(network, COCO.flip, 128, scales=scales, device="cpu", precision=torch.float32)
        return predictor.predict([predictor.prepare(photo)])

    def maps(*settings: Any) -> list[torch.Tensor]:
        found = predicted(*settings)
        return [found.heatmaps] if found.enlarged is None else [found.heatmaps, found.enlarged]

    calibration = Calibration(((0.1, 0.05), (0.4, 0.6), (1.0, 0.95)))
    plain, gated = maps(None, Calibration()), maps(GATE, calibration)
    factors = GATE.factors(plain[0])
    assert factors.max() - factors.min() > 0.1
    for without, with_gate in zip(plain, gated, strict=True):
        fine = functional.interpolate(factors, size=without.shape[2:], mode="bilinear")
        torch.testing.assert_close(with_gate, calibration.apply(without * fine))
    own = predicted(GATE, calibration).own
    assert own is not None
    torch.testing.assert_close(own, plain[-1])
    assert predicted(None, Calibration()).own is None


def test_peaks_are_somebodys_joint_or_away_from_everybody() -> None:
    keypoints = np.zeros((17, 3))
    keypoints[5] = 50, 60, 2
    known = {"bbox": [20, 20, 60, 100], "keypoints": keypoints.ravel().tolist(), "num_keypoints": 1}
    about = {"persons": [known], "ignore": [[200, 0, 50, 50]]}
    peaks = {
        (5, 52, 61): "joint",
        (6, 52, 61): "person",
        (5, 84, 60): "person",
        (5, 100, 60): "away",
        (5, 210, 9): "crowd",
    }
    joints, places = np.array([joint for joint, *_ in peaks]), np.array([place for _, *place in peaks], float)
    on_joint, away = whose(joints, places, about)
    assert [what == "joint" for what in peaks.values()] == on_joint.tolist()
    assert [what == "away" for what in peaks.values()] == away.tolist()


def test_it_is_fitted_to_what_tells_bodies_from_specks() -> None:
    rng = np.random.default_rng(0)
    bodies = np.sort(rng.uniform(0.2, 0.9, (300, 17)))[:, ::-1]
    specks = np.sort(rng.uniform(0, 0.1, (200, 17)))[:, ::-1].copy()
    specks[:, 0] = rng.uniform(0.3, 0.9, 200)
    values, hits = np.concatenate([bodies, specks]), np.arange(500) < 300
    gate = fit_gate(values, hits, np.full(500, 1 / 500), 4)
    assert gate.reach == 4
    logits = values @ gate.weights + gate.bias
    assert (logits[hits] > 0).all()
    assert (logits[~hits] < 0).all()
    assert gate.weights[0] < max(gate.weights), "specks have one high value, too"


def test_the_fit_takes_joints_and_pictures_without_people(monkeypatch: pytest.MonkeyPatch) -> None:
    keypoints = np.zeros((17, 3))
    keypoints[:8] = [[40 + joint, 60, 2] for joint in range(8)]
    known = {"bbox": [20, 20, 60, 100], "keypoints": keypoints.ravel().tolist(), "num_keypoints": 8}
    body, speck = torch.zeros(17, 100, 100), torch.zeros(17, 100, 100)
    for joint in range(8):
        body[joint, 30, 20 + joint // 2] = 0.7
    speck[2, 50, 50] = 0.7
    maps = {True: body, False: speck}
    monkeypatch.setattr(Photo, "image", lambda photo: bool(photo.record["persons"]))
    monkeypatch.setattr(context, "infer", lambda network, image, size: (maps[image], torch.zeros(0), 0.5))
    monkeypatch.setattr(context, "strip_without_people", lambda photo: None)
    photos = [Photo(Path(), 0, 0, {"persons": people, "ignore": []}) for people in ([known], [])]
    gate = fit_context_gate(None, photos, 200)  # type: ignore[arg-type]
    assert gate.factors(body[None])[0, 0, 30, 20] > 0.8
    assert gate.factors(speck[None])[0, 0, 50, 50] < 0.4
    assert gate.reach == 3, "50 of the 200 input pixels, in cells of 16"
