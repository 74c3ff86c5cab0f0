"""Weights that are fetched on first use: verified, kept as safetensors, and held to what they were then."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import fiftyone as fo
import pytest
import torch

from inference import checkpoints, fetching, weights
from inference.checkpoints import CheckpointError, ModelEntry
from inference.joints import COCO
from inference.network import HigherHRNet, NetworkConfig

if TYPE_CHECKING:
    from .conftest import Server

TINY = NetworkConfig(width=2, stem_blocks=1, modules=(1, 1, 1), blocks=1, deconv_blocks=1)
FILE = "tiny.pth.tar"
REPOSITORY = Path(__file__).resolve().parents[2]


def published(seed: int = 0, config: NetworkConfig = TINY) -> bytes:
    """A file as the authors publish it: weights, and an optimiser that nobody needs."""
    torch.manual_seed(seed)
    state = HigherHRNet(config).state_dict()
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "optimizer": {"state": torch.zeros(30_000)}}, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where weights are kept; not there yet."""
    monkeypatch.setattr(fo.config, "model_zoo_dir", str(tmp_path / "zoo"))
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    monkeypatch.delenv(weights.MIRRORS, raising=False)
    return tmp_path / "zoo" / "pose-heatmaps"


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    return make_server(published())


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelEntry]:
    """Adds the model `tiny` to the registry."""

    def add(source: str, sha256: str = "") -> ModelEntry:
        entry = ModelEntry("tiny", TINY, COCO, 64, "MIT", source, FILE, sha256)
        monkeypatch.setitem(checkpoints.MODELS, "tiny", entry)
        return entry

    return add


@pytest.mark.parametrize("digits", [64, 8, 0])
def test_weights_are_fetched_on_first_use_and_kept_small(
    digits: int, server: Server, add: Callable[..., ModelEntry], folder: Path
) -> None:
    sha256 = hashlib.sha256(server.data).hexdigest()
    entry = add(server.address, sha256[:digits])
    assert weights.find(entry) is None
    assert weights.fetch_size(entry) == pytest.approx(4 * sum(p.numel() for p in HigherHRNet(TINY).parameters()))

    loaded = checkpoints.load("tiny")

    assert loaded.sha256 == sha256, "what it is known by is the published file"
    expected = torch.load(io.BytesIO(server.data))["state_dict"]
    for name, tensor in loaded.network.state_dict().items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == [
        "tiny.safetensors",
        "tiny.safetensors.json",
    ]
    kept = (folder / "tiny.safetensors").stat()
    assert kept.st_size < len(server.data)
    assert kept.st_mode == (folder / "tiny.safetensors.json").stat().st_mode, "who shares the zoo can read it"
    assert weights.fetch_size(entry) == 0
    assert checkpoints.load("tiny").sha256 == sha256
    assert len(server.requests) == 1, "the second use fetches nothing"


def test_kept_weights_that_changed_are_refused(server: Server, add: Callable[..., ModelEntry], folder: Path) -> None:
    add(server.address)
    checkpoints.load("tiny")
    path = folder / "tiny.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors has changed since its first use.* Delete it"):
        checkpoints.load("tiny")
    path.unlink()
    checkpoints.load("tiny")
    assert len(server.requests) == 2


def test_a_source_that_gives_another_file_later_is_refused(
    server: Server, add: Callable[..., ModelEntry], folder: Path
) -> None:
    add(server.address)
    checkpoints.load("tiny")
    (folder / "tiny.safetensors").unlink()
    server.data = published(seed=1)
    with pytest.raises(CheckpointError, match=r"another one than at first use.* delete .*tiny\.safetensors\.json"):
        checkpoints.load("tiny")
    assert not (folder / FILE).exists()
    (folder / "tiny.safetensors.json").unlink()
    assert checkpoints.load("tiny").sha256 == hashlib.sha256(server.data).hexdigest()


@pytest.mark.parametrize(
    ("data", "sha256", "message"),
    [
        (published(), "0" * 8, "another file than the one that was published"),
        (b"<html>Quota exceeded</html>", "", "a web page instead of the file"),
        (published()[:-5000], "", "cannot be read as a checkpoint"),
        (published(config=NetworkConfig(width=4, stem_blocks=1, modules=(1, 1, 1), blocks=1)), "", "width: 4 instead"),
    ],
    ids=["hash", "page", "cut off", "another network"],
)
def test_what_is_not_the_model_is_not_kept(
    data: bytes,
    sha256: str,
    message: str,
    make_server: Callable[..., Server],
    add: Callable[..., ModelEntry],
    folder: Path,
) -> None:
    add(make_server(data).address, sha256)
    with pytest.raises(CheckpointError, match=rf"(?s)'tiny' could not be fetched\. .*{message}"):
        checkpoints.load("tiny")
    assert [path.name for path in folder.iterdir()] == ["tiny.safetensors.lock"]


def test_without_a_network_the_message_says_which_file_goes_where(
    add: Callable[..., ModelEntry], folder: Path, server: Server
) -> None:
    add("http://127.0.0.1:9/tiny")
    with pytest.raises(CheckpointError) as raised:
        checkpoints.load("tiny")
    assert f"put the file {FILE} from http://127.0.0.1:9/tiny into {folder}" in str(raised.value)
    (folder / FILE).write_bytes(server.data)
    assert checkpoints.load("tiny").sha256 == hashlib.sha256(server.data).hexdigest()
    assert (folder / FILE).is_file(), "what a person put there stays"
    (folder / FILE).write_bytes(b"damaged later")
    checkpoints.load("tiny")
    assert server.requests == []


@pytest.mark.parametrize("name", ["swahr-w32-512-coco", "swahr-w48-640-coco"])
def test_what_only_a_person_can_fetch_is_said_with_address_and_place(name: str, folder: Path) -> None:
    entry = checkpoints.find_model(name)
    assert entry.source.startswith("https://drive.google.com/drive/folders/")
    for ask in (checkpoints.load, lambda name: weights.find(checkpoints.find_model(name))):
        with pytest.raises(CheckpointError) as raised:
            ask(name)
        assert entry.source in str(raised.value)
        assert f"save it as {folder / entry.file}" in str(raised.value)
    assert not folder.exists()


@pytest.mark.parametrize("way", ["environment", "configuration"])
def test_mirrors_come_first_and_the_source_after_them(
    way: str,
    server: Server,
    make_server: Callable[..., Server],
    add: Callable[..., ModelEntry],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, missing = make_server(server.data), make_server(b"", ["404"])
    add(source.address)
    mirrors = [missing.mirror, server.mirror]
    if way == "environment":
        monkeypatch.setenv(weights.MIRRORS, " ".join(mirrors))
    else:
        monkeypatch.setattr(fo.app_config, "plugins", {weights.PLUGIN: {"mirrors": mirrors}})
    checkpoints.load("tiny")
    assert [len(made.requests) for made in (missing, server, source)] == [1, 1, 0]


def test_a_mirror_can_have_what_only_a_person_could_fetch(
    server: Server, add: Callable[..., ModelEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(f"{checkpoints.FOLDER}some-folder")
    monkeypatch.setenv(weights.MIRRORS, server.mirror)
    assert checkpoints.load("tiny").sha256 == hashlib.sha256(server.data).hexdigest()


def test_the_configuration_file_of_the_app_names_mirrors(tmp_path: Path) -> None:
    """FiftyOne reads its App's configuration into the place where mirrors are looked for."""
    config = tmp_path / "app_config.json"
    config.write_text(json.dumps({"plugins": {weights.PLUGIN: {"mirrors": ["http://127.0.0.1:9/somewhere"]}}}))
    done = subprocess.run(
        [sys.executable, "-m", "inference.checkpoints", "fetch", "higherhrnet-w32-512-coco"],
        env={**os.environ, "FIFTYONE_APP_CONFIG_PATH": str(config), "FIFTYONE_MODEL_ZOO_DIR": str(tmp_path / "zoo")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "http://127.0.0.1:9/somewhere/higher_hrnet32_coco_512x512-8ae85183_20200713.pth: it cannot" in done.stderr


def test_two_processes_that_ask_at_once_fetch_once(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A published model of its real size, from a mirror, after two breaks."""
    name = "higherhrnet-w32-512-coco-official"
    server = make_server(published(config=checkpoints.MODELS[name].network), ["break", "break", "whole"])
    environment = {
        **os.environ,
        weights.MIRRORS: server.mirror,
        "FIFTYONE_MODEL_ZOO_DIR": str(tmp_path / "zoo"),
    }
    command = [sys.executable, "-m", "inference.checkpoints", "fetch", name]
    running = [
        subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=200)[0].strip() for process in running]
    path = tmp_path / "zoo" / "pose-heatmaps" / f"{name}.safetensors"
    assert answers == [str(path)] * 2
    assert path.stat().st_size == pytest.approx(4 * 28.6e6, rel=0.01)
    assert len(server.requests) == 3
    assert server.requests[0] == 0 < server.requests[1] < server.requests[2]


def test_a_folder_that_cannot_be_written_is_a_sentence(
    add: Callable[..., ModelEntry], folder: Path, server: Server
) -> None:
    add(server.address)
    folder.parent.mkdir()
    folder.write_text("in the way")
    with pytest.raises(CheckpointError, match=r"'tiny' cannot be kept in .*pose-heatmaps"):
        checkpoints.load("tiny")


def test_the_model_zoo_gets_its_file(server: Server, add: Callable[..., ModelEntry], tmp_path: Path) -> None:
    entry = add(server.address)
    weights.copy(entry, tmp_path / "zoo" / "pose-heatmaps" / "tiny.safetensors")
    weights.copy(entry, tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == weights.find(entry).path.read_bytes()
