"""Joints moved to where all maps around a person say that they are most likely."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from inference import checkpoints
from inference.calibration import Calibration
from inference.checkpoint_files import POSE_REFINER, read
from inference.geometry import warp_for
from inference.grouping import GroupingConfig, _copies, group
from inference.joints import COCO
from inference.labels import Seen, find_people
from inference.maps import ImageMaps
from inference.network import HigherHRNet, NetworkConfig
from inference.pose_prior import PosePrior
from inference.pose_refiner import (
    CELLS,
    HALF,
    PoseRefiner,
    RefinerNetwork,
    cut_windows,
    draw,
    likeliest,
    smoothed,
    to_cells,
    values_at,
)
from inference.predictor import Predictor
from training import refine_poses
from training.dataset import Photo
from training.export import export
from training.refine_poses import (
    KEPT_CELLS,
    KEPT_HALF,
    Samples,
    augmented,
    collect,
    read_samples,
    refiner_loss,
    similarity,
    truth_of,
)

# A standing person, joints as in COCO: x to the right, y down.
STANDING = np.array(
    [(0, -16), (1, -17), (-1, -17), (2, -16), (-2, -16)]  # nose, eyes, ears
    + [(side * x, y) for x, y in ((4, -12), (6, -6), (7, 0), (3, 0), (3, 8), (3, 16)) for side in (1, -1)],
    float,
)
SHAPE = (160, 224)  # of the input; maps are half as large


def prior() -> PosePrior:
    joints = STANDING - STANDING.mean(axis=0)
    return PosePrior.from_arrays(joints / np.sqrt((joints**2).sum(axis=1).mean()), 0.05 * np.eye(34))


def scene(places: NDArray, tag: float = 3.0) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Heatmaps (17, 80, 112), tags (17, 80, 112, 1) and joints (1, 17, 3) of a person in the input's pixels."""
    rows, columns = (np.arange(side) * 2 + 1 for side in (80, 112))
    x, y = places.T[:, :, None]
    distances = ((columns - x) ** 2)[:, None] + ((rows - y) ** 2)[:, :, None]
    heatmaps = 0.8 * np.exp(-distances / (2 * 4**2)).astype(np.float32)
    tags = np.where(distances < 15**2, tag, 0).astype(np.float32)[..., None]
    return heatmaps, tags, np.column_stack([places, np.full(17, 0.8)]).astype(np.float32)[None]


def test_a_window_shows_a_persons_maps_and_whose_tags_fit() -> None:
    places = 3 * STANDING + (90, 80)
    heatmaps, tags, joints = scene(places)
    windows = cut_windows(heatmaps, tags, joints, SHAPE, prior())
    assert windows.people.tolist() == [0]
    cells = to_cells(joints[:, :, :2], windows)
    for joint, (x, y) in enumerate(cells[0].tolist()):
        peak = np.unravel_index(int(windows.heatmaps[0, joint].argmax()), (CELLS, CELLS))
        assert np.abs(np.subtract(peak, (y - 0.5, x - 0.5))).max() < 1
        assert windows.heatmaps[0, joint].max() == pytest.approx(0.7, abs=0.1), "means of cells are below the peak"
        assert windows.fits[0, joint, int(y), int(x)] > 0.99
    assert windows.fits[0, 0, 40, 24] < 0.01, "there the nose's tag is another"
    again = cut_windows(heatmaps, tags, np.concatenate([joints, 0 * joints]), SHAPE, prior())
    assert again.people.tolist() == [0], "nothing is known of people without joints"

    heatmaps, tags, joints = scene(3 * STANDING + (10, 80))
    windows = cut_windows(heatmaps, np.full_like(tags, 3), joints, SHAPE, prior())
    assert windows.fits[0, :, :, 0].max() == 0, "outside of the picture"
    assert windows.fits[0, :, 24, -1].min() > 0.9
    shared = np.where(np.arange(112) < 60, 3, 0).astype(np.float32)[None, None, :, None].repeat(80, axis=1)
    each, two = (
        cut_windows(heatmaps, maps, joints, SHAPE, prior()).fits
        for maps in (shared.repeat(17, axis=0), shared.repeat(2, axis=3))
    )
    torch.testing.assert_close(two, each, msg="one tag for all joints, and a second one with the flip test")
    assert each.std() > 0.1


def test_a_window_of_larger_maps_is_the_same() -> None:
    """Several scales leave them as large as the input."""
    heatmaps, tags, joints = scene(3 * STANDING + (90, 80))
    fine = functional.interpolate(torch.from_numpy(heatmaps)[None], size=SHAPE, mode="bilinear")[0].numpy()
    seen, same = (cut_windows(maps, tags, joints, SHAPE, prior()).heatmaps for maps in (heatmaps, fine))
    torch.testing.assert_close(same, seen, atol=0.05, rtol=0)


def test_the_likeliest_place_is_the_top_of_what_is_drawn() -> None:
    places = torch.tensor([[[10.2, 20.4], [0.5, 47.5], [30.9, 5.0]]])
    shares = draw(places, torch.ones(1, 3)).log().clamp_min(-50)
    torch.testing.assert_close(likeliest(shares), places, atol=0.01, rtol=0)


def test_a_place_is_found_between_cells_where_the_finer_map_has_it() -> None:
    torch.manual_seed(0)
    places = 4 * STANDING + (100.3, 80.7)
    heatmaps, tags, joints = scene(places)
    windows = cut_windows(heatmaps, tags, joints, SHAPE, prior())
    refiner = PoseRefiner(RefinerNetwork(17).eval(), COCO.flip, COCO.sigmas)
    cell = 2 * HALF / CELLS * windows.sizes[0]
    off = places + np.array([0.8 * cell, 0])  # cells that are not sure
    shares = 0.3 * draw(to_cells(off[None], windows), torch.ones(1, 17), torch.full((17,), 2.0)).clamp_min(1e-3).log()
    shares = shares.flatten(2).log_softmax(2).view_as(shares)
    tops = (likeliest(shares) * 2 / CELLS - 1) * HALF * windows.sizes[0] + torch.from_numpy(windows.centres)[:, None]
    found = refiner._locate(shares, windows, heatmaps, SHAPE)[0].numpy()
    errors, before = (np.linalg.norm(xy - places, axis=1) for xy in (found, tops[0].numpy()))
    assert before.min() > 0.6 * cell
    assert errors.mean() < 0.6 * before.mean(), "the map tells more"
    dark = refiner._locate(shares, windows, 0 * heatmaps, SHAPE)[0].numpy()
    assert np.linalg.norm(dark - off, axis=1).max() < 0.3 * cell, "shares decide alone"


@pytest.mark.parametrize("size", [(80, 112), SHAPE, (40, 56)])
def test_values_are_those_of_the_place_whatever_the_size_of_the_maps(size: tuple[int, int]) -> None:
    rows, columns = ((np.arange(side) + 0.5) / side for side in size)
    slope = (columns[None] + 10 * rows[:, None]).astype(np.float32)
    maps = np.stack([slope, -slope])
    places = torch.tensor([[[[112.0, 80.0], [56.0, 120.0], [-30.0, 400.0]], [[112.0, 80.0]] * 3]])
    seen = values_at(maps, places, SHAPE)
    assert seen[0, 0].tolist() == pytest.approx([5.5, 7.75, slope[-1, 0]], abs=1e-3), "beyond the edge as at the edge"
    assert seen[0, 1].tolist() == [0, 0, 0]


def test_smoothed_shares_have_their_top_where_most_of_them_are_near() -> None:
    shares = torch.full((1, 2, CELLS, CELLS), 1e-9)
    shares[..., 5, 5] = 0.4  # one sure place, and a hill with more in all
    shares[..., 30:33, 30:33] = 0.6 / 9
    tops = likeliest(smoothed(shares.log(), torch.tensor([0.3, 2.0])))[0]
    torch.testing.assert_close(tops, torch.tensor([[5.5, 5.5], [31.5, 31.5]]), atol=0.05, rtol=0)


def test_it_looks_twice_and_keeps_the_first_answer_of_whom_it_cannot_judge_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []

    def look(*arguments: object) -> tuple[NDArray, NDArray, NDArray]:
        joints = np.array(arguments[3])
        looked.append(joints.copy())
        people = np.arange(len(joints)) if len(looked) % 2 else np.arange(1, len(joints))
        return people, joints[people] + 1, np.full(len(people), len(looked), np.float32)

    monkeypatch.setattr(PoseRefiner, "look", look)
    refiner = PoseRefiner(RefinerNetwork(17), COCO.flip, COCO.sigmas)
    joints = np.arange(3 * 17 * 3, dtype=np.float32).reshape(3, 17, 3)
    people, places, expected = refiner.places(joints, joints, joints, SHAPE, prior())
    np.testing.assert_array_equal(looked[1], joints + 1)
    assert people.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(places[0], joints[0, :, :2] + 1)
    np.testing.assert_array_equal(places[1:], joints[1:, :, :2] + 2)
    assert expected.tolist() == [1, 2, 2]


def test_joints_of_an_untrained_refiner_are_where_the_maps_say() -> None:
    torch.manual_seed(0)
    places = 3 * STANDING + (90, 80)
    heatmaps, tags, joints = scene(places)
    refiner = PoseRefiner(RefinerNetwork(17).eval(), COCO.flip, COCO.sigmas)
    joints[0, 3, :2] += 9  # grouping was wrong
    people, refined, similar = refiner.places(heatmaps, tags, joints, SHAPE, prior())
    assert people.tolist() == [0]
    assert np.linalg.norm(refined[0] - places, axis=1).max() < 2
    assert 0 < similar[0] < 1

    crowd = np.repeat(joints, 40, axis=0)
    crowd[5] = 0  # of whom nothing is known
    people, more, _ = refiner.places(heatmaps, tags, crowd, SHAPE, prior())
    assert people.tolist() == [*range(5), *range(6, 40)]
    np.testing.assert_allclose(more, np.repeat(refined, 39, axis=0), atol=1e-3)
    people, none, _ = refiner.places(heatmaps, tags, crowd[5:6], SHAPE, prior())
    assert len(people) == len(none) == 0
    with pytest.raises(ValueError, match="no numbers"):
        refiner.places(heatmaps, np.full_like(tags, np.nan), joints, SHAPE, prior())


class Mover:
    """Says what it is told to say of the people whom it judges, of each of the first ones if not told of whom."""

    def __init__(self, moved: NDArray, expected: Sequence[float], judged: Sequence[int] | None = None):
        people = np.arange(len(moved)) if judged is None else np.array(judged, np.intp)
        self.answer = people, np.array(moved, np.float32), np.array(expected, np.float32)

    def places(self, *arguments: object) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
        return self.answer


def test_grouping_moves_people_and_reads_their_values_there() -> None:
    heatmaps, tags, joints = scene(3 * STANDING + (90.3, 80.6))
    moved = joints[0, :, :2] + (3, 0)
    moved[9] = -5, 80
    config = GroupingConfig(prior=prior(), refiner=Mover(moved[None], [0.7]))
    people = group(heatmaps, tags, COCO.grouping_order, config, SHAPE)
    assert len(people) == 1
    assert people.joints[0, 9, 0] == 0, "a joint outside of the picture is at its edge"
    assert 0 < people.joints[0, 9, 2] < 1e-3, "where nothing is seen of it"
    expected = moved.copy()
    expected[9, 0] = 0
    np.testing.assert_array_equal(people.joints[0, :, :2], expected)
    others = np.delete(people.joints[0, :, 2], 9)
    assert ((others > 0.5) & (others < 0.75)).all()
    assert people.scores.tolist() == pytest.approx([0.7]), "the OKS to be expected"
    dimmed = group(heatmaps / 2, tags, COCO.grouping_order, config, SHAPE, heatmaps)
    np.testing.assert_array_equal(dimmed.joints[0, :, :2], expected)
    np.testing.assert_allclose(dimmed.joints[0, :, 2], people.joints[0, :, 2] / 2, atol=1e-6)
    assert dimmed.scores.tolist() == pytest.approx([0.7])
    plain = group(heatmaps, tags, COCO.grouping_order, GroupingConfig(prior=prior()), SHAPE)
    assert plain.scores.tolist() == pytest.approx([0.8], abs=0.05), "without a refiner the mean value"
    assert len(group(heatmaps, tags, COCO.grouping_order, replace(config, min_score=0.71), SHAPE)) == 0
    assert len(group(heatmaps, tags, COCO.grouping_order, replace(config, min_mean=0.9), SHAPE)) == 0


def test_fragments_that_become_copies_are_dropped() -> None:
    heatmaps, tags, joints = scene(3 * STANDING + (60.3, 80.6))
    tags[:5] += 5  # the face becomes a group of its own
    first = joints[0, :, :2]
    apart = first + np.array([80, 0])
    order = COCO.grouping_order
    plain = group(heatmaps, tags, order, GroupingConfig(prior=prior()), SHAPE)
    assert len(plain) == 2
    means = plain.scores
    body, face = int(means.argmax()), int(means.argmin())
    for moved, expected, left in (
        ((first, first + 2), (0.6, 0.6), [body]),
        ((first, first + 2), np.where(means == means.max(), 0.1, 0.9), [face]),
        ((first, apart), (0.6, 0.6), [0, 1]),
    ):
        config = GroupingConfig(prior=prior(), refiner=Mover(np.array(moved), expected))
        people = group(heatmaps, tags, order, config, SHAPE)
        np.testing.assert_array_equal(people.joints[:, :, :2], np.array(moved, np.float32)[left])
        np.testing.assert_allclose(people.scores, np.array(expected)[left], atol=1e-6)

    for judged in ([face], [body]):  # the other one stays as it is, also where it is the same
        (other,) = {0, 1} - set(judged)
        refiner = Mover(plain.joints[[other], :, :2], [0.4], judged)
        people = group(heatmaps, tags, order, GroupingConfig(prior=prior(), refiner=refiner), SHAPE)
        np.testing.assert_allclose(people.joints[other], plain.joints[other], atol=2e-6)
        np.testing.assert_array_equal(people.joints[judged, :, :2], plain.joints[[other], :, :2])
        assert people.scores[other] == means[other]
        assert people.scores[judged[0]] == pytest.approx(0.4)
    nobody = Mover(np.zeros((0, 17, 2)), [])
    people = group(heatmaps, tags, order, GroupingConfig(prior=prior(), refiner=nobody), SHAPE)
    np.testing.assert_allclose(people.joints, plain.joints, atol=2e-6)
    np.testing.assert_array_equal(people.scores, plain.scores)


def test_a_copy_of_a_copy_need_not_be_one() -> None:
    size = np.sqrt(((STANDING - STANDING.mean(axis=0)) ** 2).sum(axis=1).mean())
    row = np.stack([STANDING + np.array([x * size, 0]) for x in (0.0, 0.2, 0.4)])  # each as near to the next
    assert _copies(row, np.array([3.0, 2.0, 1.0])).tolist() == [False, True, False]
    assert _copies(row, np.array([2.0, 3.0, 1.0])).tolist() == [True, False, True]
    assert _copies(row, np.array([1.0, 1.0, 1.0])).tolist() == [False, True, False], "the first of equals"
    assert _copies(row, np.array([1.0, 2.0, 3.0])).tolist() == [False, True, False]
    assert len(_copies(row[:0], np.zeros(0))) == 0
    assert _copies(row[:2] * 0, np.ones(2)).tolist() == [False, True], "people of no size"


def test_mirrored_windows_give_mirrored_joints() -> None:
    torch.manual_seed(0)
    network = RefinerNetwork(17).eval()
    torch.nn.init.normal_(network.head.weight, std=0.1)
    refiner = PoseRefiner(network, COCO.flip, COCO.sigmas)
    windows = torch.rand(3, 2, 17, CELLS, CELLS)
    shares, logits = refiner._both_ways(*windows)
    flip = list(COCO.flip)
    mirrored, same = refiner._both_ways(*windows[:, :, flip].flip(4))
    torch.testing.assert_close(mirrored, shares[:, flip].flip(3))
    torch.testing.assert_close(same, logits)
    assert (network(*windows)[0] - shares).abs().max() > 0.01


def test_a_run_keeps_people_whose_pose_can_be_expected_to_be_right() -> None:
    heatmaps, tags, joints = scene(3 * STANDING + (90.3, 80.6))
    counts = []
    for expected in (0.25, 0.35):
        config = GroupingConfig(prior=prior(), refiner=Mover(joints[:, :, :2], [expected]))
        warp = warp_for((224, 160), 160)
        seen = Seen(warp, ImageMaps(None, np.zeros((8, 8), np.uint8), 0.8), heatmaps, tags, grouping=config)
        counts += [len(find_people(seen, COCO.grouping_order, all_groups)) for all_groups in (False, True)]
        dark = Seen(warp, seen.maps, heatmaps / 20, tags, own=heatmaps, grouping=config)
        counts += [len(find_people(dark, COCO.grouping_order, all_groups)) for all_groups in (False, True)]
    assert counts == [0, 1, 0, 1, 1, 1, 0, 1]


def with_refiner(path: Path, state: dict[str, torch.Tensor], prior: bool = True) -> Path:
    """The bundled weights with other tensors of a refiner."""
    source = checkpoints.ASSETS / f"{checkpoints.DEFAULT_MODEL}.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    if not prior:
        del metadata["pose_prior"]
    weights = {name: value for name, value in load_file(source).items() if not name.startswith(POSE_REFINER)}
    save_file({**weights, **{POSE_REFINER + name: value for name, value in state.items()}}, path, metadata)
    return path


def test_it_comes_with_the_weights_and_stays_with_them(tmp_path: Path) -> None:
    network = RefinerNetwork(17)
    torch.nn.init.normal_(network.head.bias)
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    path = with_refiner(tmp_path / "with.safetensors", state)
    checkpoints.convert(path, tmp_path / "converted.safetensors")
    checkpoints.convert(path, tmp_path / "half.safetensors", half=True)
    half = checkpoints.load(checkpoint=tmp_path / "half.safetensors").network.pose_refiner
    assert half is not None
    torch.testing.assert_close(half.network.head.bias, network.head.bias, atol=1e-3, rtol=1e-3)
    for file in (path, tmp_path / "converted.safetensors"):
        loaded = checkpoints.load(checkpoint=file).network
        assert loaded.pose_refiner is not None
        assert torch.equal(loaded.pose_refiner.network.head.bias, network.head.bias)
        assert loaded.context_gate == checkpoints.load().network.context_gate
        assert Predictor(loaded, COCO.flip, 128, device="cpu").grouping.refiner is not None
        assert not any("refiner" in name for name in loaded.state_dict())
    assert checkpoints.load(checkpoint=with_refiner(tmp_path / "without.safetensors", {})).network.pose_refiner is None
    for bad in (
        {name: value for name, value in state.items() if name != "head.bias"},
        {**state, "more": torch.zeros(1)},
        {**state, "head.bias": torch.zeros(3)},
        {**state, "head.bias": state["head.bias"] * torch.nan},
    ):
        with pytest.raises(checkpoints.CheckpointError, match="pose refiner"):
            checkpoints.load(checkpoint=with_refiner(tmp_path / "bad.safetensors", bad))
    with pytest.raises(checkpoints.CheckpointError, match="no pose prior beside it"):
        checkpoints.load(checkpoint=with_refiner(tmp_path / "bad.safetensors", state, prior=False))


# --- training


def test_it_is_exported_with_a_prior_only(tmp_path: Path) -> None:
    state = RefinerNetwork(17).state_dict()
    config = NetworkConfig(width=4, stem_blocks=1, modules=(1, 1, 1), blocks=1, deconv_blocks=1)
    weights = HigherHRNet(config).state_dict()

    def write(prior: PosePrior | None, refiner: dict[str, torch.Tensor]) -> None:
        export(weights, config, tmp_path, "small", 64, 0, Calibration(), pose_prior=prior, pose_refiner=refiner)

    write(prior(), state)
    loaded = checkpoints.load(checkpoints.CUSTOM, tmp_path / "small.safetensors").network
    assert loaded.pose_refiner is not None
    with pytest.raises(ValueError, match="needs a pose prior"):
        write(None, state)
    with pytest.raises(ValueError, match="missing or unknown"):
        write(prior(), {"head.bias": torch.zeros(68)})


def test_groups_are_people_nobody_or_in_doubt() -> None:
    keypoints = np.column_stack([STANDING + 40, np.full(17, 2)])
    standing = {"bbox": [30, 20, 20, 40], "keypoints": keypoints.ravel().tolist(), "num_keypoints": 17}
    unlabelled = {"bbox": [200, 0, 60, 60], "keypoints": [0] * 51, "num_keypoints": 0}
    record = {"persons": [standing, unlabelled], "ignore": [[300, 0, 60, 60]]}
    warp = warp_for((400, 400), 800)

    def answer(x: float, kind: str = "coco") -> tuple[NDArray, float] | None:
        places = (STANDING + np.array([x, 40])) * warp.ratio + warp.offset
        joints = np.column_stack([places, np.ones(17)])
        return truth_of(joints, joints[:, :2].mean(axis=0), Photo(Path(f"{kind}-000.tar"), 0, 0, record), warp)

    person = answer(42)
    assert person is not None
    assert person[0][:, 2].all()
    assert person[1] == pytest.approx(0.55 * 20 * 40 * warp.ratio**2)
    nobody = answer(120)
    assert nobody is not None
    assert not nobody[0].any()
    assert answer(120, "people") is None, "somebody whom the teacher missed"
    assert answer(230) is None, "somebody without labels"
    assert answer(330) is None, "a crowd"


@pytest.fixture
def samples() -> Samples:
    """Three people whose heatmaps show their joints where they are."""
    rng = np.random.default_rng(0)
    truth = np.stack([STANDING / 10 + rng.normal(0, 0.1, STANDING.shape) for _ in range(3)])
    cells = (truth / KEPT_HALF + 1) * KEPT_CELLS / 2
    middles = np.arange(KEPT_CELLS) + 0.5
    across, down = (np.exp(-((middles - cells[:, :, axis, None]) ** 2) / 8) for axis in (0, 1))
    heatmaps = (down[:, :, :, None] * across[:, :, None]).astype(np.float16)
    labelled = np.concatenate([truth, np.ones((3, 17, 1))], axis=2).astype(np.float32)
    return Samples(heatmaps, np.ones_like(heatmaps), labelled.copy(), labelled, np.full(3, 2.5, np.float32))


def test_what_is_turned_and_mirrored_stays_together(samples: Samples) -> None:
    rng = np.random.default_rng(1)
    heatmaps, fits, drawn, truth, areas = augmented(samples, rng.integers(3, size=40), rng)
    assert heatmaps.shape == fits.shape == drawn.shape == (40, 17, CELLS, CELLS)
    inside = ((truth[:, :, :2] > 0) & (truth[:, :, :2] < CELLS)).all(dim=2)
    assert inside.float().mean() > 0.8
    spread = truth[:, 0, :2].std(dim=0)
    assert (spread > 1).all(), "windows move"
    left, right = truth[:, 5, 0], truth[:, 6, 0]
    assert (left > right).all(), "a mirrored left shoulder is a right one"
    for maps, hidden in ((heatmaps, 0.08), (drawn, 0.15)):
        shown = maps.flatten(2).amax(2) > 0.3
        assert float(1 - shown[inside].float().mean()) == pytest.approx(hidden, abs=0.04)
        peaks = likeliest(maps.clamp_min(1e-9).log())
        assert (peaks - truth[:, :, :2])[inside & shown].abs().max() < 0.5

    apart = (truth[:, 5, :2] - truth[:, 6, :2]).norm(dim=1) ** 2  # of the shoulders, grows as the person does
    assert float((areas / apart).std() / (areas / apart).mean()) < 0.5
    assert similarity(truth[:, :, :2], truth, areas).tolist() == pytest.approx([1] * 40)
    off = truth[:, :, :2] + areas.sqrt()[:, None, None] * 0.1
    assert similarity(off, truth, areas).tolist() == pytest.approx([similarity(off, truth, areas)[0].item()] * 40)
    assert 0.2 < similarity(off, truth, areas)[0] < 0.9
    assert similarity(off, truth * torch.tensor([1, 1, 0]), areas).sum() == 0, "of nobody"


def test_the_loss_is_least_where_the_truth_is() -> None:
    truth = torch.tensor([[[20.0, 30.0, 1.0]] * 17])
    deviation = refine_poses.deviations()[None, :, None, None]
    middles = torch.arange(CELLS) + 0.5

    def shares(x: float) -> torch.Tensor:
        squares = (middles - x) ** 2 + (middles[:, None] - 30) ** 2
        return (-squares / (2 * deviation**2)).flatten(2).log_softmax(2).view(1, 17, CELLS, CELLS)

    assert refiner_loss(shares(20), truth) == pytest.approx(0, abs=1e-4)
    assert refiner_loss(shares(22), truth) > refiner_loss(shares(21), truth) > 0.01
    assert refiner_loss(shares(22), truth * torch.tensor([1, 1, 0])) == 0


def test_a_killed_training_goes_on_as_if_it_had_not_been(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine_poses, "SAVE_STEPS", 2)
    clock = SimpleNamespace(monotonic=itertools.count(step=0.5).__next__)  # a step is half a second
    monkeypatch.setattr(refine_poses, "time", clock)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    refine_poses.train(samples, 2 / 60, whole, None, 0.001)

    def kill(_: float, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refine_poses, "must_be_finite", kill)
        with pytest.raises(KeyboardInterrupt):
            refine_poses.train(samples, 2 / 60, killed, None, 0.001)
    assert torch.load(killed / "refiner.pt", weights_only=True)["step"] == 2
    refine_poses.train(samples, 2 / 60, killed, None, 0.001)
    assert torch.load(killed / "refiner.pt", weights_only=True)["step"] == 4
    resumed = load_file(killed / "pose_refiner.safetensors")
    for name, value in load_file(whole / "pose_refiner.safetensors").items():
        torch.testing.assert_close(resumed[name], value)


def test_it_learns_from_the_people_whom_weights_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoints.load()
    model.network.pose_refiner = None
    predictor = Predictor(model.network, COCO.flip, 256, device="cpu")
    photo = skimage.data.astronaut()
    image = predictor.prepare(photo)
    prediction = predictor.predict([image])
    assert prediction.own is not None
    own, tags = prediction.own[0].numpy(), prediction.tags[0].numpy()
    joints = group(own, tags, COCO.grouping_order, predictor.grouping, image.warp.input_wh[::-1]).joints
    astronaut = joints[joints[:, :, 2].mean(axis=1).argmax()].astype(float)
    astronaut[:, :2] = image.warp.to_image(astronaut[:, :2])
    keypoints = np.column_stack([astronaut[:, :2], 2 * (astronaut[:, 2] > 0.1)])
    record = {"bbox": [60, 0, 380, 512], "keypoints": keypoints.ravel().tolist(), "num_keypoints": 9}
    shard = tmp_path / "coco-000.tar"  # of which photos are read where they say that they lie
    cv2.imwrite(str(tmp_path / "astronaut.png"), photo[:, :, ::-1])
    size = (tmp_path / "astronaut.png").rename(shard).stat().st_size
    known = Photo(shard, 0, size, {"source": "coco", "id": 1, "persons": [record], "ignore": []})

    assert model.network.pose_prior is not None
    found = collect(predictor, model.network.pose_prior, known)
    assert len(found.truth) >= 1
    there = found.truth[0, :, 2] > 0
    assert there.sum() >= 5
    np.testing.assert_allclose(found.joints[0, there, :2], found.truth[0, there, :2], atol=0.05)
    again = collect(predictor, model.network.pose_prior, known, checkpoints.load().network.pose_refiner)
    assert (again.joints[0, :, 2] > 0).all(), "a second look begins with all joints"
    assert np.linalg.norm(again.joints[0, there, :2] - again.truth[0, there, :2], axis=1).max() > 0.01
    untrusted = Path(shutil.copy(shard, tmp_path / "people-000.tar"))  # whose labels may lack people
    nobody = Photo(untrusted, 0, size, {"source": "people", "id": 1, "persons": [], "ignore": []})
    assert len(collect(predictor, model.network.pose_prior, nobody).truth) == 0

    monkeypatch.setattr(refine_poses, "split", lambda photos, **_: (photos, []))
    monkeypatch.setattr(refine_poses, "read_shards", lambda _: [known, nobody])
    monkeypatch.setattr(refine_poses, "CHUNK", 1)
    source = checkpoints.ASSETS / f"{checkpoints.DEFAULT_MODEL}.safetensors"
    arguments = ["refine", "--data", "x", "--weights", str(source), "--output", str(tmp_path), "--minutes", "0.05"]
    monkeypatch.setattr("sys.argv", arguments)
    refine_poses.main()
    assert sorted(path.name for path in tmp_path.glob("windows-*")) == ["windows-000.npz", "windows-001.npz"]
    together = read_samples(tmp_path)
    first, second = (np.load(tmp_path / f"windows-00{number}.npz") for number in (0, 1))
    for name in first.files:
        np.testing.assert_array_equal(getattr(together, name), np.concatenate([first[name], second[name]]))
    state = load_file(tmp_path / "pose_refiner.safetensors")
    assert PoseRefiner.from_state(state, COCO).network.head.weight.any()

    refine_poses.main()  # the same command once more: its time is over
    again = load_file(tmp_path / "pose_refiner.safetensors")
    assert all(torch.equal(again[name], state[name]) for name in state)

    (tmp_path / "refiner.pt").unlink()
    monkeypatch.setattr("sys.argv", [*arguments[:-1], "0", "--start", str(source)])
    refine_poses.main()
    again, bundled = load_file(tmp_path / "pose_refiner.safetensors"), read(source).pose_refiner
    torch.testing.assert_close(again["head.weight"], bundled["head.weight"].float())

    without = with_refiner(tmp_path / "without.safetensors", {})
    monkeypatch.setattr("sys.argv", [*arguments, "--start", str(without)])
    with pytest.raises(SystemExit):
        refine_poses.main()
