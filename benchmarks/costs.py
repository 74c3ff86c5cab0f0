"""What a thousand images cost: `python -m benchmarks.costs [--json]`.

Seconds and megabytes per 1,000 images of 640x480, files on disk to fields in MongoDB, by what is stored and where, and
the seconds of the published networks alone; then the seconds of splitting a dataset of a million into shards, and of
counting what is done in it. The megabytes of files are what they take on this disk (whole blocks);
those of the database are of the documents, before MongoDB compresses them. docs/scaling.md builds on these numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import fiftyone as fo

from inference import checkpoints, pipeline, runs, shards
from inference.images import read_image
from inference.network import HigherHRNet
from inference.predictor import Predictor
from inference.settings import Settings

from .photos import write_cuttings
from .throughput import network_rates

RUNS: dict[str, dict[str, Any]] = {
    "files_all": {},
    "files_all_image": {"resolution": "image"},
    "files_max": {"maps": ("max",)},
    "memory_all": {"storage": "memory"},
    "memory_max": {"storage": "memory", "maps": ("max",)},
}
NETWORKS = ("higherhrnet-lite-coco", "higherhrnet-w32-512-coco", "higherhrnet-w48-640-coco")


def costs(paths: list[Path], settings: Settings) -> dict[str, float]:
    """Seconds and megabytes per 1,000 images of a run over a dataset of its own."""
    dataset = fo.Dataset(f"costs-{uuid.uuid4().hex[:8]}")
    try:
        dataset.add_samples([fo.Sample(filepath=str(path)) for path in paths], progress=False)
        before = dataset.stats()["samples_bytes"]
        steps = pipeline.process(dataset, settings)
        next(steps)
        started = time.perf_counter()
        for state in steps:  # noqa: B007 (the same object each time)
            pass
        seconds = time.perf_counter() - started
        if state.failed:
            raise RuntimeError(f"{state.failed} images failed, so this measures nothing.")
        database = dataset.stats()["samples_bytes"] - before
        folder = Path(settings.maps_dir) if settings.maps_dir else None
        files = [path for path in folder.rglob("*") if path.is_file()] if folder else []
        size = sum(path.stat().st_blocks * 512 for path in files)
        scale = 1000 / state.done
        return {
            "seconds": seconds * scale,
            "megabytes_files": size * scale / 1e6,
            "files": len(files) * scale,
            "megabytes_database": database * scale / 1e6,
        }
    finally:
        dataset.delete()


def network_seconds(name: str, image: Path) -> float:
    """Of 1,000 images through a network alone, at its fastest; published ones with any weights, which do not matter."""
    entry = checkpoints.find_model(name)
    assert entry.network is not None  # only custom checkpoints bring their own
    network = checkpoints.load(name).network if entry.bundled else HigherHRNet(entry.network)
    predictor = Predictor(network, entry.joint_set.flip, entry.input_size)
    prepared = predictor.prepare(read_image(str(image)))
    return 1000 / max(rate for _, _, rate in network_rates(predictor, prepared))


def large_dataset(count: int) -> dict[str, float]:
    """Seconds of what is asked of a whole dataset of so many samples, which have a status and no maps."""
    dataset = fo.Dataset(f"costs-{uuid.uuid4().hex[:8]}")
    try:
        dataset.add_sample_field("pose_status", fo.StringField)
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            documents = [{"filepath": f"/{number:09}.jpg", "pose_status": runs.DONE} for number in numbers]
            dataset._sample_collection.insert_many(documents)
        started = time.perf_counter()
        parts = shards.split(dataset, 64, ("pose_status",))
        split = time.perf_counter() - started
        done, _ = runs.counts(dataset, "pose")
        counted = time.perf_counter() - started - split
        if len(parts) != 64 or done != count:
            raise RuntimeError(f"{len(parts)} shards and {done} samples that are done, so this measures nothing.")
        return {"split_seconds": split, "count_seconds": counted, "samples": count}
    finally:
        dataset.delete()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="images of each run (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the large dataset (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-costs-") as folder:
        paths = write_cuttings(Path(folder), arguments.count)
        costs(paths[:16], Settings(maps_dir=str(Path(folder) / "warm-up")))
        for name, chosen in RUNS.items():
            maps_dir = None if chosen.get("storage") == "memory" else str(Path(folder) / name)
            found = costs(paths, Settings(maps_dir=maps_dir, **chosen))
            results |= {f"{name}_{cost}": value for cost, value in found.items()}
            print(f"{name:20} " + ", ".join(f"{cost} {value:.1f}" for cost, value in found.items()), flush=True)
        for name in NETWORKS:
            results[f"network_{name}_seconds"] = network_seconds(name, paths[0])
            print(f"{name}: {results[f'network_{name}_seconds']:.1f} seconds, the network alone", flush=True)
    results |= large_dataset(arguments.samples)
    print(f"{arguments.samples:,} samples: split in {results['split_seconds']:.1f} seconds, ", end="")
    print(f"counted in {results['count_seconds']:.1f}", flush=True)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
