"""Files that are no checkpoint any more, or never were: each is refused with a sentence, whatever its bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inference import checkpoints
from inference.checkpoints import CheckpointError, ModelEntry
from inference.joints import COCO
from inference.network import HigherHRNet, NetworkConfig

TINY = NetworkConfig(width=2, stem_blocks=1, modules=(1, 1, 1), blocks=1, deconv_blocks=1)
FORMATS = ("zip.pth", "legacy.pth", "plain.safetensors")


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        checkpoints.MODELS, "tiny", ModelEntry("tiny", TINY, COCO, 64, "MIT", "https://example.org/tiny")
    )


def save(folder: Path, file: str) -> Path:
    """A good checkpoint in one of the formats."""
    state = HigherHRNet(TINY).state_dict()
    if file.endswith("safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file, _use_new_zipfile_serialization=file.startswith("zip"))
    assert checkpoints.load("tiny", folder / file).entry.name == "tiny"
    return folder / file


@pytest.mark.parametrize("file", FORMATS)
def test_a_file_that_ends_anywhere_is_refused(file: str, tmp_path: Path) -> None:
    path = save(tmp_path, file)
    data = path.read_bytes()
    for length in (0, 1, 2, 3, 8, 20, 100, 1000, len(data) // 3, len(data) - 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"damaged"):
            checkpoints.load("tiny", path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("file", FORMATS)
def test_a_file_with_other_bytes_at_its_beginning_is_refused(file: str, tmp_path: Path) -> None:
    path = save(tmp_path, file)
    data = path.read_bytes()
    dice = random.Random(0)
    for _ in range(15):
        path.write_bytes(dice.randbytes(32) + data[32:])
        with pytest.raises(CheckpointError, match=rf"{file} (holds more than weights|cannot be read)"):
            checkpoints.load("tiny", path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.pth.tar", "weights"])
@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_page_or_pointer_downloaded_in_place_of_the_weights_is_refused(
    content: bytes, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged"):
        checkpoints.load("tiny", tmp_path / name)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no checkpoint .*; check the path"):
        checkpoints.load("tiny", tmp_path)
