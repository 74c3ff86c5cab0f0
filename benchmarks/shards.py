"""What a second worker brings: `python -m benchmarks.shards [--json]`.

A run over the same images, once by one process and once by two that each do a shard of it, every process on one core
of its own and with one thread for the network. `scaling` is the ratio of images per second; starting up (imports, the
model, the record) is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import fiftyone as fo

from inference import pipeline, shards
from inference.settings import Settings

from .photos import write_cuttings


def work(dataset: str, maps_dir: str, first: str, last: str) -> None:
    """A shard, as soon as a line comes from the parent; prints how many images it did."""
    target = shards.Shard(fo.load_dataset(dataset).view(), first, last).select()
    steps = pipeline.process(target, Settings(maps_dir=maps_dir), skip_existing=False)
    next(steps)
    print("ready", flush=True)
    input()
    for state in steps:  # noqa: B007 (the same object each time)
        pass
    print(state.done, flush=True)


def rate(dataset: fo.Dataset, maps_dir: Path, count: int) -> float:
    """Images per second of ``count`` processes."""
    parts = shards.split(dataset, count, ())
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for part, core in zip(parts, cores, strict=False):
        command = [sys.executable, "-m", "benchmarks.shards", "--work", dataset.name, str(maps_dir)]
        process = subprocess.Popen(
            [*command, str(part.first), str(part.last)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.sched_setaffinity(process.pid, {core})
        processes.append(process)
    for process in processes:
        while process.stdout.readline() != "ready\n":  # type: ignore[union-attr]
            if process.poll() is not None:
                raise RuntimeError("A worker ended before it was ready.")
    started = time.perf_counter()
    for process in processes:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    lines = [process.stdout.readline() for process in processes]  # type: ignore[union-attr]
    seconds = time.perf_counter() - started
    for process in processes:
        process.communicate()
    done = sum(int(line) for line in lines)
    if done != len(dataset):
        raise RuntimeError(f"{done} of {len(dataset)} images were done, so this measures nothing.")
    return done / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600, help="images (default: %(default)s)")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("This needs two cores.")
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-shards-") as folder:
        dataset = fo.Dataset(f"shards-{uuid.uuid4().hex[:8]}", persistent=True)
        try:
            paths = write_cuttings(Path(folder), arguments.count)
            dataset.add_samples([fo.Sample(filepath=str(path)) for path in paths], progress=False)
            one = rate(dataset, Path(folder) / "maps", 1)
            two = rate(dataset, Path(folder) / "maps", 2)
        finally:
            dataset.delete()
    results = {"images_per_second_1": one, "images_per_second_2": two, "scaling": two / one, "images": arguments.count}
    for name, value in results.items():
        print(f"{name:28} {value:10.3f}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
