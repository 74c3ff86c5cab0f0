"""Runs that FiftyOne's own workers take from the queue."""

import subprocess
import sys
import time
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.delegated import DelegatedOperationService

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
    made.reload()
    assert made.values("pose_status") == ["done"] * 6
    assert len(made.get_field_schema(ftype=fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap)) == 18
    assert all(Path(path).is_file() for path in made.values("pose_nose.map_path"))
