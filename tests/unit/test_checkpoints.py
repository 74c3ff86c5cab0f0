"""Weights in every published layout, and files that must be refused."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference import checkpoints
from inference.checkpoints import CheckpointError
from inference.network import HigherHRNet, NetworkConfig

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
}


@pytest.fixture(scope="module")
def bundled() -> checkpoints.LoadedModel:
    return checkpoints.load()


@pytest.fixture(scope="module")
def state(bundled: checkpoints.LoadedModel) -> dict[str, torch.Tensor]:
    return bundled.network.state_dict()


def outputs(network: HigherHRNet) -> list[torch.Tensor]:
    with torch.inference_mode():
        return network(torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_gives_identical_maps(layout: str, bundled, state, tmp_path: Path):
    path = tmp_path / "weights.pth.tar"
    torch.save(LAYOUTS[layout](state), path)
    loaded = checkpoints.load(NAME, path)
    for ours, theirs in zip(outputs(loaded.network), outputs(bundled.network), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_give_identical_maps(bundled, state, tmp_path: Path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "weights.safetensors")
    loaded = checkpoints.load(NAME, tmp_path / "weights.safetensors")
    for ours, theirs in zip(outputs(loaded.network), outputs(bundled.network), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


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


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    path = tmp_path / "weights.pth"
    small = NetworkConfig(width=8, stem_blocks=1, modules=(1, 1, 1), blocks=1, deconv_blocks=1)
    torch.save(HigherHRNet(small).state_dict(), path)
    with pytest.raises(CheckpointError, match=f"does not hold the weights of '{NAME}'.*Choose the model"):
        checkpoints.load(NAME, path)


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


def test_published_models_without_a_file_say_where_to_get_it():
    for name, entry in checkpoints.MODELS.items():
        if not entry.bundled:
            with pytest.raises(CheckpointError, match=r"Fetch them from https://"):
                checkpoints.load(name)
    with pytest.raises(ValueError, match=r"The models are: .*swahr-w48-640-coco"):
        checkpoints.load("w99")


def test_bundled_weights_are_small_enough_to_live_in_the_repository():
    assert sum(path.stat().st_size for path in checkpoints.ASSETS.glob("*.safetensors")) <= 20e6
