"""Held-out accuracy: `python -m training.evaluate --data DIR --run runs/lite --input-size 256 320`.

Measured on photos that training never sees (see `dataset.split`), for choosing settings; the numbers of the README
and the model card come from `benchmarks/accuracy.py` on another set. Person-free pictures are the held-out negative
photos and, because these show rooms and streets only, strips beside the people of held-out COCO photos.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from inference.checkpoint_files import read
from inference.network import HigherHRNet, NetworkConfig
from training.dataset import HELD_OUT, Photo, labelled, read_shards, split, warp, whole_affine
from training.losses import normalise

SEGMENT = 0.55  # a person's area per box area, about; COCO's areas are not in the shards
COCO_LONG_SIDE = 640  # the shards hold COCO photos at a smaller size; areas are meant at the original size
THRESHOLD = 0.2
ALARM_SHARE = 0.03


def network_map(outputs: list[Tensor]) -> Tensor:
    """Mean of stage 0 enlarged x2 and stage 1: (B, K, H/2, W/2) float32."""
    joints = outputs[1].shape[1]
    coarse = functional.interpolate(outputs[0][:, :joints].float(), scale_factor=2, mode="bilinear")
    return (coarse + outputs[1].float()) / 2


def strip_without_people(photo: Photo) -> tuple[int, int, int, int] | None:
    """The largest strip (x0, y0, x1, y1) beside, above or below everybody, None where it would be small or narrow."""
    width, height = photo.record["width"], photo.record["height"]
    boxes = np.array([*[person["bbox"] for person in photo.record["persons"]], *photo.record["ignore"]])
    left, top = np.floor(boxes[:, :2].min(0)).astype(int) - 4
    right, bottom = np.ceil((boxes[:, :2] + boxes[:, 2:]).max(0)).astype(int) + 4
    strips = [(0, 0, left, height), (right, 0, width, height), (0, 0, width, top), (0, bottom, width, height)]
    x0, y0, x1, y1 = max(strips, key=lambda s: (s[2] - s[0]) * (s[3] - s[1]))
    short, long = sorted((x1 - x0, y1 - y0))
    return (x0, y0, x1, y1) if short >= 120 and long <= 2.5 * short else None


@torch.inference_mode()
def infer(network: HigherHRNet, image: np.ndarray, input_size: int) -> tuple[Tensor, Tensor, float]:
    """Of the photo's part of the input the network map (K, h, w), gated where there is a gate; the tags (K, h', w') at
    half of that resolution (not cut to the photo); and the map's pixels per photo pixel."""
    device = next(network.parameters()).device
    affine, canvas = whole_affine(image.shape[1], image.shape[0], input_size)
    batch = torch.from_numpy(warp(image, affine, canvas))[None].to(device)
    outputs = network(normalise(batch))  # in float32, as runs have it
    scale = affine[0, 0] / 2
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    tags = outputs[0][0, outputs[1].shape[1] :].float()
    maps = network_map(outputs)
    if network.context_gate:
        maps = maps * network.context_gate.factors(maps)
    return maps[0, :, :height, :width].cpu(), tags.cpu(), scale


def original_scale(record: dict) -> float:
    """Pixels of the COCO photo per pixel of the stored one; sizes of people are meant there."""
    return COCO_LONG_SIDE / max(record["width"], record["height"])


def joint_values(maps: Tensor, scale: float, record: dict) -> tuple[list[float], list[bool]]:
    """For every labelled joint of people larger than 32^2: the highest local maximum within 0.15 sqrt(area).

    Returns:
        the values (0 where there is no local maximum), and whether the person is large (area > 96^2)
    """
    peaks = maps * (maps == functional.max_pool2d(maps, 3, 1, 1))
    grid = peaks.numpy()
    original = original_scale(record)
    values, large = [], []
    for person in labelled(record):
        area = SEGMENT * person["bbox"][2] * person["bbox"][3]
        if area * original**2 <= 32**2:
            continue
        radius = 0.15 * np.sqrt(area) * scale
        for k, (x, y, v) in enumerate(np.array(person["keypoints"], float).reshape(-1, 3)):
            if v > 0:
                cx, cy = x * scale - 0.5, y * scale - 0.5
                x0, y0 = (max(0, int(np.ceil(c - radius))) for c in (cx, cy))
                window = grid[k, y0 : int(cy + radius) + 1, x0 : int(cx + radius) + 1]
                rows, columns = np.ogrid[y0 : y0 + window.shape[0], x0 : x0 + window.shape[1]]
                near = (rows - cy) ** 2 + (columns - cx) ** 2 <= radius**2
                values.append(float((window * near).max(initial=0)))
                large.append(area * original**2 > 96**2)
    return values, large


def own_tag_is_nearest(tags: Tensor, scale: float, record: dict) -> list[bool]:
    """For every labelled joint where there are several people: is its tag nearest to its own person's mean tag?

    The own mean leaves the joint itself out. Guessing is right in one of as many cases as there are people.
    People smaller than 32^2 and people with one joint are left out.

    Args:
        tags: (K, h, w)
        scale: pixels of the network map (twice the tags') per photo pixel
        record: of the photo
    """
    original = original_scale(record)
    people = []
    for person in labelled(record):
        points = np.array(person["keypoints"], float).reshape(-1, 3)
        seen = np.flatnonzero(points[:, 2] > 0)
        if SEGMENT * person["bbox"][2] * person["bbox"][3] * original**2 > 32**2 and len(seen) > 1:
            columns, rows = (points[seen, :2] * scale / 2).astype(int).T
            people.append(tags.numpy()[seen, rows.clip(0, tags.shape[1] - 1), columns.clip(0, tags.shape[2] - 1)])
    hits = []
    for i, values in enumerate(people if len(people) > 1 else []):
        others = np.array([other.mean() for j, other in enumerate(people) if j != i])
        own = (values.sum() - values) / (len(values) - 1)
        hits += (np.abs(values - own) < np.abs(values[:, None] - others).min(1)).tolist()
    return hits


def evaluate(network: HigherHRNet, photos: list[Photo], input_size: int) -> dict[str, float]:
    """Recall and false alarms of held-out photos.

    Args:
        network: in any mode; left in eval mode
        photos: held-out photos, with and without people
        input_size: short side in pixels
    """
    network.eval()
    values: list[float] = []
    large: list[bool] = []
    grouped: list[bool] = []
    alarms: list[float] = []
    strip_alarms: list[float] = []
    for photo in photos:
        image = photo.image()
        if not photo.record["persons"] and not photo.record["ignore"]:
            alarms.append(float(infer(network, image, input_size)[0].max()))
            continue
        maps, tags, scale = infer(network, image, input_size)
        found = joint_values(maps, scale, photo.record)
        values += found[0]
        large += found[1]
        grouped += own_tag_is_nearest(tags, scale, photo.record)
        strip = strip_without_people(photo)
        if strip:
            x0, y0, x1, y1 = strip
            strip_alarms.append(float(infer(network, image[y0:y1, x0:x1], input_size)[0].max()))
    every, big = np.array(values), np.array(values)[np.array(large)]
    both = np.array(alarms + strip_alarms)
    threshold = threshold_at(both)
    return {
        "joint_recall": share(every >= THRESHOLD),
        "joint_recall_large": share(big >= THRESHOLD),
        "false_alarm_rate": share(both >= THRESHOLD),
        "recall_at_fa3": share(every > threshold),
        "recall_large_at_fa3": share(big > threshold),
        "threshold_fa3": threshold,
        "recall_large_at_fa3_negatives": share(big > threshold_at(np.array(alarms))),
        "recall_large_at_fa10": share(big > threshold_at(both, 0.1)),
        "own_tag_nearest": share(np.array(grouped)),
        "median_peak_negatives": float(np.median(alarms or [0])),
        "median_peak_strips": float(np.median(strip_alarms or [0])),
        "person_free": len(both),
        "joints": len(every),
    }


def share(hits: np.ndarray) -> float:
    """Mean of booleans, 0 where there are none."""
    return float(hits.mean()) if len(hits) else 0.0


def threshold_at(peaks: np.ndarray, alarm_share: float = ALARM_SHARE) -> float:
    """The value that at most ``alarm_share`` of the peaks exceed."""
    return float(np.sort(peaks)[::-1][int(alarm_share * len(peaks))]) if len(peaks) else 0.0


def held_out_subset(held: list[Photo], share: float) -> list[Photo]:
    """The first ``share`` of the held-out photos with people, and all without."""
    people = [photo for photo in held if photo.record["persons"]]
    free = [photo for photo in held if not photo.record["persons"]]
    return people[: max(1, round(share * len(people)))] + free


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="output folder of training.train")
    source.add_argument("--weights", type=Path, help="a .safetensors file whose metadata has the configuration")


@dataclass(frozen=True)
class Trained:
    """The moving average of a run, or weights, neither smoothed nor calibrated.

    Attributes:
        config: of the network
        state: parameters and buffers by their names
        held_out: how many photos of each set were held out
        photos: training photos behind them, where a run says so
    """

    config: NetworkConfig
    state: dict[str, Tensor]
    held_out: dict[str, int]
    photos: int | None = None


def read_trained(run: Path | None, weights: Path | None) -> Trained:
    """What the arguments of :func:`add_network_arguments` name."""
    if run:
        saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
        photos, held_out = saved["photos"] + saved["start_photos"], saved.get("held_out", HELD_OUT)
        return Trained(NetworkConfig.from_dict(saved["network"]), saved["ema"], held_out, photos)
    assert weights
    with safe_open(weights, "pt") as file:
        config = NetworkConfig.from_dict(json.loads(file.metadata()["config"]))
    return Trained(config, read(weights).state, HELD_OUT)


def load_network(run: Path | None, weights: Path | None) -> tuple[HigherHRNet, dict[str, int]]:
    """The same as a network on the device that there is; and how many photos were held out."""
    trained = read_trained(run, weights)
    network = HigherHRNet(trained.config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.load_state_dict({k: v.float() for k, v in trained.state.items()}, strict=False)
    return network.eval(), trained.held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training shards")
    add_network_arguments(parser)
    parser.add_argument("--input-size", type=int, nargs="+", default=[256])
    parser.add_argument("--share", type=float, default=1.0, help="of the held-out photos with people")
    arguments = parser.parse_args()
    network, held_out = load_network(arguments.run, arguments.weights)
    held = held_out_subset(split(read_shards(arguments.data), **held_out)[1], arguments.share)
    for input_size in arguments.input_size:
        numbers = evaluate(network, held, input_size)
        print(json.dumps({"input_size": input_size, **{k: round(v, 3) for k, v in numbers.items()}}), flush=True)


if __name__ == "__main__":
    main()
