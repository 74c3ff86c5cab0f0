"""The training recipe on small synthetic shards."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference import checkpoints
from inference.calibration import Calibration
from inference.network import HigherHRNet, NetworkConfig
from training import card, choose, mine, targets
from training import evaluate as evaluation
from training import export as exporting
from training import train as training
from training.batches import Batches
from training.calibrate import fit_curve, judged_peaks
from training.dataset import Photo, labelled, random_affine, read_shards, split, whole_affine
from training.evaluate import (
    evaluate,
    joint_values,
    network_map,
    own_tag_is_nearest,
    strip_without_people,
    threshold_at,
)
from training.export import export
from training.losses import heatmap_loss, place_loss, schedule, tag_loss
from training.plot import plot, read_columns
from training.targets import draw_empty, draw_heatmaps, draw_mask, make_sample, mosaic

LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6
CROPS = {
    "sets": {"coco": 2, "lspet": 1, "negative": 1},
    "crops": [[64, 2, 1]],
    "zoom": 0.5,
    "zoom_range": [0.35, 1.3],
    "scene_range": [0.75, 1.6],
    "background_range": [1.0, 2.2],
    "max_enlargement": 2.5,
    "background": 0.2,
    "min_person": 10,
    "sigma": 0.24,
    "sigma_range": {"quarter": [8, 14], "half": [4, 12]},
    "teacher_background": 0.2,
}
OPTIONS = {
    "network": {"width": 4, "stem_blocks": 1, "modules": [1, 1, 1], "blocks": 1, "deconv_blocks": 1, "joints": 17},
    "start": None,
    "start_photos": 10,
    "restart_tags": 0.15,
    "seed": 3,
    "photos": 12,
    "learning_rate": 0.001,
    "warm_up": 2,
    "weight_decay": 0.0001,
    "clip": 5.0,
    "ema": 0.9,
    "bf16": False,
    "foreground": [4, 1],
    "hard": 1,
    "pull": 0.1,
    "push": 0.2,
    "place": 0.1,
    "held_out": {"coco": 2, "negative": 2},
    "check_minutes": 1000,
    "check_share": 1.0,
    "check_size": 64,
    "save_minutes": 0,
    "log_steps": 1,
    "workers": 0,
    "data": CROPS,
}


def person(box: list[float], joints: dict[int, tuple[float, float]], labels: str | None = None) -> dict:
    keypoints = np.zeros((17, 3))
    for k, (x, y) in joints.items():
        keypoints[k] = x, y, 2
    return {
        "bbox": box,
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": len(joints),
        **({"labels": labels} if labels else {}),
    }


def record(people: list[dict], **more) -> dict:
    return {"source": "coco", "id": 1, "width": 80, "height": 64, "persons": people, "ignore": [], **more}


def shards(folder: Path) -> Path:
    """Six photos with a person, four of one person with a valid box, four without people."""
    rng = np.random.default_rng(0)
    standing = person([20, 8, 24, 48], {0: (32, 12), LEFT_SHOULDER: (38, 20), RIGHT_SHOULDER: (26, 20)})
    for name, count in (("coco", 6), ("lspet", 4), ("negative", 4)):
        with tarfile.open(folder / f"{name}-000.tar", "w") as tar:
            for i in range(count):
                more = {"valid_box": [20, 8, 24, 48], "unlabelled_joints": [0]} if name == "lspet" else {}
                about = record([] if name == "negative" else [standing], **more) | {"source": name, "id": i}
                picture = cv2.imencode(".webp", rng.integers(0, 255, (64, 80, 3), dtype=np.uint8))[1].tobytes()
                for suffix, data in ((".webp", picture), (".json", json.dumps(about).encode())):
                    info = tarfile.TarInfo(f"{i:06d}{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return shards(tmp_path / "data")


def test_gaussians_peak_at_the_joint_and_survive_the_border() -> None:
    joints = np.zeros((2, 17, 3))
    joints[0, 3] = 10.5, 20.5, 2  # the centre of pixel (10, 20)
    joints[1, 3] = 12.5, 20.5, 2
    joints[0, 4] = 0.2, 31.9, 1
    maps = draw_heatmaps(joints, np.array([[2.0] * 17, [3.0] * 17]), (32, 32))
    assert maps.shape == (17, 32, 32)
    assert maps[3, 20, 10] == pytest.approx(1)
    assert maps[3, 20, 12] == pytest.approx(1)
    assert maps[3, 20, 8] == pytest.approx(np.exp(-4 / 8), rel=1e-3)  # the maximum, not the sum
    assert np.unravel_index(maps[4].argmax(), (32, 32)) == (31, 0)
    assert maps[4].max() > 0.9
    assert maps[[0, 5]].max() == 0


def test_a_mirrored_crop_swaps_left_and_right_and_follows_the_picture(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next(p for p in read_shards(data) if p.set_name == "coco")
    mirror = np.array([[-1.0, 0, 80], [0, 1, 0]])
    monkeypatch.setattr(targets, "TAG_JITTER", 0)
    sample = make_sample(photo, photo.image(), mirror, 64, CROPS, np.random.default_rng(0))
    peak = np.unravel_index(sample["half"][RIGHT_SHOULDER].argmax(), (32, 32))
    assert peak == (20 // 2 - 0, (80 - 38) // 2) or np.abs(np.subtract(peak, (9.5, 20.5))).max() <= 1
    assert sample["tags"][0, RIGHT_SHOULDER] == 20 // 4 * 16 + 42 // 4
    assert sample["places"][0, RIGHT_SHOULDER, :2] == pytest.approx([21, 10])
    assert sample["places"][0, :, 2].nonzero()[0].tolist() == [0, LEFT_SHOULDER, RIGHT_SHOULDER]
    assert sample["boxes"][0] == pytest.approx([16.8, 1.6, 31.2, 30.4])
    assert np.abs(sample["image"][:, 20:40].astype(int) - photo.image()[:, 40:60][:, ::-1]).max() <= 1


def test_mask_leaves_out_crowds_unknown_joints_and_what_lies_outside_the_valid_box() -> None:
    one = person([8, 8, 16, 32], {0: (16, 12)}, labels="teacher")
    about = record([one], ignore=[[20, 8, 40, 32]], unlabelled_joints=[4])
    mask = draw_mask(about, np.eye(2, 3), 64, [one], [], teacher_background=50)
    assert mask.shape == (17, 32, 32)
    assert mask[0, 10, 8] == 255  # in the person's box
    assert mask[0, 10, 11] == 255  # the person's box wins over the ignore box
    assert mask[0, 10, 20] == 0  # ignored
    assert mask[0, 28, 20] == 50  # background of a teacher-labelled photo
    assert mask[7, 10, 8] == 0  # v = 0 of a teacher is unknown
    assert mask[7, 28, 20] == 50
    assert mask[4].max() == 0
    assert draw_mask(about, np.eye(2, 3), 64, [], [], 50)[0, 10, 8] == 0  # 4 pixels left of the ignore box

    hand = person([8, 8, 16, 32], {0: (16, 12)})
    assert draw_mask(record([hand]), np.eye(2, 3), 64, [hand], [], 50).min() == 255  # v = 0 by hand is absent
    assert draw_mask(record([hand]), np.eye(2, 3), 64, [], [hand], 50)[0, 10, 8] == 0  # too small to be drawn
    behind = record([hand], ignore=[[12, 12, 6, 20]])
    assert draw_mask(behind, np.eye(2, 3), 64, [hand], [], 50)[0, 10, 8] == 0  # the smaller box wins
    crowd = record([hand], ignore=[[0, 0, 64, 64]])
    assert draw_mask(crowd, np.eye(2, 3), 64, [hand], [], 50)[0, 10, 8] == 255
    inside = draw_mask(record([hand], valid_box=[8, 8, 16, 32]), np.eye(2, 3), 64, [hand], [], 50)
    assert inside[0, 10, 8] == 255
    assert inside[0, 28, 28] == 0


def test_nobody_is_where_no_box_is_near() -> None:
    about = record([person([20, 20, 20, 20], {0: (30, 30)})], ignore=[[50, 50, 8, 8]])
    empty = draw_empty(about, np.eye(2, 3), 64)
    assert empty.shape == (32, 32)
    assert empty[5, 5] == empty[15, 25] == 1
    assert empty[15, 15] == empty[26, 26] == 0
    assert empty[15, 9] == 0  # a tenth of the box beside it
    assert empty[15, 8] == 1


def test_background_crops_show_known_alarms_and_only_of_photos_without_unknown_people(data: Path) -> None:
    options = {**CROPS, "zoom": 0, "background": 1}
    photo = next(p for p in read_shards(data) if p.set_name == "negative")
    alarms = [[10.0, 10.0, 0.9]]
    near = 0
    for seed in range(40):
        affine = random_affine(photo, 16, np.random.default_rng(seed), options, alarms)
        x, y = affine[:, :2] @ alarms[0][:2] + affine[:, 2]
        near += 0 <= x <= 16 and 0 <= y <= 16
    assert near >= 25


def test_mining_finds_what_lights_up_away_from_people(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = next(p for p in read_shards(data) if p.set_name == "coco")
    maps = torch.zeros(17, 32, 40)
    maps[3, 4, 36] = 0.3  # away from everybody
    box = labelled(photo.record)[0]["bbox"]
    maps[5, int(box[1] + box[3] / 2) // 2, int(box[0] + box[2] / 2) // 2] = 0.35
    maps[5, 28, 36] = 0.6  # so high that it is somebody without a label
    monkeypatch.setattr(mine, "infer", lambda *_: (maps, maps, 0.5))
    assert mine.alarms(HigherHRNet(NetworkConfig()), photo, 64) == [[73.0, 9.0, 0.3]]
    photo.record["persons"].clear()  # nobody is there whom the labels could lack
    assert [value for _, _, value in mine.alarms(HigherHRNet(NetworkConfig()), photo, 64)] == [0.6, 0.35, 0.3]


def test_held_out_photos_do_not_depend_on_the_order_and_never_train(data: Path) -> None:
    photos = read_shards(data)
    rest, held = split(photos, coco=2, negative=1)
    assert {p.record["id"] for p in held} == {p.record["id"] for p in split(photos[::-1], coco=2, negative=1)[1]}
    assert len(rest) == len(photos) - 3
    assert not {id(p) for p in rest} & {id(p) for p in held}


def test_a_mosaic_is_four_crops_whose_people_stay_where_they_are_seen(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "TAG_JITTER", 0)
    photos = [photo for photo in read_shards(data) if photo.set_name == "coco"][:3]
    photos.append(next(photo for photo in read_shards(data) if photo.set_name == "negative"))
    shift = np.array([[1.0, 0, -8], [0, 1, 0]])
    parts = [make_sample(p, p.image(), shift, 64, CROPS, np.random.default_rng(0)) for p in photos]
    whole = mosaic(parts)
    assert (whole["image"].shape, whole["half"].shape) == ((128, 128, 3), (17, 64, 64))
    for index, part in enumerate(parts):
        down, across = np.divmod(index, 2)
        for name, side in (("quarter", 16), ("half", 32), ("mask", 32), ("empty", 32)):
            cell = whole[name][:, down * side :, across * side :][:, :side, :side]
            assert np.array_equal(cell, part[name]), name
        assert np.array_equal(whole["image"][down * 64 :, across * 64 :][:64, :64], part["image"])
    there = whole["places"][..., 2] > 0
    assert there.sum(axis=1).tolist() == [3, 3, 3] + [0] * 9
    assert (whole["tags"][~there] == -1).all()
    for person, joint in zip(*there.nonzero(), strict=True):
        row, column = np.divmod(whole["tags"][person, joint], 32)
        assert whole["quarter"][joint, row, column] > 0.9
        x, y = whole["places"][person, joint, :2]
        assert whole["half"][joint, int(y), int(x)] > 0.9
        left, top, right, bottom = whole["boxes"][person]
        assert left <= x <= right
        assert top <= y <= bottom
    assert np.array_equal(whole["boxes"][3:], np.zeros((9, 4)))
    cells = {(left // 32, top // 32) for left, top, *_ in whole["boxes"][:3].tolist()}
    assert cells == {(0, 0), (1, 0), (0, 1)}


def test_batches_have_mosaics_of_the_sets_that_ask_for_them(data: Path) -> None:
    photos = read_shards(data)
    options = {**CROPS, "sets": {"lspet": 1}, "mosaic": {"lspet": 1}}
    with pytest.raises(ValueError, match="flickr8k: remove them from 'sets' and 'mosaic'"):
        Batches(photos, {**options, "mosaic": {"flickr8k": 1}}, seed=1)
    batch, plain = Batches(photos, options, seed=1)[5], Batches(photos, {**options, "mosaic": {}}, seed=1)[5]
    assert batch["image"].shape == plain["image"].shape == (2, 64, 64, 3)
    assert ((batch["places"][..., 2] > 0).any(2).sum(1) > 1).any()
    assert ((plain["places"][..., 2] > 0).any(2).sum(1) <= 1).all()


def test_batches_are_a_function_of_their_number(data: Path) -> None:
    photos = read_shards(data)
    first, again = (Batches(photos, CROPS, seed=1)[5] for _ in range(2))
    assert first["image"].shape == (2, 64, 64, 3)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], Batches(photos, CROPS, seed=2)[5]["image"])


def test_crops_keep_to_the_photo(data: Path) -> None:
    rng = np.random.default_rng(0)
    for photo in read_shards(data):
        for _ in range(20):
            affine = random_affine(photo, 64, rng, CROPS)
            centre = np.linalg.solve(affine[:, :2], np.array([32, 32]) - affine[:, 2])
            assert 0 <= centre[0] <= 80
            assert 0 <= centre[1] <= 64


def test_heatmap_loss_counts_what_the_mask_lets_through() -> None:
    target = torch.zeros(2, 1, 4, 4)
    target[0, 0, 0, 0] = 1
    predicted = torch.full_like(target, 0.5)
    everything = torch.ones_like(target)
    empty = torch.ones_like(target)
    empty[0, 0, 0, 0] = 0
    empty[1] = 0
    plain = heatmap_loss(predicted, target, everything, 0, 0, empty)
    assert plain == pytest.approx(32 * 0.25 / (2 * 12.57))
    assert heatmap_loss(predicted, target, everything * 0, 4, 4, empty) == 0
    assert heatmap_loss(predicted, target, everything, 4, 0, empty) == pytest.approx(36 * 0.25 / (2 * 12.57))
    # The 15 pixels where nobody is weigh 1 + 2 * 0.5.
    assert heatmap_loss(predicted, target, everything, 0, 2, empty) == pytest.approx(47 * 0.25 / (2 * 12.57))


def test_place_loss_is_about_a_joint_in_its_box_only() -> None:
    places = torch.zeros(2, 2, 2, 3)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 12.0, 12.0]]).repeat(2, 1, 1)
    places[1, 1, 0] = torch.tensor([6.5, 4.5, 2.0])  # the second photo's second person has the first joint
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def at(x: float, y: float) -> Tensor:
        maps = torch.zeros(2, 2, 16, 16)
        maps[1, 0] = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
        return maps

    def loss(maps: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        target, mask = at(6, 4) if target is None else target, torch.ones(2, 2, 16, 16) if mask is None else mask
        return place_loss(maps, target, mask, places, boxes)

    assert loss(at(6, 4)) == pytest.approx(0, abs=1e-5)
    assert loss(at(6, 4) + 3) == pytest.approx(0, abs=1e-4), "a constant does not count"
    assert loss(at(6, 4) / 2) > 0.1, "the contrast does"
    elsewhere = at(6, 4)
    elsewhere[1, 0, 13:, 13:] = elsewhere[0] = elsewhere[:, 1] = 5
    assert loss(elsewhere) == pytest.approx(0, abs=1e-5), "other places, photos and joints do not"
    shifted = at(9, 4).requires_grad_()
    assert loss(shifted) > loss(at(7, 4)) > 0.1
    loss(shifted).backward()
    assert shifted.grad is not None
    assert shifted.grad[1, 0, 4, 6] < 0 < shifted.grad[1, 0, 4, 9]

    two = torch.maximum(at(6, 4), at(10, 10))
    assert loss(two) > 0.5
    assert loss(two, two) == pytest.approx(0, abs=0.05), "another person's joint in the box is no mistake"
    mask = torch.ones(2, 2, 16, 16)
    mask[1, 0, 6:, 8:] = 0
    assert loss(two, mask=mask) == pytest.approx(0, abs=0.05), "nor is what the mask leaves out"
    places[1, 1, 0] = torch.tensor([14.5, 4.5, 2.0])
    assert loss(at(14, 4)) == pytest.approx(0, abs=0.1), "some joints are outside of their box"
    assert loss(at(6, 4)) > 0.5
    assert place_loss(two, two, mask, places * 0, boxes) == 0  # nobody


def test_place_loss_counts_where_it_has_a_weight() -> None:
    torch.manual_seed(0)
    batch = {
        "image": torch.zeros(1, 16, 16, 3, dtype=torch.uint8),
        "quarter": torch.zeros(1, 17, 4, 4),
        "half": torch.zeros(1, 17, 8, 8),
        "mask": torch.zeros(1, 17, 8, 8, dtype=torch.uint8),
        "empty": torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        "tags": torch.full((1, 2, 17), -1),
        "places": torch.tensor([[[[4.0, 4.0, 1.5]] * 17] * 2]),
        "boxes": torch.tensor([[[0.0, 0.0, 8.0, 8.0]] * 2]),
    }
    options = {**OPTIONS, "bf16": False}
    outputs = (torch.randn(1, 34, 4, 4), torch.randn(1, 17, 8, 8))
    parts = training.losses(lambda images: outputs, batch, 0, {**options, "place": 0.5})
    assert parts["loss"] == pytest.approx(0.5 * parts["place"].item())
    assert parts["place"] > 0
    assert training.losses(lambda images: outputs, batch, 0, {**options, "place": 0})["loss"] == 0


def test_tags_of_two_people_are_pushed_apart_from_almost_equal() -> None:
    positions = torch.full((1, 3, 2), -1)
    positions[0, 0] = torch.tensor([0, 1])
    positions[0, 1] = torch.tensor([10, 11])
    tags = torch.zeros(1, 2, 4, 4)
    tags[0, :, 2, 2:] = 1e-3
    tags.requires_grad_()
    pull, push = tag_loss(tags, positions)
    assert pull.item() == pytest.approx(0, abs=1e-5)
    assert push.item() == pytest.approx(1, abs=0.01)
    push.backward()
    assert tags.grad.abs().max() > 0.1

    apart = torch.zeros(1, 2, 4, 4)
    apart[0, :, 2, 2:] = 5
    assert tag_loss(apart, positions)[1] == 0
    assert tag_loss(torch.randn(1, 2, 4, 4), torch.full((1, 3, 2), -1)) == (0, 0)  # nobody


def test_schedule_is_linear_between_its_values() -> None:
    assert [schedule(p, [4, 2, 1]) for p in (-1, 0, 0.25, 0.5, 0.75, 1, 2)] == [4, 4, 3, 2, 1.5, 1, 1]
    assert schedule(0.3, [7]) == 7


def test_a_killed_run_resumes_to_the_same_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = training.train(data, OPTIONS, tmp_path / "whole")

    def killed(path: Path, row: dict) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train(data, OPTIONS, tmp_path / "killed")
    saved = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3
    resumed = training.train(data, OPTIONS, tmp_path / "killed")
    assert resumed["photos"] == whole["photos"] == 12
    for part in ("model", "ema"):
        for key, value in whole[part].items():
            torch.testing.assert_close(resumed[part][key], value)
    assert len((tmp_path / "whole" / "log.csv").read_text().splitlines()) == 7
    assert "recall_large_at_fa3" in (tmp_path / "whole" / "held_out.csv").read_text()
    assert cv2.imread(str(plot(tmp_path / "whole"))).std() > 10


def test_a_larger_network_computes_at_first_what_the_one_did_that_it_starts_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = HigherHRNet(NetworkConfig.from_dict(OPTIONS["network"])).eval()
    for norm in small.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                values.uniform_(0.5, 1.5)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    more = {"blocks": 3, "deconv_blocks": 2, "stem_blocks": 2}
    deeper = HigherHRNet(NetworkConfig.from_dict({**OPTIONS["network"], **more})).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(deeper(image)[1], small(image)[1])
        training.start_from(deeper, tmp_path / "small.safetensors")
        for mine, its in zip(deeper(image), small(image), strict=True):
            torch.testing.assert_close(mine, its)
    assert deeper.layer1[1].bn2.weight.all()  # what follows could not learn

    wider = HigherHRNet(NetworkConfig.from_dict({**OPTIONS["network"], **more, "head_width": 10})).eval()
    training.start_from(wider, tmp_path / "small.safetensors")
    save_file(wider.state_dict(), tmp_path / "wider.safetensors")
    widest = HigherHRNet(NetworkConfig.from_dict({**OPTIONS["network"], **more, "head_width": 14})).eval()
    training.start_from(widest, tmp_path / "wider.safetensors")
    for network in (wider, widest):
        for mine, its in zip(network(image), small(image), strict=True):
            torch.testing.assert_close(mine, its)


def test_heads_begin_to_listen_to_the_channels_that_their_start_lacked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = HigherHRNet(NetworkConfig.from_dict(OPTIONS["network"]))
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    wider = HigherHRNet(NetworkConfig.from_dict({**OPTIONS["network"], "head_width": 10}))
    training.start_from(wider, tmp_path / "small.safetensors")
    sum(maps.square().sum() for maps in wider.train()(torch.randn(1, 3, 64, 64))).backward()
    for head in wider.final_layers:
        assert head.weight.grad[:, 4:].abs().min() > 0


def test_weights_of_another_network_are_no_start(tmp_path: Path) -> None:
    state = HigherHRNet(NetworkConfig.from_dict(OPTIONS["network"])).state_dict()
    exported = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "start.safetensors"
    for other, weights, words in (
        ({}, {**exported, "extra.weight": torch.zeros(1)}, "1 weights that the network lacks, such as extra.weight"),
        ({}, {k: v for k, v in exported.items() if k != "conv1.weight"}, "lacks 1 weights .*conv1.weight"),
        ({"modules": [1, 2, 1]}, exported, "only whole blocks may be new"),
        ({}, {k: v for k, v in exported.items() if not k.startswith("layer1.0.")}, "lacks .*layer1.0"),
        ({"width": 2}, exported, "more channels in .* than the network"),
        ({"joints": 18}, exported, "for other joints"),
        ({"shared_tag": True}, exported, "for other joints"),
    ):
        save_file(weights, path)
        with pytest.raises(ValueError, match=words):
            training.start_from(HigherHRNet(NetworkConfig.from_dict({**OPTIONS["network"], **other})), path)
    save_file(exported, path)
    training.start_from(HigherHRNet(NetworkConfig.from_dict(OPTIONS["network"])), path)


def test_evaluation_and_export_hold_out_what_training_did(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    training.train(data, OPTIONS, tmp_path / "run")
    arguments = ["training", "--data", str(data), "--run", str(tmp_path / "run"), "--input-size", "64"]
    monkeypatch.setattr("sys.argv", arguments)
    evaluation.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["person_free"] == 2
    monkeypatch.setattr("sys.argv", [*arguments, "--assets", str(tmp_path / "assets")])
    seen: list[Photo] = []
    monkeypatch.setattr(exporting, "fit", lambda network, photos, size: seen.extend(photos) or Calibration())
    others: list[Photo] = []
    monkeypatch.setattr(exporting, "fit_pose_prior", others.extend)
    exporting.main()
    assert len(seen) == 4
    assert others
    assert not {photo.key for photo in others} & {photo.key for photo in seen}
    monkeypatch.setattr("sys.argv", [*arguments, "--assets", str(tmp_path / "assets"), "--card", str(data)])
    with pytest.raises(SystemExit):
        exporting.main()
    assert "leave --assets at" in capsys.readouterr().err


def test_export_fills_the_model_card_when_asked_to(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    training.train(data, OPTIONS, tmp_path / "run")
    ran: list[list[str]] = []
    monkeypatch.setattr(exporting, "ASSETS", tmp_path)
    monkeypatch.setattr(exporting, "fit_pose_prior", lambda photos: None)
    monkeypatch.setattr(exporting.subprocess, "run", lambda command, check: ran.append(command[1:]))
    arguments = ["export", "--data", str(data), "--run", str(tmp_path / "run"), "--input-size", "64", "--name", "mine"]
    for more in ([], ["--card", "here"]):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        exporting.main()
    assert (tmp_path / "mine.safetensors").is_file()
    assert ran == [["-m", "training.card", "--data", "here", "--name", "mine"]]


def test_a_run_without_a_check_can_be_plotted(tmp_path: Path) -> None:
    row = {"photos": 2, "quarter": 0.1, "half": 0.1, "pull": 0.1, "push": 0.1}
    training.append(tmp_path / "log.csv", row)
    assert cv2.imread(str(plot(tmp_path))).std() > 10


def test_a_log_survives_a_kill_and_other_settings(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for photos in (2, 4, 6):
        training.append(log, {"photos": photos, "loss": 0.5, "norm": 1.5})
    training.append(log, {"photos": 4, "loss": 0.4, "place": 3.0, "norm": 2.0})  # once more, since the last checkpoint
    columns = read_columns(log)
    assert columns["photos"] == [2, 4]
    assert columns["loss"] == [0.5, 0.4]
    assert columns["norm"] == [1.5, 2]
    assert np.isnan(columns["place"][0])
    assert columns["place"][1] == 3


def test_compiling_does_not_count_as_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    counted = []
    for compile_it in (False, True):
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=itertools.count(0.0).__next__))
        options = {**OPTIONS, "compile": compile_it}
        counted.append(training.train(data, options, tmp_path / str(compile_it))["seconds"])
    sizes = {size for size, _, _ in OPTIONS["data"]["crops"]}
    assert counted[0] - counted[1] == pytest.approx(len(sizes) * counted[0] / 6, rel=0.2)  # of six steps


def test_another_edition_than_the_configuration_means_is_refused(data: Path, tmp_path: Path) -> None:
    start = tmp_path / "weights.safetensors"
    network = HigherHRNet(NetworkConfig.from_dict(OPTIONS["network"]))
    save_file(network.state_dict(), start)
    start.with_suffix(".json").write_text('{"photos_seen": 700}')
    with pytest.raises(ValueError, match=r"edition of 700 photos.*start_photos are 500"):
        training.train(data, {**OPTIONS, "start": str(start), "start_photos": 500}, tmp_path / "other")
    assert training.train(data, {**OPTIONS, "start": str(start), "start_photos": 700}, tmp_path / "run")["step"] == 6


def test_recall_looks_for_local_maxima_near_the_joint() -> None:
    affine, canvas = whole_affine(80, 64, 128)
    assert canvas == (160, 128)
    assert affine[0, 0] == 2
    about = record([person([10, 10, 40, 50], {0: (20, 20), 1: (60, 40)})])  # 400 pixels wide in the original
    maps = torch.zeros(17, 64, 80)
    maps[0, 20, 21] = 0.7
    maps[1, 40, 40] = 0.9  # too far from (60, 40)
    values, large = joint_values(maps, 1.0, about)
    assert values == pytest.approx([0.7, 0])
    assert large == [True, True]
    assert threshold_at(np.arange(100.0)) == 96  # three of 100 exceed it


def test_tags_are_judged_by_the_nearest_person() -> None:
    left = person([0, 0, 30, 60], {0: (10, 10), 1: (10, 40)})
    right = person([40, 0, 30, 60], {0: (50, 10), 1: (50, 40)})
    tags = torch.zeros(17, 32, 40)
    tags[:, :, 20:] = 3
    assert own_tag_is_nearest(tags, 1.0, record([left, right])) == [True] * 4
    tags[1, 20, 25] = 0  # the right person's second joint looks like the left person's
    assert own_tag_is_nearest(tags, 1.0, record([left, right])) == [True, True, False, False]
    assert own_tag_is_nearest(tags, 1.0, record([left])) == []


def test_strips_beside_the_people() -> None:
    about = record([person([300, 0, 100, 300], {0: (320, 10)})]) | {"width": 400, "height": 300}
    assert strip_without_people(Photo(Path("coco-000.tar"), 0, 0, about)) == (0, 0, 296, 300)
    assert strip_without_people(Photo(Path("coco-000.tar"), 0, 0, about | {"ignore": [[0, 0, 300, 300]]})) is None


def test_evaluation_reads_both_stages(data: Path) -> None:
    outputs = [torch.zeros(1, 34, 4, 4), torch.ones(1, 17, 8, 8)]
    outputs[0][:, 17:] = 9  # tags do not count
    assert torch.equal(network_map(outputs), torch.full((1, 17, 8, 8), 0.5))
    network = HigherHRNet(NetworkConfig.from_dict(OPTIONS["network"]))
    numbers = evaluate(network, read_shards(data)[:6] + read_shards(data)[-4:], 64)
    assert 0 <= numbers["joint_recall"] <= 1
    assert numbers["person_free"] == 4


def test_weights_are_averaged_by_their_share_and_only_with_those_of_the_same_network() -> None:
    old, new = {"a": torch.zeros(2)}, {"a": torch.ones(2), "bn.num_batches_tracked": torch.tensor(3)}
    assert exporting.mean(new, old, 0.6)["a"].tolist() == pytest.approx([0.6, 0.6])
    with pytest.raises(ValueError, match="of another network"):
        exporting.mean(new, {"a": torch.zeros(3)}, 0.6)


def test_what_diverged_is_not_kept() -> None:
    training.must_be_finite(1.0, 7)
    with pytest.raises(ValueError, match="not finite at step 7"):
        training.must_be_finite(float("nan"), 7)


def test_export_can_be_loaded_and_says_what_it_is(tmp_path: Path) -> None:
    config = NetworkConfig.from_dict(OPTIONS["network"])
    network = HigherHRNet(config)
    curve = Calibration(((0.5, 0.7), (1.0, 0.9)))
    export(network.state_dict(), config, tmp_path, "small", 256, photos_seen=5, calibration=curve, smoothing=4)
    about = json.loads((tmp_path / "small.json").read_text())
    assert about["sha256"] == hashlib.sha256((tmp_path / about["file"]).read_bytes()).hexdigest()
    assert NetworkConfig.from_dict(about["network"]) == config
    weights = load_file(tmp_path / about["file"])
    assert {v.dtype for v in weights.values()} == {torch.float16}
    missing, unexpected = HigherHRNet(config).load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    loaded = checkpoints.load(checkpoints.CUSTOM, tmp_path / about["file"]).network
    assert (loaded.calibration, loaded.smoothing) == (curve, 4)

    weights.pop("conv1.weight")
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        export(weights, config, tmp_path, "small", 256, 5, Calibration())
    with pytest.raises(ValueError, match="fp16"):
        export(
            network.state_dict() | {"bn1.weight": torch.full((64,), 1e6)},
            config,
            tmp_path,
            "small",
            256,
            5,
            Calibration(),
        )


def test_choices_are_measured_on_held_out_photos_and_plotted(data: Path, tmp_path: Path) -> None:
    config = NetworkConfig.from_dict(OPTIONS["network"])
    weights = tmp_path / "tiny.safetensors"
    save_file(HigherHRNet(config).state_dict(), weights, {"config": json.dumps(config.to_dict())})
    held = split(read_shards(data), coco=2, negative=2)[1]
    measured = [choose.measure(weights, size, smoothing, held) for size, smoothing in ((64, None), (128, 4.0))]
    assert [choice["short side"] for choice in measured] == [64, 128]
    assert all(choice["ms"] > 0 and 0 <= choice["ap"] <= 1 and choice["joints"] > 0 for choice in measured)
    choose.plot(measured, tmp_path / "choices.png")
    assert cv2.imread(str(tmp_path / "choices.png")) is not None

    people = [photo for photo in held if photo.record["persons"]]
    person = choose.truth(people).anns[1]
    assert person["area"] == pytest.approx(0.55 * 24 * 48 * (640 / 80) ** 2), "of the photo as COCO has it"
    assert person["keypoints"][:3] == [32 * 8, 12 * 8, 2]


def test_peaks_are_judged_where_they_can_be() -> None:
    maps = torch.zeros(17, 50, 60)
    labelled_person = person([10, 10, 60, 80], {LEFT_SHOULDER: (40, 30)})
    photo = {"width": 120, "height": 100, "ignore": [[80, 60, 30, 30]], "persons": [labelled_person]}
    maps[LEFT_SHOULDER, 15, 20] = 0.6  # on its joint
    maps[LEFT_SHOULDER, 45, 10] = 0.3  # elsewhere
    maps[RIGHT_SHOULDER, 20, 20] = 0.5  # in a person of whom this joint is not labelled
    maps[LEFT_SHOULDER, 35, 45] = 0.4  # in an ignored box
    assert sorted(judged_peaks(maps, 0.5, photo)) == [(pytest.approx(0.3), False), (pytest.approx(0.6), True)]


def test_a_calibration_finds_the_curve_that_made_the_hits() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 40_000)
    curve = fit_curve(values, rng.random(len(values)) < values**2)
    found = curve.apply(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    assert np.allclose(found.numpy(), [0.01, 0.09, 0.25, 0.49, 0.81], atol=0.04)


def test_a_calibration_rises_even_where_the_hits_do_not() -> None:
    values = np.linspace(0, 1, 1000)
    curve = fit_curve(values, (values < 0.4).astype(float))
    assert (curve.apply(torch.linspace(0, 1, 200)).diff() > 0).all()


def test_a_calibration_keeps_strong_peaks_apart() -> None:
    values = np.linspace(0, 1, 1000)
    curve = fit_curve(values, (values > 0.25).astype(float))
    middle, high, highest = curve.apply(torch.tensor([0.5, 0.8, 1.0])).tolist()
    assert 0.85 < middle < high < highest <= 1
    assert 255 * (high - middle) > 10, "in 8 bits, too"


# --- model card


def test_the_model_card_is_that_of_the_bundled_weights() -> None:
    about = json.loads((card.ASSETS / "higherhrnet-lite-coco.json").read_text())
    text = (card.ASSETS / "MODEL_CARD.md").read_text(encoding="utf-8")
    network, size = checkpoints.load().network, (card.ASSETS / about["file"]).stat().st_size
    assert card.facts(about, network, size) in text
    network.pose_refiner = None
    assert "refiner" not in card.facts(about, network, size)


def test_measured_sections_of_a_card_are_replaced_and_the_prose_stays() -> None:
    text = "# Card\n<!-- measured: facts -->\nold\n<!-- end -->\nby hand\n<!-- measured: joints -->\n<!-- end -->\n"
    filled = card.fill(text, {"facts": card.table(["a", "b"], [("c", 0.123)]), "joints": "new\n"})
    assert filled == (
        "# Card\n<!-- measured: facts -->\n| a | b |\n| --- | --- |\n| c | 0.12 |\n<!-- end -->\n"
        "by hand\n<!-- measured: joints -->\nnew\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="must have each of facts, joints, accuracy once"):
        card.fill(text, {"facts": "", "joints": "", "accuracy": ""})
