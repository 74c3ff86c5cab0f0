"""Maps whose folder was moved are found again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from PIL import Image

from inference import pipeline, runs

URI = "@pose-heatmaps/higherhrnet/"


@pytest.fixture
def made(dataset: Callable[..., fo.Dataset], photos: Path, tmp_path: Path) -> fo.Dataset:
    """Six photos, the astronaut first, and a missing one, with maps in `tmp_path/"old $x"`."""
    made = dataset([*sorted(photos.iterdir()), tmp_path / "missing.jpg"])
    maps_dir = str(tmp_path / "old $x")
    pipeline.run(made, pipeline.Settings(maps=("max", "nose"), maps_dir=maps_dir, input_size=64), progress=False)
    return made


def relocate(made: fo.Dataset, folder: Path, label_field: str = "pose") -> int:
    return foo.get_operator(f"{URI}relocate_heatmaps")(made, label_field, str(folder))


def paths(made: fo.Dataset) -> list[str | None]:
    return [path for name in ("max", "nose") for path in made.values(f"pose_{name}.map_path")]


def test_moved_maps_are_found_again_and_new_ones_join_them(made: fo.Dataset, tmp_path: Path):
    new = tmp_path / "disk 2" / "maps"
    new.parent.mkdir()
    before, changed = paths(made), made.values("last_modified_at")
    shutil.move(tmp_path / "old $x", new)

    assert relocate(made, new) == 6

    assert [path and path.replace(str(tmp_path / "old $x"), str(new)) for path in before] == paths(made)
    assert all(Path(path).is_file() for path in paths(made) if path)
    assert made.first().pose_max.get_map().any()
    moved = [after > before for before, after in zip(changed, made.values("last_modified_at"), strict=True)]
    assert moved == [True] * 6 + [False]
    failed = made.match({"pose_status": {"$ne": "done"}}).first()
    assert (failed.pose_max, failed.pose_nose) == (None, None)
    assert runs.read_record(made, "pose").maps_dir == str(new)

    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(tmp_path / "missing.jpg")
    state = pipeline.run(made, pipeline.Settings(maps=("max", "nose"), input_size=64), progress=False)
    assert (state.done, state.skipped) == (1, 6)
    assert all(path.startswith(str(new)) for path in paths(made))
    assert not (tmp_path / "old $x").exists()


def test_a_folder_without_the_maps_is_refused_by_name(made: fo.Dataset, tmp_path: Path):
    before = paths(made)
    (tmp_path / "empty").mkdir()
    for folder, reason in (
        (tmp_path / "empty", r"max\.png is missing, as are 11 of 12 others.*that .*old \$x has become"),
        (tmp_path / "nowhere", "There is no folder"),
        (tmp_path / "old $x", "already"),
    ):
        with pytest.raises(ValueError, match=reason):
            relocate(made, folder)
    with pytest.raises(ValueError, match=r"'hands' is not the label field.*\(pose\)"):
        relocate(made, tmp_path / "empty", "hands")
    assert paths(made) == before


def test_one_run_moves_and_the_other_stays(made: fo.Dataset, tmp_path: Path):
    settings = pipeline.Settings(label_field="b", maps=("max",), maps_dir=str(tmp_path / "old $x"), input_size=64)
    pipeline.run(made, settings, progress=False)
    stays = made.values("b_max.map_path")
    shutil.copytree(tmp_path / "old $x", tmp_path / "copy")
    assert relocate(made, tmp_path / "copy") == 6
    assert made.values("b_max.map_path") == stays
    assert runs.read_record(made, "b").maps_dir == str(tmp_path / "old $x")


def test_a_clone_keeps_its_paths_until_it_is_relocated_itself(made: fo.Dataset, tmp_path: Path):
    clone = made.clone(f"{made.name}-clone", persistent=True)
    try:
        before = paths(clone)
        shutil.copytree(tmp_path / "old $x", tmp_path / "copy")
        relocate(made, tmp_path / "copy")
        clone.reload()
        assert paths(clone) == before
        assert relocate(clone, tmp_path / "copy") == 6
        assert paths(clone) == paths(made)
    finally:
        clone.delete()


def test_attached_maps_are_relocated_to_where_their_originals_went(
    dataset: Callable[..., fo.Dataset], photos: Path, tmp_path: Path
):
    made = dataset(photos)
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in photos.iterdir():
        Image.fromarray(np.full((20, 20), 90, np.uint8)).save(folder / f"{path.stem}.png")
    foo.get_operator(f"{URI}attach_heatmaps")(made, str(folder), label_field="depth", pattern="{stem}.png")
    shutil.move(folder, tmp_path / "moved")
    assert relocate(made, tmp_path / "moved", "depth") == 6
    assert all(Path(path).parent == tmp_path / "moved" for path in made.values("depth_max.map_path"))


def test_converted_maps_are_relocated_to_where_they_went(
    dataset: Callable[..., fo.Dataset], photos: Path, tmp_path: Path
):
    made = dataset(photos)
    (tmp_path / "theirs").mkdir()
    for path in photos.iterdir():
        np.save(tmp_path / "theirs" / f"{path.stem}.npy", np.ones((20, 20)))
    attach = foo.get_operator(f"{URI}attach_heatmaps")
    attach(made, str(tmp_path / "theirs"), label_field="depth", pattern="{stem}.npy", joint_pattern="", range=[0, 2])
    converted = Path(runs.read_record(made, "depth").maps_dir)
    shutil.copytree(converted, tmp_path / "moved")
    assert relocate(made, tmp_path / "moved", "depth") == 6
    assert all(path.startswith(str(tmp_path / "moved")) for path in made.values("depth_max.map_path"))


def test_a_run_without_maps_has_nothing_to_relocate(dataset: Callable[..., fo.Dataset], tmp_path: Path):
    made = dataset([tmp_path / "missing.jpg"])
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path / "maps"), input_size=64)
    pipeline.run(made, settings, progress=False)
    with pytest.raises(ValueError, match="No sample has maps of 'pose'"):
        relocate(made, tmp_path)


def test_maps_in_the_database_have_no_folder(dataset: Callable[..., fo.Dataset], photos: Path, tmp_path: Path):
    made = dataset([photos / "rocket.jpg"])
    pipeline.run(made, pipeline.Settings(maps=("max",), storage="memory", input_size=64), progress=False)
    with pytest.raises(ValueError, match="in the database, not in files"):
        relocate(made, tmp_path)
