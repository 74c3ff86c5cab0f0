"""How fast stored maps are evaluated: `python -m benchmarks.evaluation`.

Generated people in 10,000 samples: 17 maps of 160x120 each as PNG files, labels, people as grouping would store them.
Every tenth sample has files of its own, the others share them. `seconds` is the whole call: reading and judging the
maps, writing what became of each joint, and the figures of the whole with AP.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import fiftyone as fo
import numpy as np

from evaluation import evaluate

from . import generated

SHARING = 10  # samples with the same files
ADDED = 500  # samples added to the dataset at once


def make(count: int, folder: Path) -> fo.Dataset:
    """The dataset to evaluate."""
    random = np.random.default_rng(51)
    dataset = None
    samples: list[fo.Sample] = []
    for number in range(count):
        if number % SHARING == 0:
            people = generated.make_people(random, int(random.integers(1, 5)))
            paths = generated.save_maps(generated.draw_maps(people, random), folder / str(number))
        samples.append(generated.make_sample(number, people, paths))
        if len(samples) == ADDED or number == count - 1:
            if dataset is None:
                dataset = generated.make_dataset(samples)
            else:
                dataset.add_samples(samples, progress=False)
            samples = []
    assert dataset is not None
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        dataset = make(arguments.count, Path(folder))
        try:
            started, cpu = time.monotonic(), time.process_time()
            state = evaluate.evaluate(dataset, evaluate.Settings(gt_field="people"))
            seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
        finally:
            fo.delete_dataset(dataset.name)
    results = state.results or {}
    figures = {
        "samples": state.done,
        "failed": state.failed,
        "samples_per_map_file": SHARING,
        "people": results["people"],
        "labelled_joints": results["labelled_joints"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "samples_per_second": round(state.done / seconds, 1),
        "cores": os.cpu_count(),
        "recall": round(results["recall"], 4),
        "ap": round(results["figures"]["ap"], 4),
    }
    for name, figure in figures.items():
        print(f"{name:20} {figure}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
