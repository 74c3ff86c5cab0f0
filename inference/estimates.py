"""What a run will cost, before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

import fiftyone as fo
import numpy as np

from . import checkpoints, weights
from .network import HigherHRNet, NetworkConfig
from .predictor import Predictor, find_precision
from .settings import Settings

PHOTO_WH = (640, 480)  # of an image whose size is not known
SAMPLES_LOOKED_AT = 100
OVERHEAD = 1.15  # of reading, grouping and writing, over the network's time
BYTES_PER_PIXEL = 0.04  # of a PNG at the default floor; most of a map is zero
SLOW = 1.0  # seconds per image from which on one look is enough; a form waits for it
PNG_HEADER = 70
BLOCK = 4096  # what a small file takes on most disks


@lru_cache(maxsize=16)
def _seconds_per_pass(model: str, checkpoint: str | None, input_size: int, device: str | None, precision: str) -> float:
    """Of one image through the network, once, with its own weights if they are here."""
    known = find_precision(precision, device)
    entry = checkpoints.find_model(model, checkpoint)
    if weights.find(entry, checkpoint):
        network = checkpoints.load(model, checkpoint).network
    else:  # the time does not depend on the weights
        network = HigherHRNet(entry.network or NetworkConfig()).eval()
    predictor = Predictor(network, range(network.config.joints), input_size, device=device, precision=known)
    image = predictor.prepare(np.zeros((PHOTO_WH[1], PHOTO_WH[0], 3), np.uint8))
    seconds: list[float] = []
    for batch in (1, 2, 2):  # the first is slower: memory is laid out
        started = time.perf_counter()
        predictor.predict([image] * batch).heatmaps.cpu()
        seconds.append((time.perf_counter() - started) / batch)
        if seconds[-1] > SLOW:
            break
    return min(seconds)


def seconds_per_image(settings: Settings) -> float:
    """Measured with the network on this machine, once per process and choice of model, device and precision.

    Raises:
        ValueError: if the model cannot be loaded, or the device lacks the precision
    """
    entry = checkpoints.find_model(settings.model, settings.checkpoint)
    # Not at the size that is chosen: a form would measure anew at every digit that is typed.
    larger = (settings.input_size or entry.input_size) / entry.input_size
    passes = sum((scale * larger) ** 2 for scale in settings.scales) * (2 if settings.flip else 1)
    seconds = _seconds_per_pass(
        settings.model, settings.checkpoint, entry.input_size, settings.device, settings.precision
    )
    return OVERHEAD * passes * seconds


def known_sizes(view: fo.core.collections.SampleCollection) -> list[tuple[int, int]]:
    """Width and height of the first images of a view, as far as their metadata say so."""
    columns = view.limit(SAMPLES_LOOKED_AT).values(["metadata.width", "metadata.height"])
    return [(width, height) for width, height in zip(*columns, strict=True) if width and height]


def bytes_per_image(settings: Settings, maps: int, sizes: Sequence[tuple[int, int]] = ()) -> float:
    """Of the maps on disk, or in the database; a rough figure, since it depends on how many people there are.

    Args:
        settings: resolved
        maps: number of maps per image
        sizes: width and height of some of the images, pixels
    """
    each = [_bytes_of(settings, maps, wh) for wh in sizes or [PHOTO_WH]]
    return sum(each) / len(each)


def _bytes_of(settings: Settings, maps: int, image_wh: tuple[int, int]) -> float:
    width, height = map(float, image_wh)
    if settings.resolution == "network":
        assert settings.input_size is not None
        ratio = settings.input_size / min(width, height) / 2
        width, height = width * ratio, height * ratio
    size = PNG_HEADER + width * height * BYTES_PER_PIXEL * (2.5 if settings.dtype == "float32" else 1)
    return maps * (max(size, BLOCK) if settings.storage == "files" else size + 150)
