"""The first command of the README, on what it does once everything is set up."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import fiftyone as fo

from benchmarks.app import DEMO_DATASET

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def test_the_demo_runs_again_and_again(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "benchmarks.demo"]
    try:
        for _ in range(2):
            done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
            assert "6 of 6 samples got pose heatmaps" in done.stdout, done.stderr
            assert "astronaut.jpg" in done.stdout
        assert cv2.imread(str(tmp_path / "demo_output" / "overview.png")) is not None
        demo = fo.load_dataset(DEMO_DATASET)
        maps = {path for path in demo.values("pose_max.map_path")}
        root = Path(demo.first().pose_max.map_path).parents[3]
        assert {str(path) for path in root.rglob("max.png")} == maps, "the first demo's maps are deleted"
    finally:
        if fo.dataset_exists(DEMO_DATASET):
            fo.delete_dataset(DEMO_DATASET)
