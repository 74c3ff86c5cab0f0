"""Runs that FiftyOne's own workers take from the queue."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from bson import ObjectId
from fiftyone.operators.delegated import DelegatedOperationService

from inference import runs

URI = "@pose-heatmaps/higherhrnet/generate_heatmaps"


def start_worker(log: Path, *options: str) -> subprocess.Popen:
    """`fiftyone delegated launch`, as a user runs it."""
    executable = Path(sys.executable).with_name("fiftyone")
    with open(log, "w") as output:
        return subprocess.Popen([str(executable), "delegated", "launch", *options], stdout=output, stderr=output)


def wait_until_finished(names: list[str], log: Path, limit: float = 200) -> list:
    """Poll the queue until no operation of these datasets is waiting or running; returns them."""
    service = DelegatedOperationService()
    deadline = time.monotonic() + limit
    while True:
        operations = [found for name in names for found in service.list_operations(operator=URI, dataset_name=name)]
        if all(str(operation.run_state) in ("completed", "failed") for operation in operations):
            return operations
        assert time.monotonic() < deadline, f"The worker did not finish:\n{log.read_text()}"
        time.sleep(1)


# --monitor runs each operation in a spawned process: nothing may depend on what the worker's own process has imported
@pytest.mark.parametrize("options", [(), ("--monitor",)], ids=["launch", "launch --monitor"])
def test_a_worker_takes_up_a_queued_run(dataset, photos: Path, tmp_path: Path, options: tuple[str, ...]):
    made = dataset(photos)
    queued = foo.get_operator(URI)(made, label_field="pose", maps_dir=str(tmp_path / "maps"), delegate=True)
    assert queued.delegated
    assert not made.has_field("pose_max")

    worker = start_worker(tmp_path / "worker.log", *options)
    try:
        (operation,) = wait_until_finished([made.name], tmp_path / "worker.log")
    finally:
        worker.terminate()
        worker.wait(timeout=30)

    assert str(operation.run_state) == "completed", operation.result and operation.result.error
    assert operation.status.progress == 1
    assert re.fullmatch(r"6 done, 0 failed of 6, \d+\.\d images/s", operation.status.label)
    result = operation.result.result
    assert {name: result[name] for name in ("done", "failed", "skipped", "failures")} == {
        "done": 6,
        "failed": 0,
        "skipped": 0,
        "failures": [],
    }
    assert result["maps_dir"] == str(tmp_path / "maps")
    made.reload()
    assert made.values("pose_status") == ["done"] * 6
    assert len(made.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)) == 18
    assert all(Path(path).is_file() for path in made.values("pose_nose.map_path"))


def running_operation(log: Path) -> str | None:
    """The operation that a worker has begun and not ended, as its output says."""
    found = re.findall(r"(?:Running operation|Operation) (\w{24})", log.read_text())
    return found[-1] if len(found) % 2 else None


def test_two_workers_share_the_shards_and_what_a_killed_one_had_is_run_again(dataset, photos: Path, tmp_path: Path):
    count, maps_dir = 48, tmp_path / "maps"
    made = dataset([photos / "rocket.jpg"] * count + [tmp_path / "missing.jpg"])
    queued = foo.get_operator(URI)(made, input_size=256, maps_dir=str(maps_dir), shards=3)
    assert len(queued) == 3
    logs = [tmp_path / f"worker{number}.log" for number in range(2)]
    workers = [start_worker(log) for log in logs]
    service = DelegatedOperationService()
    try:
        deadline = time.monotonic() + 200
        while True:  # stopped while the test looks, so that it cannot end its operation in between
            workers[0].send_signal(signal.SIGSTOP)
            killed = running_operation(logs[0])
            running = killed and str(service.get(ObjectId(killed)).run_state) == "running"
            if running and made.count_values("pose_status").get("done", 0):
                break
            workers[0].send_signal(signal.SIGCONT)
            assert time.monotonic() < deadline, logs[0].read_text()
            time.sleep(0.02)
        workers[0].kill()
        workers[0].wait()

        assert str(service.get(ObjectId(killed)).run_state) == "running", "FiftyOne does not know that it was killed"
        done = runs.counts(made, "pose")[0]
        assert 0 < done < count, "fields are there while the run goes on"
        assert all(Path(path).is_file() for path in made.exists("pose_nose").values("pose_nose.map_path"))

        service.set_failed(ObjectId(killed))
        service.rerun_operation(ObjectId(killed))
        operations = wait_until_finished([made.name], logs[1])
    finally:
        if workers[0].poll() is None:
            workers[0].send_signal(signal.SIGCONT)
        for worker in workers:
            worker.terminate()
            worker.wait(timeout=30)

    assert sorted(str(operation.run_state) for operation in operations) == ["completed"] * 3 + ["failed"]
    made.reload()
    assert runs.counts(made, "pose") == (count, 1)
    failures = [
        one
        for operation in operations
        if operation.result
        for one in (operation.result.result or {}).get("failures", [])
    ]
    assert [(one["file"], one["reason"]) for one in failures][-1:] == [
        (str(tmp_path / "missing.jpg"), f"There is no file {tmp_path / 'missing.jpg'}.")
    ]
    heatmaps = made.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)
    referred = {path for name in heatmaps for path in made.values(f"{name}.map_path") if path}
    assert len(referred) == 18 * count
    assert {str(path) for path in maps_dir.rglob("*") if path.is_file()} == referred
