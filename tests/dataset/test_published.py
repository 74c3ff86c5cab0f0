"""Models by name and checkpoints by path, through the operators, the model zoo and the benchmarks."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import fiftyone.zoo as foz
import numpy as np
import pytest
import torch

from evaluation import skeletons, sources
from inference import checkpoints, runs, weights
from inference.network import HigherHRNet, NetworkConfig

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "higherhrnet-w32-512-coco-official"
TINY = NetworkConfig(width=4, stem_blocks=1, modules=(1, 1, 1), blocks=1, deconv_blocks=1)
URI = "@pose-heatmaps/higherhrnet/"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with a published file, of random weights, on the web."""
    folder = tmp_path_factory.mktemp("mirror")
    torch.manual_seed(0)
    entry = checkpoints.MODELS[NAME]
    torch.save({"state_dict": HigherHRNet(entry.network).state_dict()}, folder / entry.file)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def zoo(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model zoo of its own, with a copy of the plugin that takes up no room."""
    folder = tmp_path / "zoo" / "pose-heatmaps"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "__init__.py", "inference", "assets"):
        (folder / name).symlink_to(REPOSITORY / name)
    monkeypatch.setattr(fo.config, "model_zoo_dir", str(folder.parent))
    monkeypatch.setenv(weights.MIRRORS, mirror)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of somebody's own."""
    torch.manual_seed(0)
    network = HigherHRNet(TINY)
    torch.save({"state_dict": network.state_dict(), "optimizer": torch.zeros(100_000)}, tmp_path / "mine.pth.tar")
    return tmp_path / "mine.pth.tar"


def operator(name: str) -> foo.Operator:
    return foo.get_operator(URI + name)


def form(dataset: fo.Dataset, name: str, **params: object) -> str:
    """All that a form shows, as text."""
    context = foo.ExecutionContext({"dataset_name": dataset.name, "params": params}, operator_uri=URI + name)
    return json.dumps(operator(name).resolve_input(context).to_json())


def test_a_model_is_fetched_by_the_zoo_and_then_there_for_the_operator(
    zoo: Path, photos: Path, dataset: Callable[..., fo.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = dataset([photos / "astronaut.jpg"])
    text = form(samples, "generate_heatmaps", model=NAME, input_size=64)
    assert "Before that, about 115 MB of weights will be fetched." in text
    assert not list(zoo.glob("*.safetensors")), "a form fetches nothing"
    assert not foz.is_zoo_model_downloaded(NAME)

    model = foz.load_zoo_model(NAME, input_size=64, storage="memory")
    samples.apply_model(model, "zoo")

    assert foz.is_zoo_model_downloaded(NAME)
    assert samples.count("zoo_left_wrist") == 1
    monkeypatch.setenv(weights.MIRRORS, "http://127.0.0.1:9/gone")
    assert "will be fetched" not in form(samples, "generate_heatmaps", model=NAME, input_size=64)
    operator("generate_heatmaps")(samples, "run", model=NAME, input_size=64, batch_size=1)
    assert samples.values("run_status") == ["done"]
    by_run = cv2.imread(samples.first().run_left_wrist.map_path, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(by_run, samples.first().zoo_left_wrist.map)
    foz.delete_zoo_model(NAME)
    assert not foz.is_zoo_model_downloaded(NAME)


def test_a_worker_fetches_what_it_needs(zoo: Path, photos: Path, dataset: Callable[..., fo.Dataset]) -> None:
    from fiftyone.operators.delegated import DelegatedOperationService

    samples = dataset([photos / "astronaut.jpg"])
    generate = operator("generate_heatmaps")
    generate(samples, model=NAME, input_size=64, maps=("max",), delegate=True)
    assert not list(zoo.glob("*.safetensors")), "queueing fetches nothing"
    DelegatedOperationService().execute_queued_operations(operator=generate.uri)
    samples.reload()
    assert samples.values("pose_status") == ["done"]
    assert (zoo / f"{NAME}.safetensors").is_file()


@pytest.mark.parametrize("name", ["swahr-w32-512-coco", "custom"])
def test_the_form_says_where_a_file_is_needed(
    name: str, zoo: Path, photos: Path, dataset: Callable[..., fo.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(weights.MIRRORS)
    text = form(dataset([photos / "astronaut.jpg"]), "generate_heatmaps", model=name)
    assert ("download the file of this model, and save it as" if name.startswith("swahr") else "give its path") in text


def test_a_checkpoint_of_ones_own_is_used_converted_and_used_again(
    tiny: Path, photos: Path, dataset: Callable[..., fo.Dataset], tmp_path: Path
) -> None:
    samples = dataset([photos / "astronaut.jpg", photos / "camera.png"])
    generate, convert = operator("generate_heatmaps"), operator("convert_checkpoint")
    settings = {"model": "custom", "checkpoint": str(tiny), "input_size": 64, "maps": ("max", "left_wrist")}
    generate(samples[:1], **settings)

    assert "A HigherHRNet of width 4 with 17 joints and a tag each" in form(
        samples, "convert_checkpoint", checkpoint={"absolute_path": str(tiny)}
    )
    result = foo.execute_operator(
        convert.uri, {"dataset": samples}, params={"checkpoint": {"absolute_path": str(tiny)}}
    )
    assert str(tmp_path / "mine.safetensors") in result.result["summary"]
    assert weights.find(checkpoints.find_model("custom"), tiny).path == tmp_path / "mine.safetensors"

    done = generate(samples, **settings)  # the same weights still, so the run goes on
    assert (done.done, done.skipped) == (1, 1)
    convert(str(tiny), half=True)
    with pytest.raises(ValueError, match="holds the maps of a run with other settings: sha256"):
        generate(samples, **settings)


def test_a_converted_file_becomes_a_models_own_weights(
    zoo: Path, dataset: Callable[..., fo.Dataset], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(weights.MIRRORS)
    file = tmp_path / "from_the_authors.pth"
    torch.manual_seed(1)
    network = HigherHRNet(NetworkConfig()).eval()
    torch.save(network.state_dict(), file)
    convert = operator("convert_checkpoint")
    with pytest.raises(ValueError, match="swahr-w32-512-coco': its width: 4 instead of 32"):
        convert(str(tiny), model="swahr-w32-512-coco")
    with pytest.raises(ValueError, match="'custom' has no published file"):
        convert(str(tiny), model="custom")
    assert convert(str(file), model="swahr-w32-512-coco") == str(zoo / "swahr-w32-512-coco.safetensors")
    loaded = checkpoints.load("swahr-w32-512-coco").network
    torch.testing.assert_close(loaded.conv1.weight, network.conv1.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="not the file that was published"):
        convert(str(file), model="higherhrnet-w32-512-coco")


def test_joints_of_ones_own_become_fields_and_a_skeleton(
    tmp_path: Path, photos: Path, dataset: Callable[..., fo.Dataset]
) -> None:
    joints = ["port_hand", "starboard_hand", "hat"]
    description = {"name": "three", "joints": joints, "flip": [joints[:2]], "limbs": [["hat", 0]]}
    description["sigmas"] = [0.1, 0.1, 0.03]
    (tmp_path / "own.json").write_text(json.dumps(description))
    torch.save(HigherHRNet(NetworkConfig(**{**TINY.to_dict(), "joints": 3})).state_dict(), tmp_path / "own.pth")
    samples = dataset([photos / "astronaut.jpg"])
    settings = {"model": "custom", "checkpoint": str(tmp_path / "own.pth"), "input_size": 64}
    operator("generate_heatmaps")(samples, flip=True, scales=(0.5, 1), **settings)
    assert {"pose_port_hand", "pose_starboard_hand", "pose_hat", "pose_max"} <= set(samples.get_field_schema())
    assert samples.skeletons["pose_keypoints"].labels == joints
    assert samples.skeletons["pose_keypoints"].edges == [[2, 0]]
    samples.set_values("people", [fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5)] * 3)])])
    pairing = sources.pair_joints(samples, "pose", "people")
    compared = sources.Sources(samples, "pose", "people", pairing, None)
    known = dict(zip(pairing.names, compared.sigmas, strict=True))
    assert known["hat"] == 0.03
    assert known["port_hand"] == 0.1
    assert skeletons.twins(joints, runs.read_record(samples, "pose")).tolist() == [1, 0, 2]


@pytest.mark.parametrize("readers", [2, 5])
def test_maps_do_not_depend_on_the_number_of_readers(
    readers: int, photos: Path, dataset: Callable[..., fo.Dataset], tiny: Path
) -> None:
    one, several = dataset(photos), dataset(photos)
    settings = {"model": "custom", "checkpoint": str(tiny), "input_size": 64, "batch_size": 2}
    generate = operator("generate_heatmaps")
    generate(one, num_readers=1, **settings)
    generate(several, num_readers=readers, **settings)
    for field in ("pose_max", "pose_left_wrist"):
        for path, other in zip(one.values(f"{field}.map_path"), several.values(f"{field}.map_path"), strict=True):
            np.testing.assert_array_equal(cv2.imread(path, -1), cv2.imread(other, -1))
    assert one.values("pose_confidence") == several.values("pose_confidence")


@pytest.mark.parametrize(("model", "common"), [("custom", 17), ("higherhrnet-w32-512-aic", 12)])
def test_accuracy_is_measured_for_any_joint_set(model: str, common: int, tmp_path: Path, photos: Path) -> None:
    """Where the annotations have other joints, those that both name are compared."""
    config = TINY if model == "custom" else checkpoints.MODELS[model].network
    torch.save(HigherHRNet(config).state_dict(), tmp_path / "weights.pth")
    names = list(checkpoints.COCO.joints)
    labelled = [value for k in range(17) for value in (100 + 10 * k, 50 + 10 * k, 2)]
    person = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [50, 20, 400, 400], "area": 160_000}
    annotations = {
        "images": [{"id": 1, "file_name": "astronaut.jpg", "width": 512, "height": 512}],
        "annotations": [{**person, "keypoints": labelled, "num_keypoints": 17}],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": []}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(annotations))
    command = [sys.executable, "-m", "benchmarks.accuracy", "--images", str(photos), "--input-size", "64", "--json"]
    command += [
        "--annotations",
        str(tmp_path / "coco.json"),
        "--model",
        model,
        "--checkpoint",
        tmp_path / "weights.pth",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["images"] == 1
    assert figures["joints"] == common
    assert 0 <= figures["ap"] <= 1
