"""The README's table of models: `python -m benchmarks.models`.

Parameters and GFLOPs (as the papers count them: multiply-adds of the convolutions, for one square input of the model's
size) come from the network itself, as do the milliseconds of one forward pass of one image on this machine: on a CPU
those of one core's own time, so that other work does not count.
"""

from __future__ import annotations

import argparse
import functools
import json

import torch
from torch.utils.flop_counter import FlopCounterMode

from inference import checkpoints
from inference.checkpoints import ModelEntry
from inference.network import HigherHRNet, NetworkConfig
from inference.predictor import choose_device, for_inference
from inference.weights import count_parameters

from .network import cpu_seconds, rate
from .parity import golden_network


@functools.cache
def gflops(config: NetworkConfig, size: int) -> float:
    with torch.device("meta"):
        network = HigherHRNet(config).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2 / 1e9


@functools.cache
def milliseconds(config: NetworkConfig, size: int, device: torch.device) -> float:
    """Of one image, as the plugin runs the network here; the best of several calls."""
    network = for_inference(golden_network(config), torch.float32).to(device)
    image = torch.zeros(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode():
            network(image)

    return 1000 * (cpu_seconds(call, 1) if device.type == "cpu" else 1 / max(rate(call, 1, device) for _ in range(3)))


def how(entry: ModelEntry) -> str:
    if entry.bundled:
        return "comes with the plugin"
    return f"[by hand]({entry.source})" if entry.by_hand else f"[fetched]({entry.source}) on first use"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    ms_column = "ms, one core" if device.type == "cpu" else "ms"
    print(f"| model | parameters | GFLOPs | {ms_column} | reported AP | licence | how to get it |")
    print("|---|---|---|---|---|---|---|")
    results: dict[str, float] = {}
    for entry in checkpoints.MODELS.values():
        if entry.network is None:
            continue
        parameters = count_parameters(entry.network) / 1e6
        flops = gflops(entry.network, entry.input_size)
        ms = milliseconds(entry.network, entry.input_size, device)
        terms = "[model card](assets/MODEL_CARD.md)" if entry.bundled else entry.license
        reported = entry.reported_ap or "see below"
        print(
            f"| `{entry.name}` | {parameters:.1f} M | {flops:.3g} | {ms:.0f} | {reported} | {terms} | {how(entry)} |",
            flush=True,
        )
        results |= {f"{entry.name}.parameters": parameters, f"{entry.name}.gflops": flops, f"{entry.name}.ms": ms}
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
