"""A database that is stopped while a run goes on: the run waits for it, or says so and resumes later."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.database import find_mongod, start_mongod

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COUNT = 60

# What `fiftyone delegated launch` does, once; after five batches it waits for a line. Arguments: photo, maps folder,
# patience.
WORKER = f"""
import sys
import threading
import fiftyone as fo
import fiftyone.operators as foo
from fiftyone.operators.delegated import DelegatedOperationService
photo, maps_dir, patience = sys.argv[1:]
operator = foo.get_operator("@pose-heatmaps/higherhrnet/generate_heatmaps")
from fiftyone.plugins.orgs.pose_heatmaps.higherhrnet.inference import pipeline, views
views.PATIENCE = int(patience)
write, gate, written = pipeline.bulk_write, threading.Lock(), []
def report(dataset, updates):
    with gate:
        written.append(updates)
        if len(written) == 6:
            print("wrote five", flush=True)
            sys.stdin.readline()
    write(dataset, updates)
pipeline.bulk_write = report
if fo.dataset_exists("photos"):
    dataset = fo.load_dataset("photos")
else:
    dataset = fo.Dataset("photos", persistent=True)
    dataset.add_samples([fo.Sample(filepath=photo) for _ in range({COUNT})], progress=False)
operator(dataset, maps_dir=maps_dir, maps="max", input_size=128, batch_size=1, delegate=True)
(result,) = DelegatedOperationService().execute_queued_operations(limit=1)
print(str(result.error or "").strip().splitlines()[-1:], flush=True)
print((result.result or {{}}).get("summary"), dataset.count_values("pose_status"), flush=True)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[list]:
    """[process, port] of a MongoDB of the test's own."""
    try:
        find_mongod()
    except FileNotFoundError as error:  # where the tests run on a server of the user's own
        pytest.skip(str(error))
    running = list(start_mongod(tmp_path / "database"))
    yield running
    running[0].kill()
    running[0].wait()


def stop(server: list) -> None:
    server[0].terminate()
    server[0].wait()


def restart(server: list, tmp_path: Path) -> None:
    server[0], _ = start_mongod(tmp_path / "database", server[1])


def start_worker(server: list, photos: Path, maps_dir: Path, patience: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "FIFTYONE_DATABASE_URI": f"mongodb://127.0.0.1:{server[1]}/?serverSelectionTimeoutMS=1000",
    }
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(photos / "rocket.jpg"), str(maps_dir), str(patience)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop_database_within(worker: subprocess.Popen, server: list) -> None:
    """Stop the database between two batches of a run."""
    if "wrote five\n" not in worker.stdout:
        pytest.fail("the run ended before its database was stopped")
    stop(server)
    worker.stdin.write("go on\n")
    worker.stdin.flush()


def test_a_run_goes_on_when_its_database_is_back(server: list, photos: Path, tmp_path: Path):
    worker = start_worker(server, photos, tmp_path / "maps", 120)
    stop_database_within(worker, server)
    time.sleep(3)
    restart(server, tmp_path)
    output, _ = worker.communicate(timeout=200)
    assert "The database cannot be reached; waiting for it" in output
    assert f"{COUNT} of {COUNT} samples got pose heatmaps" in output
    assert f"{{'done': {COUNT}}}" in output
    assert len([*(tmp_path / "maps").rglob("*.png")]) == COUNT


def test_a_run_whose_database_stays_away_says_so_and_resumes(server: list, photos: Path, tmp_path: Path):
    worker = start_worker(server, photos, tmp_path / "maps", 2)
    stop_database_within(worker, server)
    output, _ = worker.communicate(timeout=200)
    assert "could not be reached for 2 seconds. Start the database and run again: finished samples are kept" in output

    restart(server, tmp_path)
    worker = start_worker(server, photos, tmp_path / "maps", 120)
    output, _ = worker.communicate(timeout=200)
    assert "had them already" in output
    assert f"{{'done': {COUNT}}}" in output
    files = [*(tmp_path / "maps").rglob("*")]
    assert len([path for path in files if path.is_file()]) == COUNT
