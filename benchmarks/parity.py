"""Hold this project's code to the published model's numbers: `python -m benchmarks.parity [--json]`.

What the golden files hold, and how they were made, is in `tests/golden/README.md`. A relative error is
max|a - b| / max|b|. Exits with 1 where a bar is missed. The unit tests use the same functions.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.enlarged import Enlarged, TagMap
from inference.geometry import resized_wh, warp_for
from inference.grouping import GroupingConfig, group
from inference.joints import COCO
from inference.network import HigherHRNet, NetworkConfig
from inference.predictor import merge_stages

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

# SWAHR is the same network; what it adds (`conv_scale_layers`) is for training only.
VARIANTS = {
    "coco_w32": NetworkConfig(),
    "coco_w48": NetworkConfig(width=48),
    "crowdpose_w32": NetworkConfig(joints=14),
    "swahr_coco_w32": NetworkConfig(),
    "swahr_coco_w48": NetworkConfig(width=48),
}
DECODINGS = {
    "adjust0_refine0": GroupingConfig(adjust=False, refine=False),
    "adjust1_refine0": GroupingConfig(refine=False),
    "adjust1_refine1": GroupingConfig(),
}
BARS = {"forward": 1e-3, "geometry": 0, "aggregation": 1e-4, "network_map": 1e-4, "grouping": 0.5}
UNITS = {"geometry": "mismatches", "grouping": "px"}


def relative_error(ours: NDArray, theirs: NDArray) -> float:
    """max|a - b| / max|b|; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@functools.cache
def golden_outputs(config: NetworkConfig) -> list[NDArray]:
    """What the network makes of the golden input with the golden weights; the same for SWAHR's."""
    image = np.random.default_rng(7).standard_normal((1, 3, 256, 320)).astype(np.float32)
    with torch.inference_mode():
        return [output[0].numpy() for output in golden_network(config)(torch.from_numpy(image))]


def golden_network(config: NetworkConfig) -> HigherHRNet:
    """The network with the reproducible weights that the golden forward passes were made with."""
    network = HigherHRNet(config).eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(_golden_values(name, noise)))
    return network


def _golden_values(name: str, noise: NDArray) -> NDArray:
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * noise
    if noise.ndim == 1:
        return 0.4 + 0.05 * noise
    return noise * np.sqrt(1 / np.prod(noise.shape[1:]))


def forward(variant: str, reference: Path = GOLDEN) -> float:
    """Relative error of the raw network outputs, the larger of both stages."""
    step = 8 if "w48" in variant else 4  # the golden outputs are stored thinned out
    errors = []
    with np.load(reference / "golden_forward.npz") as golden:
        for stage, output in enumerate(golden_outputs(VARIANTS[variant])):
            ours = output[:, ::step, ::step]
            theirs = golden[f"{variant}_output{stage}"]
            scale_maps = VARIANTS[variant].joints if variant.startswith("swahr") else 0
            errors.append(relative_error(ours, theirs[scale_maps:]))
    return max(errors)


def geometry(reference: Path = GOLDEN) -> int:
    """How many of the golden cases have another input size, centre or ratio.

    An image so long that this project scales it down is compared by :func:`resized_wh` alone.
    """
    wrong = 0
    for case in json.loads((reference / "golden_geometry.json").read_text()):
        arguments = (tuple(case["image_wh"]), case["input_size"], case["scale"], tuple(case["scales"]))
        same = resized_wh(*arguments) == tuple(case["resized_wh"])
        warp = warp_for(*arguments)
        if not warp.reduced:
            ratios = [side / (200 * scale) for side, scale in zip(case["resized_wh"], case["scale_vec"], strict=True)]
            same &= warp.input_wh == tuple(case["resized_wh"]) and warp.center == tuple(case["center"])
            same &= bool(np.allclose(ratios, warp.ratio, rtol=1e-9))
        wrong += not same
    return wrong


def aggregation(reference: Path = GOLDEN) -> tuple[float, float]:
    """Relative errors of the test-time aggregation, with and without flip: (aggregate and its tags, network map)."""
    random = np.random.default_rng(5)
    shapes = ((1, 34, 32, 48), (1, 17, 64, 96)) * 2
    outputs = [torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in shapes]
    shape = (128, 192)
    aggregate, network_map = [], []
    with np.load(reference / "golden_aggregation.npz") as golden:
        for flip, mirrored in enumerate((None, outputs[2:])):
            heatmaps, tags = (t[0].numpy() for t in merge_stages(outputs[:2], mirrored, torch.tensor(COCO.flip)))
            network_map.append(relative_error(heatmaps[:, ::2, ::2], golden[f"network_flip{flip}"]))
            ours = Enlarged(heatmaps, shape).at(*np.mgrid[0 : len(COCO), 0 : shape[0] : 4, 0 : shape[1] : 4])
            aggregate.append(relative_error(ours, golden[f"heatmaps_flip{flip}"]))
            ours = TagMap(tags, shape).at(*np.mgrid[0 : len(COCO), 0 : shape[0] : 8, 0 : shape[1] : 8])
            aggregate.append(relative_error(ours, golden[f"tags_flip{flip}"]))
    return max(aggregate), max(network_map)


def grouping(decoding: str, reference: Path = GOLDEN) -> tuple[float, float]:
    """The people of the golden heatmaps, compared joint by joint.

    Returns:
        the largest distance of a joint in pixels, and the largest difference of a value, tag or score; both infinite
        where not the same people with the same joints come back
    """
    with np.load(reference / "golden_grouping.npz") as golden:
        heatmaps, tags = (golden[name].astype(np.float32) for name in ("heatmaps", "tags"))
        theirs, scores = golden[f"people_{decoding}"], golden[f"scores_{decoding}"]
    people = group(heatmaps, tags[..., None], COCO.grouping_order, DECODINGS[decoding])
    present = theirs[..., 2] > 0
    if people.joints.shape[:2] != theirs.shape[:2] or not np.array_equal(people.joints[..., 2] > 0, present):
        return float("inf"), float("inf")
    distances = np.linalg.norm(people.joints[..., :2] - theirs[..., :2], axis=-1)[present]
    differences = [
        np.abs(people.joints[..., 2] - theirs[..., 2]).max(),
        np.abs(people.tags - theirs[..., 3])[present].max(),
        np.abs(people.scores - scores).max(),
    ]
    return float(distances.max()), float(max(differences))


def measure(reference: Path = GOLDEN, note: Callable[[str, float], object] = lambda name, value: None) -> dict:
    """All errors by name; `note` hears of each as soon as it is known."""
    results: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        results[name] = value
        note(name, value)

    add("geometry", geometry(reference))
    for name, value in zip(("aggregation", "network_map"), aggregation(reference), strict=True):
        add(name, value)
    add("grouping", max(grouping(decoding, reference)[0] for decoding in DECODINGS))
    for variant in VARIANTS:
        add(f"forward.{variant}", forward(variant, reference))
    return results


def bar_of(name: str) -> float:
    """The largest error that is allowed."""
    return BARS[name.partition(".")[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=GOLDEN, help="folder of the golden files")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()

    def note(name: str, value: float) -> None:
        verdict = "" if value <= bar_of(name) else "  <-- MISSED"
        unit = UNITS.get(name, "relative")
        print(f"{name:24} {value:10.3g}   at most {bar_of(name):6g}   {unit}{verdict}", flush=True)

    results = measure(arguments.reference, note)
    missed = [name for name, value in results.items() if not value <= bar_of(name)]
    print(f"Missed: {', '.join(missed)}." if missed else "All hold.")
    if arguments.json:
        print(json.dumps(results))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
