"""Train the pose refiner: `python -m training.refine_poses --data DIR --weights A.safetensors --output runs/refiner`.

Runs finished weights over the training photos once and keeps a window of their maps around each person whom grouping
finds and the labels know, or know not to be there (`windows-000.npz`, …; a second call goes on from those that there
are). If the weights have a refiner, every second photo's windows are around what that found, as a second look has them.
Then learns, for so many minutes, to say from such windows where the joints are. Writes
`pose_refiner.safetensors`, for `training.export`, and `refiner.pt`, from which the same command goes on after a kill.
With `--start` it begins with the refiner of an earlier edition.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import torch as safetensors
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.matching import Truth, oks
from inference import checkpoints
from inference.checkpoint_files import file_sha256, pose_refiner_of, read
from inference.geometry import Warp
from inference.grouping import group
from inference.joints import COCO
from inference.pose_prior import PosePrior
from inference.pose_refiner import (
    CELL,
    CELLS,
    HALF,
    LOOKS,
    PoseRefiner,
    RefinerNetwork,
    cut_windows,
    draw,
    likeliest,
    smoothed,
    tolerances,
)
from inference.predictor import Predictor, best_precision, choose_device
from training.dataset import HELD_OUT, Photo, labelled, read_shards, split, trusted
from training.evaluate import SEGMENT
from training.train import Ema, learning_rate, mixed_precision, must_be_finite, save, write

Array = NDArray[np.floating]
OTHER_SETS = ("people", "openimages", "lspet", "flickr8k")
CHUNK = 250  # photos
# Windows are kept larger than the refiner takes them, to be moved and turned. Cells are as large.
KEPT_HALF, KEPT_CELLS = 3.0, 64
MOST_PEOPLE = 12  # of a photo, those with the highest values first
LEAST_OKS = 0.15  # with a labelled person, for a group to be that person
LEAST_DEVIATION = 0.7  # cells
BATCH, WARM_UP, WEIGHT_DECAY, EMA = 32, 50, 0.01, 0.998
LOG_STEPS, SAVE_STEPS = 100, 500
TURN, ZOOM, SHIFT = 12.0, 0.1, 0.15  # deviations: degrees, logarithm, sizes; at most 2.5 times as much
SCORE = 0.5  # weight of the loss of the score
UNSEEN, UNDRAWN = 0.08, 0.15  # shares of heatmaps and of drawn joints that are hidden


@dataclass(frozen=True)
class Samples:
    """Windows around groups of joints that are a labelled person, or surely nobody; lengths in sizes from the middle.

    Attributes:
        heatmaps, fits: (N, K, KEPT_CELLS, KEPT_CELLS) float16, as :class:`inference.pose_refiner.Windows` has them
        joints: (N, K, 3) float32: x, y, value, as grouping saw them
        truth: (N, K, 3) float32: x, y, whether labelled; of groups that are nobody, nothing is
        areas: (N,) float32, of the people in squares of their sizes; 1 of nobody
    """

    heatmaps: Array
    fits: Array
    joints: Array
    truth: Array
    areas: Array


NAMES = [field.name for field in fields(Samples)]


def collect(predictor: Predictor, prior: PosePrior, photo: Photo, refiner: PoseRefiner | None = None) -> Samples:
    """The windows of a photo's people, of the network's own values: without gate and calibration.

    With an earlier refiner, those around what it found, as a second look has them.
    """
    image = predictor.prepare(photo.image())
    prediction = predictor.predict([image])
    own = prediction.heatmaps if prediction.own is None else prediction.own
    heatmaps, tags = own[0].cpu().numpy(), prediction.tags[0].cpu().numpy()
    shape = image.warp.input_wh[::-1]
    joints = group(heatmaps, tags, COCO.grouping_order, predictor.grouping, shape).joints
    joints = joints[np.argsort(-joints[:, :, 2].mean(axis=1))]
    if refiner:
        joints = refiner.look(heatmaps, tags, joints, shape, prior)[1]
    windows = cut_windows(heatmaps, tags, joints, shape, prior, KEPT_HALF, KEPT_CELLS)
    answers = [
        truth_of(joints[person], middle, photo, image.warp)
        for person, middle in zip(windows.people, windows.centres, strict=True)
    ]
    rows = [row for row, answer in enumerate(answers) if answer is not None][:MOST_PEOPLE]
    known = [answer for answer in (answers[row] for row in rows) if answer is not None]
    truth = np.array([joints for joints, _ in known], np.float32).reshape(-1, len(COCO), 3)
    middles, sizes = windows.centres[rows, None], windows.sizes[rows, None, None]
    areas = np.array([area for _, area in known], np.float32) / windows.sizes[rows].astype(np.float32) ** 2
    areas[~truth[:, :, 2].any(axis=1)] = 1
    seen = joints[windows.people[rows]]
    for points in (seen, truth):
        points[:, :, :2] = (points[:, :, :2] - middles) / sizes
    return Samples(windows.heatmaps[rows].half().numpy(), windows.fits[rows].half().numpy(), seen, truth, areas)


def truth_of(joints: Array, middle: Array, photo: Photo, warp: Warp) -> tuple[Array, float] | None:
    """The joints (K, 3) of the labelled person whom a group is most similar to, and the area, in pixels of the input.

    Joints without labels and no area where the group is nobody; None where it may be somebody whom nobody labelled.
    """
    ratio, offset = warp.ratio, np.array(warp.offset)
    people = labelled(photo.record)
    truth = np.array([person["keypoints"] for person in people], float).reshape(-1, len(COCO), 3)
    truth[:, :, :2] = truth[:, :, :2] * ratio + offset
    truth[:, :, 2] = truth[:, :, 2] > 0
    points = np.where(truth[:, :, 2:] > 0, truth[:, :, :2], np.nan)
    boxes = np.array([person["bbox"] for person in people], float).reshape(-1, 4)
    areas = SEGMENT * boxes[:, 2] * boxes[:, 3] * ratio**2
    similar = oks(Truth(points, areas, boxes, np.zeros((0, 4))), joints[None, :, :2], np.array(COCO.sigmas))[:, 0]
    if similar.max(initial=0) >= LEAST_OKS:
        best = similar.argmax()
        return truth[best], float(areas[best])
    x, y = (middle - offset) / ratio
    unlabelled = [person["bbox"] for person in photo.record["persons"] if person["num_keypoints"] == 0]
    doubtful = any(
        left <= x <= left + w and top <= y <= top + h for left, top, w, h in (*photo.record["ignore"], *unlabelled)
    )
    return None if doubtful or not trusted(photo) else (np.zeros((len(COCO), 3)), 0.0)


def choose(photos: list[Photo], others: int) -> list[Photo]:
    """All photos of COCO, and so many of the other sets with people, drawn at random."""
    rest = [photo for name in OTHER_SETS for photo in photos if photo.set_name == name]
    order = np.random.default_rng(0).permutation(len(rest))
    return [photo for photo in photos if photo.set_name == "coco"] + [rest[index] for index in order[:others]]


def collect_all(weights: Path, input_size: int, photos: list[Photo], folder: Path, processes: int) -> None:
    """Write the windows of all photos, as files of some hundred photos each, where they are not there yet.

    Raises:
        ValueError: if the weights have no pose prior, or the folder's windows are of other weights or photos
    """
    drawn = hashlib.sha256("\n".join(photo.key for photo in photos).encode()).hexdigest()
    made_of = {
        "weights": file_sha256(weights),
        "input_size": input_size,
        "photos": drawn,
        "chunk": CHUNK,
        "looks": LOOKS,
    }
    about = folder / "windows.json"
    if about.exists() and json.loads(about.read_text()) != made_of:
        raise ValueError(f"{folder} has windows of other weights or photos; choose another folder, or empty it.")
    if checkpoints.load(checkpoints.CUSTOM, weights).network.pose_prior is None:
        raise ValueError(f"{weights} has no pose prior; make weights with training.export first.")
    write(about, json.dumps(made_of).encode())
    chunks = {
        folder / f"windows-{start // CHUNK:03}.npz": photos[start : start + CHUNK]
        for start in range(0, len(photos), CHUNK)
    }
    left = {path: chunk for path, chunk in chunks.items() if not path.exists()}
    # Processes of one core each: threads would wait for each other in every layer.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(collect_chunk, weights, input_size, chunk, path) for path, chunk in left.items()]
        try:
            for one in tqdm(pending, unit=f" x {CHUNK} photos"):
                one.result()
        except BaseException:  # also Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def collect_chunk(weights: Path, input_size: int, photos: list[Photo], path: Path) -> None:
    """Write the windows of some photos, with one thread."""
    torch.set_num_threads(1)
    network = checkpoints.load(checkpoints.CUSTOM, weights).network
    prior, refiner = network.pose_prior, network.pose_refiner
    assert prior
    network.pose_refiner = None
    predictor = Predictor(network, COCO.flip, input_size, precision=best_precision(choose_device(None)))
    found = [collect(predictor, prior, photo, refiner if index % 2 else None) for index, photo in enumerate(photos)]
    arrays = {name: np.concatenate([getattr(one, name) for one in found]) for name in NAMES}
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def read_samples(folder: Path) -> Samples:
    """All windows that a folder has.

    Raises:
        ValueError: if it has none
    """
    files = [np.load(path) for path in sorted(folder.glob("windows-*.npz"))]
    counts = [len(file["areas"]) for file in files]
    if not sum(counts):
        raise ValueError(f"{folder} has no windows of people: the weights found nobody whom the labels know.")

    def together(name: str) -> Array:
        """One array, filled file by file: np.concatenate() would hold every window twice."""
        parts = (file[name] for file in files)
        first = next(parts)
        whole = np.empty((sum(counts), *first.shape[1:]), first.dtype)
        stop = 0
        for part in itertools.chain([first], parts):
            start, stop = stop, stop + len(part)
            whole[start:stop] = part
        return whole

    return Samples(*(together(name) for name in NAMES))


def augmented(samples: Samples, rows: NDArray[np.integer], rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Windows as the refiner takes them, turned, zoomed, moved and mirrored, some of what is known hidden.

    Returns:
        heatmaps, fits and drawn joints, (N, K, CELLS, CELLS) each, the truth (N, K, 3): x and y in cells, whether it is
        labelled; and the people's areas (N,) in square cells
    """
    count = len(rows)
    turn, zoom, across, down = rng.standard_normal((4, count)).clip(-2.5, 2.5)
    angle, scale = np.radians(TURN * turn), np.exp(ZOOM * zoom)
    mirrored = rng.random(count) < 0.5
    linear = scale[:, None, None] * np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(
        -1, 2, 2
    )
    linear[:, :, 0] *= np.where(mirrored, -1, 1)[:, None]
    middle = SHIFT * np.column_stack([across, down])
    # from places in the new window (-1 to 1) to those in the kept one
    affine = np.concatenate([linear * HALF, middle[:, :, None]], axis=2) / KEPT_HALF
    size = (count, 1, CELLS, CELLS)
    grid = F.affine_grid(torch.from_numpy(affine).float(), size, align_corners=False)  # type: ignore[arg-type]
    heatmaps, fits = (
        F.grid_sample(torch.from_numpy(maps[rows]).float(), grid, align_corners=False)
        for maps in (samples.heatmaps, samples.fits)
    )
    seen, truth = (moved(points[rows], linear, middle) for points in (samples.joints, samples.truth))
    flip = torch.from_numpy(mirrored)
    for values in (heatmaps, fits, seen, truth):
        values[flip] = values[flip][:, list(COCO.flip)]
    heatmaps *= torch.from_numpy(rng.random((count, len(COCO), 1, 1)) > UNSEEN)
    shown = seen[:, :, 2].clamp(0, 1) * torch.from_numpy(rng.random((count, len(COCO))) > UNDRAWN)
    areas = torch.from_numpy(samples.areas[rows] / (scale * CELL) ** 2).float()
    return heatmaps, fits, draw(seen[:, :, :2], shown), truth, areas


def moved(points: Array, linear: Array, middle: Array) -> Tensor:
    """Points (N, K, 3) of kept windows in cells of new ones, whose places (N, 2, 2) and middles (N, 2) are given."""
    units = np.einsum("nij,nkj->nki", np.linalg.inv(linear), points[:, :, :2] - middle[:, None]) / HALF
    return torch.from_numpy(np.concatenate([(units + 1) * (CELLS / 2), points[:, :, 2:]], axis=2)).float()


def deviations() -> Tensor:
    """Of the Gaussian that OKS is of the distance, of each joint of a person of median area: (K,) in cells."""
    return (2 * tolerances(COCO.sigmas) / CELL).clamp(min=LEAST_DEVIATION)


def refiner_loss(shares: Tensor, truth: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the joints' Gaussians, as wide as OKS is tolerant, in nats.

    The likeliest place is then the one whose expected OKS is highest, for people of median area.

    Args:
        shares: (N, K, CELLS, CELLS), as the refiner returns them
        truth: (N, K, 3), as of :func:`augmented`; what is outside does not count
    """
    wanted = draw(truth[:, :, :2], torch.ones_like(truth[:, :, 2]), deviations()).flatten(2)
    wanted = wanted / wanted.sum(dim=2, keepdim=True).clamp_min(1e-9)
    divergence = (torch.special.xlogy(wanted, wanted) - wanted * shares.flatten(2)).sum(dim=2)
    inside = truth[:, :, 2] * ((truth[:, :, :2] > 0) & (truth[:, :, :2] < CELLS)).all(dim=2)
    return (divergence * inside).sum() / inside.sum().clamp_min(1)


def similarity(places: Tensor, truth: Tensor, areas: Tensor) -> Tensor:
    """OKS (N,) of joints at places (N, K, 2) with the truth (N, K, 3) of people of so large areas (N,), in cells.

    0 where nothing is labelled.
    """
    squares = ((places - truth[:, :, :2]) ** 2).sum(dim=2)
    near = torch.exp(-squares / (2 * areas[:, None] * (2 * torch.tensor(COCO.sigmas)) ** 2))
    return (near * truth[:, :, 2]).sum(dim=1) / truth[:, :, 2].sum(dim=1).clamp_min(1)


def train(samples: Samples, minutes: float, folder: Path, start: Mapping[str, Tensor] | None, rate: float) -> None:
    """Learn for so many minutes; write the moving average of the refiner's parameters, now and then and at the end.

    Goes on from the folder's checkpoint where there is one. Windows depend on the step only.

    Args:
        start: parameters to begin with; None = at random
        rate: the highest learning rate
    """
    torch.manual_seed(0)
    network = RefinerNetwork(len(COCO)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if start:
        network.load_state_dict(start)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    average = Ema(network, EMA)
    path, step, seconds = folder / "refiner.pt", 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average.state, step, seconds = saved["ema"], saved["step"], saved["seconds"]
        print(f"Goes on from step {step} of {path}; without that file it begins anew.", flush=True)

    def keep() -> None:
        parts = {"model": network.state_dict(), "optimiser": optimiser.state_dict(), "ema": average.state}
        save(path, {**parts, "step": step, "seconds": seconds})
        state = {name: value.contiguous() for name, value in average.state.items()}
        write(folder / "pose_refiner.safetensors", safetensors.save(state))

    network.train()
    last, sums = time.monotonic(), np.zeros(3)
    while seconds < 60 * minutes:
        rng = np.random.default_rng((0, step))
        for parameters in optimiser.param_groups:
            schedule = {"learning_rate": rate, "warm_up": WARM_UP}
            parameters["lr"] = learning_rate(seconds / 60 / minutes, step, schedule)
        heatmaps, fits, drawn, truth, areas = augmented(samples, rng.integers(len(samples.truth), size=BATCH), rng)
        with mixed_precision(heatmaps.device):
            shares, logits = network(heatmaps, fits, drawn)
        shares, logits = shares.float(), logits.float()
        tops = likeliest(smoothed(shares.detach(), tolerances(COCO.sigmas) / CELL))
        similar = similarity(tops, truth, areas)
        place, score = refiner_loss(shares, truth), F.binary_cross_entropy_with_logits(logits, similar)
        loss = place + SCORE * score
        must_be_finite(loss.item(), step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        average.update(network, step)
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        step, sums = step + 1, sums + np.array([place.item(), score.item(), similar.sum().item() / BATCH])
        if step % LOG_STEPS == 0:
            values = ", ".join(f"{value:.4f}" for value in sums / LOG_STEPS)
            print(f"step {step}, {seconds:.0f} s, place, score, OKS {values}", flush=True)
            sums = np.zeros(3)
        if step % SAVE_STEPS == 0:
            keep()
    keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training shards")
    parser.add_argument("--weights", type=Path, required=True, help="a .safetensors file that training.export wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the windows and the result")
    parser.add_argument("--minutes", type=float, default=40, help="of learning (default: %(default)s)")
    parser.add_argument("--input-size", type=int, default=384, help="short side in pixels (default: %(default)s)")
    parser.add_argument("--others", type=int, default=5000, help="photos of other sets (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that find windows (default: %(default)s)")
    parser.add_argument("--start", type=Path, help="a .safetensors file of training.export whose refiner to start from")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="the highest (default: %(default)s)")
    arguments = parser.parse_args()
    start = None
    if arguments.start:
        earlier = pose_refiner_of(read(arguments.start), COCO)
        if earlier is None:
            parser.error(f"{arguments.start} has no pose refiner to start from.")
        start = earlier.network.state_dict()
    arguments.output.mkdir(parents=True, exist_ok=True)
    photos = choose(split(read_shards(arguments.data), **HELD_OUT)[0], arguments.others)
    collect_all(arguments.weights, arguments.input_size, photos, arguments.output, arguments.processes)
    train(read_samples(arguments.output), arguments.minutes, arguments.output, start, arguments.learning_rate)


if __name__ == "__main__":
    main()
