"""How fast a run is, beside its network alone: `python -m benchmarks.throughput [--json]`.

`images_per_second` is a run of the pipeline after a warm-up run, files on disk to fields in MongoDB, without its
`start_seconds` (loading the model, declaring the fields). `busy_<stage>` is that stage's busy seconds, over all its
threads, per second of the run. `network_images_per_second` is the forward pass alone, one batch at a time, at its
fastest batch size, with inputs of the same shape and in the same precision; `efficiency` is the ratio of both. On a CPU
a run takes several batches at once, each on its own cores, which is faster: `network_images_per_second_parallel` is
the forward pass alone in that way, what a run could reach at best, and `efficiency_parallel` the share of it.
`cpu_seconds` and `cpu_seconds_network` are per image; they say more where the machine has other work to do.

Machines get faster and slower by a tenth within a minute. So runs and the network take turns: each of the `--rounds`
runs is compared with the network just before and just after it. All numbers are medians of the rounds;
`efficiency_lowest` and `efficiency_highest` say how far the rounds lie apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fiftyone as fo
import torch

from inference import checkpoints, pipeline
from inference.images import read_image
from inference.predictor import PRECISIONS, Predictor, PreparedImage
from inference.settings import STORAGES, Settings

from .photos import write_cuttings

MAX_BATCH = 64
SECONDS = 3.0  # per batch size of the network alone
WARM_UP = 16


def network_rates(predictor: Predictor, image: PreparedImage) -> Iterator[tuple[int, int, float]]:
    """The network's forward passes alone: batch size, batches at once, images per second.

    Batches of 1, 2, 4, … images until it gets slower; on a CPU also several at once, each on one core.
    """
    cores = os.cpu_count() or 1
    for at_once in (1, cores) if predictor.device.type == "cpu" and cores > 1 else (1,):
        best = 0.0
        for batch in (2**power for power in range(MAX_BATCH.bit_length())):
            rate, _ = _parallel_rate(predictor, image, batch, at_once)
            yield batch, at_once, rate
            if rate < 0.95 * best:
                break
            best = max(best, rate)


def _parallel_rate(predictor: Predictor, image: PreparedImage, batch: int, at_once: int) -> tuple[float, float]:
    """Images per second, and CPU seconds per image."""
    begun = time.process_time()
    if at_once == 1:
        images, seconds = _network_rate(predictor, image, batch)
        return images / seconds, (time.process_time() - begun) / (images + 2 * batch)
    usual_threads = torch.get_num_threads()
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        running = [threads.submit(_network_rate, predictor, image, batch) for _ in range(at_once)]
        done = [future.result() for future in running]
    torch.set_num_threads(usual_threads)
    images = sum(count for count, _ in done)
    cpu = (time.process_time() - begun) / (images + 2 * batch * at_once)
    return sum(count / seconds for count, seconds in done), cpu


@torch.inference_mode()
def _network_rate(predictor: Predictor, image: PreparedImage, batch: int) -> tuple[int, float]:
    """Images in SECONDS of forward passes, and the exact seconds, after two passes that do not count."""
    inputs = [predictor.upload([image.inputs[scale]] * batch) for scale in range(len(predictor.scales))]

    def call() -> None:
        for images in inputs:
            predictor.network(images)
            if predictor.flip_test:
                predictor.network(images.flip(3))
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        call()
    started = time.perf_counter()
    calls = 0
    while calls < 3 or time.perf_counter() - started < SECONDS:
        call()
        calls += 1
    return calls * batch, time.perf_counter() - started


@dataclass(frozen=True)
class Run:
    """A run over a dataset of its own, which is deleted afterwards.

    Attributes:
        images: that got their maps
        start_seconds: until the first image is read: model, record, fields
        seconds: from then until the last image is in the database
        busy: seconds of work by stage
        cpu_seconds: of this process in ``seconds``
    """

    images: int
    start_seconds: float
    seconds: float
    busy: dict[str, float]
    cpu_seconds: float


def run_once(paths: Iterable[Path], settings: Settings, count: int) -> Run:
    """Run the pipeline over ``count`` images; files are used again where there are fewer."""
    dataset = fo.Dataset(f"throughput-{uuid.uuid4().hex[:8]}")
    try:
        samples = (fo.Sample(filepath=str(path)) for path in itertools.islice(itertools.cycle(paths), count))
        dataset.add_samples(samples, progress=False)
        begun = time.perf_counter()
        steps = pipeline.process(dataset.view(), settings)
        state = next(steps)
        started, cpu_begun = time.perf_counter(), time.process_time()
        for state in steps:  # noqa: B007 (the same object each time)
            pass
        ended, cpu_ended = time.perf_counter(), time.process_time()
        if state.failed:
            raise RuntimeError(
                f"{state.failed} of {count} images failed, so this measures nothing: {state.failures[:3]}"
            )
        return Run(state.done, started - begun, ended - started, state.busy, cpu_ended - cpu_begun)
    finally:
        dataset.delete()


def measure(settings: Settings, images: list[Path], count: int, rounds: int) -> dict[str, float]:
    """All numbers; a person sees how it goes on the terminal."""
    model = checkpoints.load(settings.model, settings.checkpoint)
    predictor = settings.predictor(model)
    prepared = [predictor.prepare(read_image(str(path))) for path in images[:WARM_UP]]
    shape = Counter(image.shape for image in prepared).most_common(1)[0][0]
    image = next(image for image in prepared if image.shape == shape)
    precision = str(predictor.precision).removeprefix("torch.")
    print(f"{model.entry.name}, inputs of {shape} in {precision} on {predictor.device}", flush=True)

    fastest: dict[int, tuple[float, int]] = {}  # by batches at once: images per second, batch size
    for batch, at_once, rate in network_rates(predictor, image):
        print(f"  network alone, batch {batch:2}, {at_once} at once: {rate:8.1f} images/s", flush=True)
        fastest[at_once] = max(fastest.get(at_once, (0.0, 0)), (rate, batch))

    run_once(images, settings, WARM_UP)
    alone = [_alone(predictor, image, fastest)]
    measured: list[dict[str, float]] = []
    for number in range(rounds):
        done = run_once(images, settings, count)
        alone.append(_alone(predictor, image, fastest))
        network, parallel, network_cpu = (statistics.mean(pair) for pair in zip(*alone[-2:], strict=True))
        rate = done.images / done.seconds
        measured.append(
            {
                "images_per_second": rate,
                **{f"busy_{stage}": seconds / done.seconds for stage, seconds in done.busy.items()},
                "network_images_per_second": network,
                "efficiency": rate / network,
                "network_images_per_second_parallel": parallel,
                "efficiency_parallel": rate / parallel,
                "cpu_seconds_network": network_cpu,
                "cpu_seconds": done.cpu_seconds / done.images,
                "start_seconds": done.start_seconds,
            }
        )
        print(f"  run {number + 1} of {rounds}: {rate:.1f} images/s, network {network:.1f}", flush=True)
    efficiencies = [one["efficiency"] for one in measured]
    return {
        **{name: statistics.median(one[name] for one in measured) for name in measured[0]},
        "efficiency_lowest": min(efficiencies),
        "efficiency_highest": max(efficiencies),
        "network_batch": fastest[1][1],
        "images": count * rounds,
    }


def _alone(
    predictor: Predictor, image: PreparedImage, fastest: dict[int, tuple[float, int]]
) -> tuple[float, float, float]:
    """The network alone at its fastest batch sizes: images per second one batch at a time, the same with as many at
    once as is fastest, and the lower of both CPU seconds per image."""
    rates, costs = zip(
        *(_parallel_rate(predictor, image, batch, at_once) for at_once, (_, batch) in sorted(fastest.items())),
        strict=True,
    )
    return rates[0], max(rates), min(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=checkpoints.DEFAULT_MODEL)
    parser.add_argument("--checkpoint", help="local weights for that model")
    parser.add_argument("--images", type=Path, help="folder of images; without it, 640x480 cut from the demo photos")
    parser.add_argument("--count", type=int, default=300, help="images in a measured run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured runs (default: %(default)s)")
    parser.add_argument("--storage", choices=STORAGES, default="files")
    parser.add_argument("--maps", nargs="+", default=["max", "joints"], help="max, joints, or names of joints")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--batch-size", type=int, help="of the run; automatic without it")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-throughput-") as folder:
        settings = Settings(
            model=arguments.model,
            checkpoint=arguments.checkpoint,
            maps=tuple(arguments.maps),
            storage=arguments.storage,
            maps_dir=str(Path(folder) / "maps"),
            precision=arguments.precision,
            batch_size=arguments.batch_size,
        )
        if arguments.images:
            images = sorted(path for path in arguments.images.iterdir() if path.is_file())
        else:
            images = write_cuttings(Path(folder), min(arguments.count, 100))
        if not images:
            parser.error(f"{arguments.images} holds no files.")
        results = measure(settings, images, arguments.count, arguments.rounds)
    for name, value in results.items():
        print(f"{name:34} {value:10.3f}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
