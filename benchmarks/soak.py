"""Whether a long run stays as small as a short one: `python -m benchmarks.soak [--count 20000] [--json]`.

One process runs over many small images, and notes now and then how much memory, how many open files and how many
threads it has. `bytes_per_sample` is the slope of a line through the memory after the first 1,000 samples.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import numpy as np
import psutil

from inference import pipeline, runs
from inference.settings import Settings

from .photos import write_cuttings

WARM = 1000  # samples until everything that is kept has been made
EVERY = 100  # samples between two looks


def observe(dataset: fo.Dataset, settings: Settings) -> Iterator[tuple[int, int, int, int]]:
    """Samples done, bytes resident, open files, threads."""
    process, due = psutil.Process(), WARM
    for state in pipeline.process(dataset, settings):
        finished = state.done + state.failed
        if due <= finished < state.total:  # not at the very end: the threads have ended there
            due += EVERY
            yield finished, process.memory_info().rss, process.num_fds(), process.num_threads()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="images (default: %(default)s)")
    parser.add_argument("--input-size", type=int, default=64, help="of the network (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-soak-") as folder:
        dataset = fo.Dataset(f"soak-{uuid.uuid4().hex[:8]}")
        try:
            paths = itertools.cycle(write_cuttings(Path(folder), 200, (80, 60)))
            samples = (fo.Sample(filepath=str(path)) for path in itertools.islice(paths, arguments.count))
            dataset.add_samples(samples, progress=False)
            started = time.monotonic()
            settings = Settings(maps_dir=str(Path(folder) / "maps"), input_size=arguments.input_size)
            for row in observe(dataset, settings):
                rows.append(row)
                if row[0] % 1000 < EVERY:
                    print(
                        f"{row[0]:7,} samples  {row[1] / 1e6:7.1f} MB  {row[2]:4} files  {row[3]:3} threads", flush=True
                    )
            seconds = time.monotonic() - started
            if runs.counts(dataset, "pose") != (arguments.count, 0):
                raise RuntimeError("Some samples are not done, so this measures nothing.")
        finally:
            dataset.delete()
    samples_done, resident, files, threads = map(np.array, zip(*rows, strict=True))
    results = {
        "bytes_per_sample": float(np.polyfit(samples_done, resident, 1)[0]),
        "megabytes_first": resident[0] / 1e6,
        "megabytes_last": resident[-1] / 1e6,
        "files_first": int(files[0]),
        "files_last": int(files[-1]),
        "threads_first": int(threads[0]),
        "threads_last": int(threads[-1]),
        "images": arguments.count,
        "seconds": seconds,
    }
    for name, value in results.items():
        print(f"{name:28} {value:12.3f}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
