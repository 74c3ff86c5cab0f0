"""Weights in every published layout, and files that must be refused."""

import dataclasses
import hashlib
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inference import checkpoints, weights
from inference.checkpoints import CheckpointError
from inference.grouping import group
from inference.joints import COCO
from inference.network import HigherHRNet, NetworkConfig
from inference.predictor import Predictor

NAME = checkpoints.DEFAULT_MODEL
HEAD = ("final_layers", "deconv_layers")


def openmmlab(state: dict) -> dict:
    return {f"{'keypoint_head' if name.startswith(HEAD) else 'backbone'}.{name}": t for name, t in state.items()}


LAYOUTS = {
    "plain": lambda state: state,
    "with optimiser": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1, "state": [1, 2]}},
    "data parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "OpenMMLab": lambda state: {"meta": {"epoch": 3}, "state_dict": openmmlab(state)},
    "SWAHR": lambda state: {
        **state,
        "conv_scale_layers.0.0.weight": torch.zeros(4, 4, 1, 1),
        "module.conv_scale_layers.0.0.bias": torch.zeros(4),
    },
    "half precision": lambda state: {name: t.half() if t.is_floating_point() else t for name, t in state.items()},
    "the authors' half-precision wrapper": lambda state: {f"module.1.{name}": tensor for name, tensor in state.items()},
    "NumPy scalars": lambda state: {"state_dict": state, "perf": np.float64(0.7), "best": [np.float32(1), np.int64(2)]},
}
FORMATS = ("zip", "old", "safetensors")


def save(content: dict, path: Path, form: str = "zip") -> Path:
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        tensors = content.get("state_dict", content)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.fixture(scope="module")
def bundled() -> checkpoints.LoadedModel:
    """Without its smoothing, which is in its metadata: files in the published layouts say nothing about that."""
    model = checkpoints.load()
    model.network.smoothing = 0.0
    return model


@pytest.fixture(scope="module")
def state(bundled: checkpoints.LoadedModel) -> dict[str, torch.Tensor]:
    return bundled.network.state_dict()


def outputs(network: HigherHRNet) -> list[torch.Tensor]:
    with torch.inference_mode():
        return network(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_gives_identical_maps(layout: str, form: str, bundled, state, tmp_path: Path):
    path = save(LAYOUTS[layout](state), tmp_path / "weights.pth.tar", form)
    loaded = checkpoints.load(NAME, path)
    for ours, theirs in zip(outputs(loaded.network), outputs(bundled.network), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:numpy.core")
def test_a_scalar_pickled_by_an_older_numpy_is_read(state, tmp_path: Path):
    """Its class had another name then."""
    path = save({"state_dict": state, "perf": np.float64(0.7)}, tmp_path / "weights.pth", "old")
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\n" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    checkpoints.load(NAME, path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_cut_off_file_is_refused(state, tmp_path: Path, suffix: str, share: float):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"damaged"):
        checkpoints.load(NAME, path)


class Code:
    """An object whose unpickling makes a file: what a harmful checkpoint does, but for the harm."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(state, tmp_path: Path, kind: str):
    path, proof = tmp_path / "weights.pth", tmp_path / "code-was-run"
    if kind == "torch":
        torch.save({"state_dict": state, "hook": Code(proof)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Code(proof)}))
    with pytest.raises(CheckpointError, match="more than weights"):
        checkpoints.load(NAME, path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Code(proof)))
    assert proof.exists(), "the code would have done nothing, so this test shows nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 8}, "its width: 8 instead of 16"),
        (
            {"joints": 14},
            "heatmaps for 14 joints instead of 17.*; for joints of your own, describe them in .*weights.json",
        ),
        ({"modules": (1, 2, 3)}, r"its modules: \(1, 2, 3\) instead of \(1, 2, 2\)"),
        ({"blocks": 3, "deconv_blocks": 3}, r"its blocks a branch: 3 instead of \d .and 1 more"),
    ],
)
def test_weights_of_another_architecture_are_refused(change: dict, message: str, bundled, tmp_path: Path):
    other = HigherHRNet(replace(bundled.network.config, **change))
    path = save(other.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"does not hold the weights of '{NAME}': .*{message}") as raised:
        checkpoints.load(NAME, path)
    assert "Choose the model" in str(raised.value)


@pytest.mark.parametrize("what", ["missing", "more", "shape", "no HigherHRNet", "tags"])
def test_a_single_tensor_that_does_not_fit_is_named(what: str, state, tmp_path: Path):
    state = dict(state)
    if what == "missing":
        message = "'layer1.0.conv1.weight' is missing"
        del state["layer1.0.conv1.weight"]
    elif what == "more":
        message = "'extra.weight' is not part of it"
        state["extra.weight"] = torch.zeros(2)
    elif what == "shape":
        message = r"'conv1.weight' has the shape \(64, 3, 5, 5\) instead of \(64, 3, 3, 3\)"
        state["conv1.weight"] = torch.zeros(64, 3, 5, 5)
    elif what == "tags":
        message = "leaves 3 for tags, neither one per joint nor one for all"
        state["final_layers.0.weight"] = torch.zeros(20, 16, 1, 1)
    else:
        message = "not hold the weights of a HigherHRNet: it has no 'transition1'"
        state = {"fc.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(NAME, save(state, tmp_path / "weights.pth"))


@pytest.mark.parametrize("shared_tag", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_the_tag_layout_and_a_centre_map_are_found_out(shared_tag: bool, center: bool, bundled, tmp_path: Path):
    """The centre is dropped from the result, but the network still feeds on it."""
    config = replace(bundled.network.config, shared_tag=shared_tag, center=center)
    other = HigherHRNet(config).eval()
    path = save(other.state_dict(), tmp_path / "weights.pth")
    assert torch.load(path)["final_layers.1.weight"].shape[0] == 17 + center
    loaded = checkpoints.load(NAME, path)
    assert loaded.network.config == config
    coarse, fine = outputs(loaded.network)
    assert coarse.shape[1] == 17 + (1 if shared_tag else 17)
    assert fine.shape[1] == 17
    if center:
        raw = other
        raw.config = replace(config, center=False)  # the same layers, without the dropping
        raw_coarse, raw_fine = outputs(raw)
        torch.testing.assert_close(fine, raw_fine[:, :17])
        torch.testing.assert_close(coarse[:, :17], raw_coarse[:, :17])
        torch.testing.assert_close(coarse[:, 17:], raw_coarse[:, 18:][:, : 1 if shared_tag else 17])
    image = np.full((64, 64, 3), 128, np.uint8)
    predictor = Predictor(loaded.network, COCO.flip, 64, flip_test=True, device="cpu")
    seen = predictor.predict([predictor.prepare(image)])
    assert seen.tags.shape == (1, 1 if shared_tag else 17, 32, 32, 2)
    people = group(seen.heatmaps[0].numpy(), seen.tags[0].numpy(), COCO.grouping_order, shape=(64, 64))
    assert people.joints.shape[1:] == (17, 3)


THREE = {
    "name": "robot-3",
    "joints": ["head", "left_hand", "right_hand"],
    "flip": [["left_hand", "right_hand"]],
    "limbs": [["head", "left_hand"], ["head", "right_hand"]],
}


@pytest.mark.parametrize("model", [NAME, checkpoints.CUSTOM])
@pytest.mark.parametrize("file", ["mine.pth", "mine.pth.tar", "mine.safetensors"])
def test_joints_of_ones_own_come_from_a_json_file_beside_the_checkpoint(model: str, file: str, bundled, tmp_path: Path):
    other = HigherHRNet(replace(bundled.network.config, joints=3))
    path = save(other.state_dict(), tmp_path / file, "safetensors" if file.endswith("safetensors") else "zip")
    with pytest.raises(CheckpointError, match=r"3 joints instead of 17.*mine\.json"):
        checkpoints.load(model, path)
    (tmp_path / "mine.json").write_text(json.dumps(THREE))
    loaded = checkpoints.load(model, path)
    assert loaded.entry.joint_set.joints == ("head", "left_hand", "right_hand")
    assert loaded.entry.joint_set.flip == (0, 2, 1)
    assert outputs(loaded.network)[1].shape[1] == 3
    assert checkpoints.find_model(model).joint_set == COCO, "the registry itself stays as it is"
    (tmp_path / "mine.json").write_text(json.dumps({**THREE, "flip": [["left_hand", "tail"]]}))
    with pytest.raises(ValueError, match=r"mine\.json: there is no joint 'tail'"):
        checkpoints.load(model, path)


def test_the_bundled_file_can_be_given_as_a_checkpoint(bundled):
    """The JSON file beside it describes the model, not its joints."""
    entry = checkpoints.MODELS[checkpoints.DEFAULT_MODEL]
    loaded = checkpoints.load(checkpoints.CUSTOM, entry.asset)
    assert loaded.entry.joint_set == COCO
    with pytest.raises(CheckpointError, match="there is nothing to convert"):
        checkpoints.conversion_target(entry.asset)


@pytest.mark.parametrize("more", [{"shared_tag": True}, {"head_width": 10}])
def test_a_checkpoint_of_any_size_is_loaded_as_custom(more: dict, tmp_path: Path):
    config = NetworkConfig(width=6, stem_blocks=1, modules=(1, 3, 2), blocks=1, deconv_blocks=2, **more)
    path = save(HigherHRNet(config).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "weights.json").write_text('{"epochs": 3}')  # of something else
    assert checkpoints.load(checkpoints.CUSTOM, path).network.config == config
    with pytest.raises(CheckpointError, match="give its path as 'checkpoint'"):
        checkpoints.load(checkpoints.CUSTOM)


@pytest.mark.parametrize(
    ("file", "meta"),
    [
        ("higher_hrnet32_coco_512x512_udp.pth", {}),
        ("hrnet-UDP.pth", {}),
        ("weights.pth", {"exp_name": "higher_hrnet32_coco_512x512_udp.py"}),
        ("weights.pth", {"config": "data_cfg = dict(use_udp=True, scale_aware_sigma=False)"}),
        ("weights.pth", {"cfg": {"use_udp": True}}),
        ("weights.pth", {"config": "codec = dict(type='UDPHeatmap')"}),
    ],
)
def test_weights_trained_with_udp_are_refused_where_they_say_so(file: str, meta: dict, state, tmp_path: Path):
    path = save({"meta": meta, "state_dict": openmmlab(state)}, tmp_path / file)
    with pytest.raises(CheckpointError, match=r"was trained with UDP.*would be shifted"):
        checkpoints.load(NAME, path)


@pytest.mark.parametrize(
    "meta", [{"config": "use_udp=False"}, {"cfg": {"use_udp": False}}, {"author": "Budpost"}, None]
)
def test_other_weights_are_not_taken_for_udp(meta: object, state, tmp_path: Path):
    checkpoints.load(NAME, save({"meta": meta, "state_dict": state}, tmp_path / "cloudpose.pth"))


@pytest.mark.parametrize("half", [False, True])
def test_a_converted_checkpoint_is_small_and_preferred_from_then_on(half: bool, bundled, state, tmp_path: Path):
    content = LAYOUTS["with optimiser"](LAYOUTS["SWAHR"](state))
    content["optimizer"]["momentum"] = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in state.values()]
    path = save(content, tmp_path / "mine.pth.tar")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "mine.json").write_text(json.dumps(dataclasses.asdict(COCO)))

    target = checkpoints.convert(path, half=half)

    assert target == tmp_path / "mine.safetensors"
    assert target.stat().st_size < path.stat().st_size * (0.3 if half else 0.6)
    assert weights.find(bundled.entry, path).path == target
    loaded = checkpoints.load(NAME, path)
    own = hashlib.sha256(target.read_bytes()).hexdigest()
    assert loaded.sha256 == (own if half else sha256), "the same values are known by the same hash"
    for ours, theirs in zip(outputs(loaded.network), outputs(bundled.network), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 if half else 0)
    assert checkpoints.load(NAME, target).sha256 == own

    save(state, path)  # another file now: what was made of the old one is not used for it
    assert weights.find(bundled.entry, path).path == path


def test_converting_keeps_the_joints_beside_the_file_and_refuses_what_cannot_be_right(bundled, state, tmp_path: Path):
    (tmp_path / "there").mkdir()
    path = save(HigherHRNet(replace(bundled.network.config, joints=3)).state_dict(), tmp_path / "mine.pth")
    (tmp_path / "mine.json").write_text(json.dumps(THREE))
    target = checkpoints.convert(path, tmp_path / "there" / "robot.safetensors")
    assert checkpoints.load(checkpoints.CUSTOM, target).entry.joint_set.name == "robot-3"
    for arguments, message in (
        ((path, tmp_path / "weights.pth"), r"must end with \.safetensors"),
        ((tmp_path / "missing.pth",), "no checkpoint"),
        ((path, tmp_path / "nowhere" / "x.safetensors"), "cannot be written"),
        ((target,), "is a safetensors file already"),
        ((save({"fc": torch.zeros(2)}, tmp_path / "fc.pth"),), "not hold the weights of a HigherHRNet"),
        ((save(state, tmp_path / "a_udp.pth"),), "UDP"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoints.convert(*arguments)


def test_the_command_line_converts_and_says_what_is_wrong(state, tmp_path: Path, capsys, monkeypatch):
    path = save(state, tmp_path / "mine.pth")
    target = tmp_path / "small.safetensors"
    monkeypatch.setattr(sys, "argv", ["", "convert", str(path), str(target), "--half"])
    checkpoints.main()
    sizes = [f"{file.stat().st_size / 1e6:.1f} MB" for file in (target, path)]
    assert capsys.readouterr().out == f"{target}: {sizes[0]} of {sizes[1]}\n"
    assert target.stat().st_size < 0.55 * path.stat().st_size
    checkpoints.load(NAME, target)
    monkeypatch.setattr(sys, "argv", ["", "convert", str(tmp_path / "none.pth"), str(target)])
    with pytest.raises(SystemExit, match=r"There is no checkpoint .*none\.pth"):
        checkpoints.main()


@pytest.mark.parametrize("content", [{"weights": 3}, [1, 2], "text"])
def test_a_file_without_weights_is_refused(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="no weights"):
        checkpoints.load(NAME, tmp_path / "weights.pth")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*missing\.pth"):
        checkpoints.load(NAME, tmp_path / "missing.pth")


def test_an_openmmlab_file_must_have_the_hash_in_its_name(state, tmp_path: Path):
    path = tmp_path / "plain.pth"
    torch.save({"state_dict": openmmlab(state)}, path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right = path.rename(tmp_path / f"higher_hrnet32_coco_512x512-{digits}_20200713.pth")
    assert checkpoints.load(NAME, right).sha256.startswith(digits)
    wrong = right.rename(tmp_path / "higher_hrnet32_coco_512x512-8ae85183_20200713.pth")
    with pytest.raises(CheckpointError, match="not the file that was published"):
        checkpoints.load(NAME, wrong)


def test_changed_bundled_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entry = checkpoints.find_model(NAME)
    data = bytearray((checkpoints.ASSETS / entry.source).read_bytes())
    data[-1] ^= 1
    (tmp_path / entry.source).write_bytes(data)
    monkeypatch.setattr(checkpoints, "ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="not the file that was published"):
        checkpoints.load(NAME)


def test_the_registry_and_the_manifest_of_the_model_zoo_name_the_same_models():
    listed = json.loads((checkpoints.ASSETS.parent / "manifest.json").read_text())["models"]
    assert [model["base_name"] for model in listed] == [
        name for name in checkpoints.MODELS if name != checkpoints.CUSTOM
    ]
    for model in listed:
        entry = checkpoints.MODELS[model["base_name"]]
        assert model["base_filename"] == f"{entry.name}.safetensors"
        assert model["license"] == entry.license or entry.bundled


def test_every_published_model_says_what_is_known_of_it():
    with pytest.raises(ValueError, match=r"The models are: .*swahr-w48-640-coco"):
        checkpoints.load("w99")
    for entry in checkpoints.MODELS.values():
        if not entry.bundled and entry.name != checkpoints.CUSTOM:
            assert entry.source.startswith("https://")
            assert entry.file.endswith((".pth", ".pth.tar"))
            assert entry.reported_ap
            assert entry.network is not None
            assert entry.network.joints == len(entry.joint_set)
            assert entry.source.endswith(f"-{entry.sha256}_{entry.source[-12:-4]}.pth") or not entry.sha256


def test_bundled_weights_are_small_enough_to_live_in_the_repository():
    assert sum(path.stat().st_size for path in checkpoints.ASSETS.glob("*.safetensors")) <= 20e6
