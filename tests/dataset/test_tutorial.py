"""The tutorial does what it says: its Python is run from top to bottom."""

import re
from pathlib import Path

import fiftyone as fo
import pytest

from benchmarks.app import wait_until_connected
from benchmarks.database import free_port

TUTORIAL = Path(__file__).resolve().parent.parent.parent / "docs" / "tutorial.md"


def test_the_tutorials_code_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fo.config, "default_app_port", free_port())
    text = TUTORIAL.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) > 10
    names: dict = {}
    try:
        for block in blocks:
            line = text[: block.start(1)].count("\n")  # so that errors name the line of the tutorial
            exec(compile("\n" * line + block[1], str(TUTORIAL), "exec"), names)
            if "session" in names:
                wait_until_connected(names["session"])

        dataset = names["dataset"]
        assert dataset.list_runs() == ["pose"]
        assert dataset.values("pose_status") == ["done"] * 5
        assert [Path(path).stem for path in names["people"].values("filepath")] == ["astronaut", "camera"]
        assert not dataset.has_field("script_nose")
        assert len(list(Path("saved").glob("*.npy"))) == 4
    finally:
        fo.close_app()
        if fo.dataset_exists("tutorial"):
            fo.delete_dataset("tutorial")
    printed = capsys.readouterr().out
    assert "5 of 5 samples got pose heatmaps" in printed
    for line in ("uint8 None file", "uint8 [0.0, 255.0] database", "float32 [0.0, 1.0] database"):
        assert line in printed
    assert "4 maps were attached to 2 of 5 samples, in 2 fields. 3 have no map" in printed


def test_the_tutorials_pictures_are_made_by_make_screenshots():
    pictures = set(re.findall(r"!\[.*?\]\(\.\./assets/screenshots/(\w+)\.png\)", TUTORIAL.read_text(encoding="utf-8")))
    assert pictures <= {"form", "grid", "overview"}
    assert pictures
