"""How fast the network is as this plugin runs it at its fastest, beside the plain one: `python -m benchmarks.network`.

At its fastest means in bfloat16 where the hardware computes with that, which is a setting of runs. The plain one is the
same network in eager float32, channels first, its batch norms not folded. Both run in turns, in one process, on inputs
of `--input-size` squared; the best of several rounds counts. On a CPU `speedup` compares both with all cores on one
batch; `cpu_…` and `speedup_cpu` count seconds of the processor instead of the clock's, one core at work, and say more
where the machine has other things to do. Weights are reproducible random numbers: the speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from inference import checkpoints
from inference.network import HigherHRNet, NetworkConfig
from inference.predictor import best_precision, choose_device, for_inference

from .parity import golden_network

ROUNDS = 3
SECONDS = 1.5  # at least, per round and kind


def rate(call: Callable[[], object], images: int, device: torch.device) -> float:
    """Images per second of a call that takes ``images`` at once."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    calls, started = 0, time.perf_counter()
    while calls < 2 or time.perf_counter() - started < SECONDS:
        call()
        calls += 1
        if device.type == "cuda" and calls % 10 == 0:
            wait()  # or the clock only sees how fast work is queued
    wait()
    return calls * images / (time.perf_counter() - started)


def compare(
    plain: HigherHRNet, fast: HigherHRNet, batch: int, size: int, flip: bool, device: torch.device
) -> dict[str, float]:
    """Images per second of both, as the best of several rounds in turns, and per second of the processor."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    ready = images.to(next(fast.parameters()).dtype).contiguous(memory_format=torch.channels_last)

    def run(network: HigherHRNet, inputs: Tensor) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                network(inputs)
                if flip:
                    network(inputs.flip(3))

        return call

    kinds = {"plain": run(plain, images), "here": run(fast, ready)}
    for call in kinds.values():
        call()  # memory is laid out, kernels are chosen
    best = dict.fromkeys(kinds, 0.0)
    for _ in range(ROUNDS):
        for kind, call in kinds.items():
            best[kind] = max(best[kind], rate(call, batch, device))
    if device.type == "cpu":
        best |= {f"cpu_{kind}": 1 / cpu_seconds(call, batch) for kind, call in kinds.items()}
    return best


def cpu_seconds(call: Callable[[], None], images: int) -> float:
    """Of one core per image; the least of several calls."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first lays out memory
        started = time.thread_time()
        call()
        seconds.append((time.thread_time() - started) / images)
    torch.set_num_threads(usual)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="higherhrnet-w32-512-coco", help="whose network (default: %(default)s)")
    parser.add_argument("--input-size", type=int, help="pixels; default: the model's own")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 1 on a CPU, else 1 8 32")
    parser.add_argument("--flip", action="store_true", help="with the mirrored images too")
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()

    entry = checkpoints.find_model(arguments.model)
    device = choose_device(arguments.device)
    precision = best_precision(device)
    size = arguments.input_size or entry.input_size
    plain = golden_network(entry.network or NetworkConfig())
    fast = for_inference(plain, precision).to(device)
    plain = plain.to(device)
    what = "float32 channels first, and folded, channels-last, " + str(precision).removeprefix("torch.")
    print(f"{entry.name}, {size} x {size}, on {device}, {torch.get_num_threads()} threads: {what}")
    results: dict[str, float] = {}
    for batch in arguments.batch or ([1] if device.type == "cpu" else [1, 8, 32]):
        found = compare(plain, fast, batch, size, arguments.flip, device)
        found["speedup"] = found["here"] / found["plain"]
        if "cpu_here" in found:
            found["speedup_cpu"] = found["cpu_here"] / found["cpu_plain"]
        for name, value in found.items():
            print(f"  batch {batch:2}  {name:22} {value:9.2f}", flush=True)
            results[f"{name}_batch_{batch}"] = value
    if arguments.json:
        print(json.dumps({**results, "input_size": size, "flip": arguments.flip}))


if __name__ == "__main__":
    main()
