"""Batches that do not fit into the device's memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from inference import pipeline
from inference.batching import fitting_batch
from inference.network import HigherHRNet

ROOM = 2 * 64 * 64  # pixels that fit into the device of these tests at once


@pytest.fixture
def batches() -> Iterator[list[int]]:
    """The sizes of the batches that the network is asked to take; those with too many pixels it does not take."""
    sizes: list[int] = []

    def refuse(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, HigherHRNet):
            count, _, height, width = inputs[0].shape
            sizes.append(count)
            if count * height * width > ROOM:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it")

    hook = register_module_forward_pre_hook(refuse)
    yield sizes
    hook.remove()


def write(folder: Path, name: str, width: int) -> Path:
    path = folder / name
    cv2.imwrite(str(path), np.full((64, width, 3), 80, np.uint8))
    return path


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_are_as_small(
    dataset: Callable, tmp_path: Path, batches: list[int]
):
    made = dataset([write(tmp_path, "square.png", 64)] * 64)
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path / "maps"), input_size=64, batch_size=8)
    state = pipeline.run(made, settings, progress=False)
    assert (state.done, state.failed) == (64, 0)
    assert max(batches) == 8
    # What was under way when the first batch was too large is halved too; then no batch is too large any more. Of 8
    # batches that are all halved there would be 24 that are too large.
    assert sum(size > 2 for size in batches) <= 3 * 6
    assert batches.count(2) >= 20, "and not smaller than need be"


def test_an_image_that_does_not_fit_by_itself_fails_alone(dataset: Callable, tmp_path: Path, batches: list[int]):
    square, wide = write(tmp_path, "square.png", 64), write(tmp_path, "wide.png", 192)
    made = dataset([square, wide, square, wide, wide, square, square])
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path / "maps"), input_size=64, batch_size=4)
    state = pipeline.run(made, settings, progress=False)
    assert (state.done, state.failed) == (4, 3)
    statuses = dict(zip(made.values("filepath"), made.values("pose_status"), strict=True))
    assert statuses[str(square)] == "done"
    assert statuses[str(wide)] == ("The network failed on it: CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_batches_whose_maps_would_be_large_are_smaller(
    dataset: Callable, tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"{__name__}.ROOM", 4 * 64 * 64)
    monkeypatch.setattr(pipeline, "BATCH_BYTES", 2 * 100 * 100)
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), np.full((100, 100, 3), 80, np.uint8))
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path / "maps"), input_size=64, batch_size=4)
    for resolution, expected in (("network", [4]), ("image", [2, 2])):
        batches.clear()
        chosen = replace(settings, label_field=resolution, resolution=resolution)
        assert pipeline.run(dataset(paths), chosen, progress=False).done == 4
        assert batches == expected


def test_an_image_that_does_not_fit_by_itself_does_not_make_other_batches_smaller():
    def refuse(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stages = SimpleNamespace(batch_size=8, predictor=SimpleNamespace(device=torch.device("cpu")), _see=refuse)
    item = pipeline._Item("6a00000000000000000000ab", "wide.png", SimpleNamespace())
    assert pipeline._Stages._infer(stages, [item])[2] == [
        (item.sample_id, "wide.png", "The network failed on it: CUDA out of memory")
    ]
    assert stages.batch_size == 8


def test_a_gpu_that_failed_for_good_is_not_blamed_on_images(monkeypatch: pytest.MonkeyPatch):
    def broken(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nMore about it")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(RuntimeError, match=r"^The run stopped because cuda:0 failed \(CUDA error: .* encountered\)"):
        pipeline._must_work(torch.device("cuda:0"))


def test_the_automatic_batch_is_the_power_of_two_that_fits():
    gigabyte = 2**30
    assert fitting_batch(80 * gigabyte, 0.1 * gigabyte) == 32
    assert fitting_batch(8 * gigabyte, 0.5 * gigabyte) == 8  # 9.6 images in 60% of the memory
    assert fitting_batch(0.1 * gigabyte, 0.5 * gigabyte) == 1
