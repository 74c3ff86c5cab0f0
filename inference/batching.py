"""How many images a forward pass takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .predictor import Predictor, PreparedImage

CPU_BATCH = 4
MAX_GPU_BATCH = 32  # more is not faster, and more is lost when a worker is killed
SHARE = 0.6  # of the free memory: others may use the GPU too, and some photos are longer than the one measured with


def automatic_batch_size(predictor: Predictor, run: Callable[[list[PreparedImage]], object]) -> int:
    """What fits into the free memory of a GPU, measured with two small batches; a fixed number elsewhere.

    Args:
        predictor: prepares the image to measure with
        run: takes a batch through the network and all that happens on the device
    """
    device = predictor.device
    if device.type != "cuda":
        return CPU_BATCH if device.type == "cpu" else MAX_GPU_BATCH // 2
    side = predictor.input_size
    image = predictor.prepare(np.zeros((side, side * 4 // 3, 3), np.uint8))
    peaks = []
    try:
        for count in (1, 2):
            torch.cuda.reset_peak_memory_stats(device)
            run([image] * count)
            peaks.append(torch.cuda.max_memory_allocated(device))
    except torch.OutOfMemoryError:
        return 1
    finally:
        torch.cuda.empty_cache()
    return fitting_batch(torch.cuda.mem_get_info(device)[0], peaks[1] - peaks[0])


def fitting_batch(free: float, per_image: float) -> int:
    """The largest power of two that fits: 1 to 32.

    Args:
        free: bytes
        per_image: bytes
    """
    count = int(SHARE * free / max(per_image, 1))
    return min(MAX_GPU_BATCH, 1 << max(0, count.bit_length() - 1))
