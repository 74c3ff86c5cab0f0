"""What is lost when workers are killed: `python -m benchmarks.faults [--trials 20] [--json]`.

Each trial splits a run over small images into shards for three `fiftyone delegated launch` workers, and kills two of
them (SIGKILL) at random moments. Their operations are run again as a user would do it, `fiftyone delegated fail` and
`rerun`, by the third one and two new ones. Counted when nothing is left to do, over all trials:

    killed      operations whose worker was killed while it worked on them
    lost        samples that are not done at the end
    double      map files that no field refers to, fields whose file is not there, and samples whose fields are not all
                of one run
    repeated    images whose maps were written, or about to be, when their worker was killed, and had to be made again,
                and finished images that were made again nevertheless; at most the images in flight, for each kill
    unfinished  operations that did not complete
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# A database of its own, before FiftyOne is imported: no other worker takes these operations.
os.environ["FIFTYONE_DATABASE_NAME"] = f"pose-heatmaps-faults-{uuid.uuid4().hex[:12]}"

import fiftyone as fo
import fiftyone.operators as foo
from bson import ObjectId
from fiftyone.core.odm import get_db_client
from fiftyone.operators.delegated import DelegatedOperationService

from inference import runs

from .photos import write_cuttings

URI = "@pose-heatmaps/higherhrnet/generate_heatmaps"
WORKERS, KILLS, SHARDS = 3, 2, 4
BATCH = 4
# Per worker on 2 cores: 4 batches read or waiting, 3 at work or being written, and one that waits for them.
IN_FLIGHT = 8 * BATCH
LIMIT = 600  # seconds for a trial


@dataclass
class Trial:
    """What one trial counts; see the module."""

    killed: int
    lost: int
    double: int
    repeated: int
    unfinished: int
    seconds: float


class Worker:
    """A `fiftyone delegated launch` process."""

    def __init__(self, log: Path):
        self.log = log
        command = [str(Path(sys.executable).with_name("fiftyone")), "delegated", "launch"]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def operation(self) -> ObjectId | None:
        """The operation that it has begun and not ended, as its output says."""
        ids = re.findall(r"(?:Running operation|Operation) (\w{24})", self.log.read_text())
        return ObjectId(ids[-1]) if len(ids) % 2 else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Faults:
    """Trials one after the other, with workers that go on from one to the next."""

    def __init__(self, folder: Path, count: int, input_size: int):
        self.folder = folder
        self.input_size = input_size
        (folder / "photos").mkdir()
        self.paths = write_cuttings(folder / "photos", count, (80, 60))
        self.service = DelegatedOperationService()
        self.workers: list[Worker] = []
        self.logs = 0

    def trial(self, seed: int) -> Trial:
        started, choice = time.monotonic(), random.Random(seed)
        self.start_workers()
        with _dataset(self.paths) as dataset:
            maps_dir = self.folder / dataset.name
            operator = foo.get_operator(URI)
            shared = {"input_size": self.input_size, "batch_size": BATCH, "maps_dir": str(maps_dir)}
            queued = [ObjectId(one.result["id"]) for one in operator(dataset, shards=SHARDS, **shared)]
            killed: dict[ObjectId, int] = {}
            repeated = 0
            for share in sorted(choice.uniform(0.01, 0.7) for _ in range(KILLS)):
                one = self._kill(dataset, choice, int(share * len(self.paths)))
                remaining = self._remaining(dataset, one)
                killed[one] = len(remaining)
                repeated += _written(maps_dir, remaining)
            for one in killed:
                self.service.set_failed(one)
            again = [(one, ObjectId(self.service.rerun_operation(one).id)) for one in killed]
            self.start_workers()
            self._wait({*queued, *(new for _, new in again)})
            for old, new in again:
                result = self._result(new)
                repeated += max(0, result.get("done", 0) + result.get("failed", 0) - killed[old])
            finished = [*(set(queued) - set(killed)), *(new for _, new in again)]
            unfinished = sum(str(self.service.get(one).run_state) != "completed" for one in finished)
            lost = len(dataset) - runs.counts(dataset, "pose")[0]  # the photos are good: an error is a loss too
            return Trial(
                len(killed), lost, _double(dataset, maps_dir), repeated, unfinished, time.monotonic() - started
            )

    def start_workers(self) -> None:
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]
        while len(self.workers) < WORKERS:
            self.logs += 1
            self.workers.append(Worker(self.folder / f"worker-{self.logs}.log"))

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.kill()

    def _kill(self, dataset: fo.Dataset, choice: random.Random, count: int) -> ObjectId:
        """Kill a worker that works, a random time after so many samples are done; returns its operation."""
        self._poll(lambda: sum(runs.counts(dataset, "pose")) >= count)
        time.sleep(choice.uniform(0, 0.5))
        while True:
            self._poll(lambda: any(worker.operation() for worker in self.workers))
            worker = choice.choice([worker for worker in self.workers if worker.operation()])
            worker.kill()
            self.workers.remove(worker)
            operation = worker.operation()
            if operation and str(self.service.get(operation).run_state) == "running":
                return operation
            self.start_workers()  # it had just ended its operation; an idle worker proves nothing

    def _wait(self, operations: set[ObjectId]) -> None:
        """Until none of these is waiting or running."""
        states = ("completed", "failed")
        self._poll(lambda: all(str(self.service.get(one).run_state) in states for one in operations))

    def _poll(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nothing happens any more; see the workers' logs in {self.folder}.")
            time.sleep(0.3)  # looking costs the workers time

    def _remaining(self, dataset: fo.Dataset, operation: ObjectId) -> list[str]:
        """The ids of an operation's samples that are not done."""
        shard = self.service.get(operation).context.params["shard"]
        within = {"_id": {"$gte": ObjectId(shard["first"]), "$lte": ObjectId(shard["last"])}}
        return dataset.match({**within, "pose_status": {"$ne": runs.DONE}}).values("id")

    def _result(self, operation: ObjectId) -> dict[str, Any]:
        document = self.service.get(operation)
        return (document.result and document.result.result) or {}


@contextmanager
def _dataset(paths: list[Path]) -> Iterator[fo.Dataset]:
    dataset = fo.Dataset(f"faults-{uuid.uuid4().hex[:8]}", persistent=True)
    try:
        dataset.add_samples([fo.Sample(filepath=str(path)) for path in paths], progress=False)
        yield dataset
    finally:
        dataset.delete()


def _written(maps_dir: Path, sample_ids: list[str]) -> int:
    """How many of the samples have map files, or were about to have them when their worker was killed."""
    in_place = sum(any(maps_dir.glob(f"*/{one[-2:]}/{one}/*.png")) for one in sample_ids)
    about_to = 0
    for path in maps_dir.glob("*/.partial/*.lock"):
        with path.open("rb") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody's: the writer was killed
            about_to += sum(1 for _ in path.with_suffix("").iterdir())
    return in_place + about_to


def _double(dataset: fo.Dataset, maps_dir: Path) -> int:
    """Files that no field refers to, fields without their file, and samples whose maps are not all in one folder."""
    dataset.reload()
    heatmaps = runs.heatmap_fields(dataset)
    columns = [dataset.values(f"{name}.map_path") for name in heatmaps]
    rows = list(zip(*columns, strict=True))
    referred = {path for row in rows for path in row if path}
    there = {str(path) for path in maps_dir.rglob("*") if path.is_file()}
    folders = [{os.path.dirname(path or "") for path in row} for row in rows]
    return len(there ^ referred) + sum(len(one) != 1 or "" in one for one in folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--count", type=int, default=2000, help="images in a trial (default: %(default)s)")
    parser.add_argument("--input-size", type=int, default=64, help="of the network (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial's random moments")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on the last line")
    arguments = parser.parse_args()
    names = [name for name in Trial.__dataclass_fields__ if name != "seconds"]
    print(f"| trial | {' | '.join(names)} | seconds |\n|{'---|' * (len(names) + 2)}", flush=True)
    trials = []
    with tempfile.TemporaryDirectory(prefix="pose-heatmaps-faults-", ignore_cleanup_errors=True) as folder:
        faults = Faults(Path(folder), arguments.count, arguments.input_size)
        try:
            for number in range(arguments.trials):
                trials.append(faults.trial(arguments.seed + number))
                row = asdict(trials[-1])
                print(
                    f"| {number + 1} | {' | '.join(str(row[name]) for name in names)} | {row['seconds']:.0f} |",
                    flush=True,
                )
        finally:
            faults.stop_workers()
            get_db_client().drop_database(fo.config.database_name)
    totals = {"trials": len(trials), **{name: sum(getattr(trial, name) for trial in trials) for name in names}}
    totals["repeated_allowed"] = IN_FLIGHT * totals["killed"]
    print(", ".join(f"{name} {value}" for name, value in totals.items()))
    if arguments.json:
        print(json.dumps(totals))


if __name__ == "__main__":
    main()
