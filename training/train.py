"""Train a HigherHRNet: `python -m training.train --data DIR --config training/configs/lite.yaml [--output runs/lite]`.

Goes on from `<output>/checkpoint.pt` where it exists, with the configuration as it is now. Batches depend on the
seed and the step only and nothing else is random, so a resumed run needs no state of random generators.
Writes `log.csv` (losses) and `held_out.csv` (accuracy) beside the checkpoint.

Several processes share the work under `torchrun --nproc-per-node N -m training.train …`: one per GPU, or one per core
of a small CPU, where processes that meet once a step lose less time than threads that meet in every layer.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from inference.network import HigherHRNet, NetworkConfig
from inference.predictor import best_precision
from training.batches import Batches
from training.dataset import read_shards, split
from training.evaluate import evaluate, held_out_subset, network_map
from training.losses import halve_mask, heatmap_loss, normalise, place_loss, schedule, tag_loss
from training.start import check_edition, restart_tags, start_from


class Ema:
    """Exponential moving average of all floating parameters and buffers.

    Args:
        network: to follow
        decay: per step; grows from 0.1 at first, so that the start is forgotten
    """

    def __init__(self, network: torch.nn.Module, decay: float):
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        current = network.state_dict()
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.state.values()), [current[k] for k in self.state], weight)


def write(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename: a kill leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def save(path: Path, contents: dict) -> None:
    """Write what ``torch.load(path, weights_only=True)`` reads."""
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    write(path, buffer.getvalue())


def append(path: Path, row: dict) -> None:
    """Add a line to a CSV file with the column ``photos``.

    Lines that a run had written before it was killed, and writes again now, are replaced. Settings may have changed
    since, and with them the columns: what a line lacks is empty.
    """
    rows: list[dict] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["photos"]) < row["photos"]]
    rows.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in rows for name in line)))
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def learning_rate(progress: float, step: int, options: dict) -> float:
    """Linear warm-up in steps, then a cosine over the run down to 1%."""
    cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * min(progress, 1))) / 2
    return options["learning_rate"] * cosine * min(1, (step + 1) / options["warm_up"])


def mixed_precision(device: torch.device, wanted: bool = True) -> torch.autocast:
    """bfloat16 where the hardware computes with it; elsewhere a CPU would need twenty times as long as in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and best_precision(device) is torch.bfloat16)


def losses(network: Callable, batch: dict[str, Tensor], progress: float, options: dict) -> dict[str, Tensor]:
    """Forward pass and the losses by name; ``loss`` is what to minimise."""
    device = batch["image"].device
    with mixed_precision(device, options["bf16"]):
        coarse, fine = network(normalise(batch["image"]))
    coarse, fine = coarse.float(), fine.float()
    joints = fine.shape[1]
    mask = batch["mask"].float() / 255
    foreground = schedule(progress, options["foreground"])
    weights = (foreground, options["hard"])
    empty = batch["empty"].float()
    quarter = heatmap_loss(coarse[:, :joints], batch["quarter"].float(), halve_mask(mask), *weights, halve_mask(empty))
    target = batch["half"].float()
    half = heatmap_loss(fine, target, mask, *weights, empty)
    pull, push = tag_loss(coarse[:, joints:], batch["tags"])
    loss = quarter + half + options["pull"] * pull + options["push"] * push
    parts = {"quarter": quarter, "half": half, "pull": pull, "push": push}
    if options.get("place"):
        place = place_loss(network_map([coarse, fine]), target, mask, batch["places"], batch["boxes"])
        loss, parts["place"] = loss + options["place"] * place, place
    return {"loss": loss, **parts}


def must_be_finite(loss: float, step: int) -> None:
    """Keeps what diverged out of the checkpoint."""
    if not math.isfinite(loss):
        raise ValueError(f"The loss is not finite at step {step}; lower learning_rate and run again to resume.")


def average_gradients(network: torch.nn.Module, world: int) -> None:
    """Mean of the gradients over all processes, in one exchange."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.div_(world).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train(data: Path, options: dict, output: Path, rank: int = 0, world: int = 1) -> dict:
    """Run to the end of the schedule, or go on from the checkpoint.

    The run is over at ``photos`` or, if given, after ``minutes`` (of all its parts together), whichever is first.

    Args:
        data: folder of the shards
        options: the configuration
        output: folder of the run
        rank, world: this process and how many there are; with several, the process group exists and every one of
            them comes here with the same options

    Returns:
        the last checkpoint's contents
    """
    output.mkdir(parents=True, exist_ok=True)
    training_photos, held = split(read_shards(data), **options["held_out"])
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # crops have few sizes; held-out photos have many
    torch.manual_seed(options["seed"])
    config = NetworkConfig.from_dict(options["network"])
    network = HigherHRNet(config)
    path = output / "checkpoint.pt"
    if options["start"] and not path.exists():
        check_edition(Path(options["start"]), options["start_photos"])
        start_from(network, Path(options["start"]))
    if options["restart_tags"] and not path.exists():
        restart_tags(network, options["restart_tags"])
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options["learning_rate"], fused=on_gpu, foreach=not on_gpu)
    compiled = torch.compile(network, dynamic=False) if options.get("compile") else network
    ema = Ema(network, options["ema"])
    step, photos, seconds = 0, 0, 0.0
    if path.exists():
        # to the CPU: AdamW reads its step numbers there, one by one
        saved = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        ema.state = {name: value.to(device) for name, value in saved["ema"].items()}
        step, photos, seconds = saved["step"], saved["photos"], saved["seconds"]
        if rank == 0:
            print(f"Goes on from step {step}, {photos} photos.", flush=True)
    judge = HigherHRNet(config)
    judge.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    alarms = json.loads(Path(options["alarms"]).read_text()) if options.get("alarms") else None
    batches = Batches(training_photos, options["data"], options["seed"], world, alarms)
    loader = iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=range(step * world + rank, 1 << 40, world),
            num_workers=options["workers"],
            pin_memory=on_gpu,
            prefetch_factor=2 if options["workers"] else None,
        )
    )

    def contents() -> dict:
        return {
            "model": network.state_dict(),
            "ema": ema.state,
            "optimiser": optimiser.state_dict(),
            "step": step,
            "photos": photos,
            "seconds": seconds,
            "start_photos": options["start_photos"],
            "network": config.to_dict(),
            "held_out": options["held_out"],
        }

    def check() -> None:
        judge.load_state_dict(ema.state, strict=False)
        begin = time.monotonic()
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            numbers = evaluate(judge, held_out_subset(held, options["check_share"]), options["check_size"])
        append(output / "held_out.csv", {"step": step, "photos": photos, **numbers})
        short = {k: round(v, 3) for k, v in numbers.items()}
        print(
            f"step {step}, {photos} photos, held out ({time.monotonic() - begin:.0f} s): {json.dumps(short)}",
            flush=True,
        )

    def keep() -> None:
        must_be_finite(float(sums.get("loss", 0)), step)
        save(path, contents())

    sums: dict[str, Tensor] = {}
    new_sizes = {size for size, _, _ in options["data"]["crops"]} if options.get("compile") else set()
    last = last_save = last_check = last_log = time.monotonic()
    logged_step, logged_photos, waited = step, photos, 0.0
    minutes = options.get("minutes") or math.inf
    network.train()
    while True:
        if world > 1:  # all processes must agree on the time
            clock = torch.tensor(seconds, dtype=torch.float64, device=device)
            dist.broadcast(clock, 0)
            seconds = float(clock)
        progress = max(photos / options["photos"], seconds / 60 / minutes)
        if progress >= 1:
            break
        rate = learning_rate(progress, step, options)
        for group in optimiser.param_groups:
            group["lr"] = rate
        waiting = time.monotonic()
        batch = {k: v.to(device, non_blocking=True) for k, v in next(loader).items()}
        waited += time.monotonic() - waiting
        optimiser.zero_grad(set_to_none=True)
        parts = losses(compiled, batch, progress, options)
        parts["loss"].backward()
        if world > 1:
            average_gradients(network, world)
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), options["clip"])
        optimiser.step()
        ema.update(network, step)
        step, photos = step + 1, photos + world * len(batch["image"])
        for name, value in {**parts, "norm": norm}.items():
            sums[name] = sums.get(name, 0) + value.detach()
        now = time.monotonic()
        size = batch["image"].shape[1]
        if size in new_sizes:  # compiled just now, which takes minutes that are not the run's
            new_sizes.remove(size)
            last = now
        seconds, last = seconds + now - last, now
        if rank > 0:
            continue
        if step % options["log_steps"] == 0:
            row = {"step": step, "photos": photos, "minutes": seconds / 60, "learning_rate": rate}
            row |= {name: float(value) / (step - logged_step) for name, value in sums.items()}
            row["photos_per_second"] = (photos - logged_photos) / (now - last_log)
            row["waiting"] = waited / (now - last_log)  # share of the time in which the network waits for photos
            append(output / "log.csv", row)
            print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            must_be_finite(row["loss"], step)
            sums, last_log, logged_step, logged_photos, waited = {}, now, step, photos, 0.0
        if now - last_save > 60 * options["save_minutes"]:
            keep()
            last_save = now
        if now - last_check > 60 * options["check_minutes"]:
            check()
            last_check = time.monotonic()
    if rank == 0:
        keep()
        check()
    return contents()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training shards")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="default: runs/<name of the configuration>")
    arguments = parser.parse_args()
    options = yaml.safe_load(arguments.config.read_text())
    for name in ("start", "alarms"):
        if options.get(name):
            options[name] = str(arguments.config.parent / options[name])
    output = arguments.output or Path("runs") / arguments.config.stem
    world = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if world > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=datetime.timedelta(hours=2))
    train(arguments.data, options, output, int(os.environ.get("RANK", "0")), world)


if __name__ == "__main__":
    main()
