"""A run that is split into operations: which samples each of them gets, and what happens when they run."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone import ViewField as F
from fiftyone.operators.delegated import DelegatedOperationService

from inference import pipeline, runs, shards

REPOSITORY = Path(__file__).resolve().parent.parent.parent
URI = "@pose-heatmaps/higherhrnet/generate_heatmaps"
WRITTEN = ("pose_max", "pose_status")


@pytest.fixture
def numbered(dataset: Callable[..., fo.Dataset]) -> fo.Dataset:
    """103 samples; every second one has the tag 'odd'."""
    made = dataset()
    made.add_samples(
        [fo.Sample(filepath=f"/{i}.jpg", number=i, tags=["odd"] * (i % 2)) for i in range(103)], progress=False
    )
    made.add_sample_field("pose_status", fo.StringField)
    return made


def queue(view: fo.core.collections.SampleCollection, **settings: object) -> list:
    """Queue a small run; the operations as FiftyOne keeps them."""
    queued = foo.get_operator(URI)(view, **{"maps": "max", "keypoints": False, "input_size": 64, **settings})
    return [DelegatedOperationService().get(one.result["id"]) for one in queued]


def execute(operations: list) -> list[dict]:
    """What a worker does with operations, in this process; their results."""
    service = DelegatedOperationService()
    results = [service.execute_operation(operation) for operation in operations]
    assert all(result.error is None for result in results), [result.error for result in results]
    return [result.result for result in results]


RANGES = {
    "all": lambda made: made,
    "tagged": lambda made: made.match_tags("odd"),
    "filtered and sorted": lambda made: made.match(F("number") > 50).sort_by("number", reverse=True),
}
WRITTEN_DOWN = {
    "limited": lambda made: made.limit(50),
    "skipped": lambda made: made.skip(50),
    "taken": lambda made: made.take(50, seed=1),
    "shuffled": lambda made: made.shuffle(seed=1),
    "selected": lambda made: made.select(made.values("id")[::2]),
    "by the run's own field": lambda made: made.match(F("pose_status") != "done"),
    "by the modification time": lambda made: made.sort_by("last_modified_at"),
}


@pytest.mark.parametrize("name", [*RANGES, *WRITTEN_DOWN])
def test_shards_cover_the_target_once_whatever_happens_to_the_samples(numbered: fo.Dataset, name: str):
    target = (RANGES | WRITTEN_DOWN)[name](numbered)
    expected = sorted(target.values("id"))
    parts = shards.split(target, 4, WRITTEN)
    assert all((part.first is None) == (name in WRITTEN_DOWN) for part in parts)
    # as a worker gets them, after another one has done its part
    stored = [
        shards.Shard(fo.DatasetView._build(numbered, part.view._serialize()), part.first, part.last) for part in parts
    ]
    numbered.match(F("number") < 60).set_field("pose_status", "done").save("pose_status")
    found = [part.select().values("id") for part in stored]
    assert sorted(itertools.chain(*found)) == expected
    assert len(found) == 4
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_ranges_of_ids_come_before_the_filters(numbered: fo.Dataset):
    """MongoDB then reads the shard's own documents, not those of all others too."""
    part = shards.split(numbered.match_tags("odd"), 4, WRITTEN)[1]
    (plan,) = [
        stage
        for stage in numbered._sample_collection.database.command(
            "explain",
            {"aggregate": numbered._sample_collection.name, "pipeline": part.select()._pipeline(), "cursor": {}},
            verbosity="executionStats",
        ).items()
        if stage[0] == "executionStats"
    ]
    assert plan[1]["totalDocsExamined"] < 30


def test_fewer_samples_than_shards_are_fewer_shards(numbered: fo.Dataset):
    assert len(shards.split(numbered.match(F("number") < 3), 8, WRITTEN)) == 3
    assert len(shards.split(numbered.limit(3), 8, WRITTEN)) == 3


def test_too_many_samples_to_write_down_are_refused(numbered: fo.Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "MAX_IDS", 102)
    assert len(shards.split(numbered, 2, WRITTEN)) == 2
    with pytest.raises(ValueError, match=r"more than 102 samples.*match_tags\('todo'\)"):
        shards.split(numbered.shuffle(), 2, WRITTEN)


@pytest.mark.parametrize("limited", [False, True])
def test_slices_of_a_grouped_dataset(dataset: Callable[..., fo.Dataset], limited: bool):
    made = dataset()
    made.add_group_field("group", default="left")
    groups = [fo.Group() for _ in range(20)]
    made.add_samples(
        [
            fo.Sample(filepath=f"/{i}-{side}.jpg", group=group.element(side))
            for i, group in enumerate(groups)
            for side in ("left", "right")
        ],
        progress=False,
    )
    target = made.select_group_slices("right")
    target = target.limit(12) if limited else target
    found = [part.select().values("filepath") for part in shards.split(target, 3, WRITTEN)]
    assert len(found) == 3
    assert sorted(itertools.chain(*found)) == sorted(target.values("filepath"))
    assert all(path.endswith("right.jpg") for path in itertools.chain(*found))


# --- as operations


def test_each_shard_does_its_samples_and_can_be_run_again(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    operations = queue(made, maps_dir=str(tmp_path), shards=3)
    assert [operation.label for operation in operations] == [
        f"Generate pose heatmaps, part {number} of 3" for number in (1, 2, 3)
    ]
    record = runs.read_record(made, "pose")
    assert record is not None, "the record is there before any shard begins"
    assert made.has_field("pose_max")

    assert [result["done"] for result in execute(operations[:2])] == [2, 2]
    made.reload()
    assert made.values("pose_status") == ["done"] * 4 + [None] * 2
    assert runs.read_record(made, "pose") == record

    again = DelegatedOperationService().rerun_operation(operations[1].id)
    results = execute([again, operations[2]])
    assert [(result["done"], result["skipped"]) for result in results] == [(0, 2), (2, 0)]
    assert runs.counts(made, "pose") == (6, 0)
    assert len({Path(path).parents[2] for path in made.values("pose_max.map_path")}) == 1
    assert len([*tmp_path.rglob("*.png")]) == 6


def test_a_worker_loads_the_model_once_for_all_of_its_shards(dataset: Callable, photos: Path, tmp_path: Path):
    execute(queue(dataset(photos), maps_dir=str(tmp_path), shards=3))
    loads = sys.modules["fiftyone.plugins.orgs.pose_heatmaps.higherhrnet.inference.pipeline"]._load
    before = loads.cache_info()
    execute(queue(dataset(photos), maps_dir=str(tmp_path), shards=3))
    after = loads.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (3, 0)
    execute(queue(dataset(photos), maps_dir=str(tmp_path), shards=2, flip=True))
    assert loads.cache_info().misses == before.misses + 1, "other settings of the network"


def test_shards_replace_a_run_once(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    settings = pipeline.Settings(maps=("max", "nose"), maps_dir=str(tmp_path), input_size=64, floor=0.3)
    pipeline.run(made, settings, progress=False)
    old = runs.read_record(made, "pose").run_id

    operations = queue(made, maps_dir=str(tmp_path), shards=2, existing="replace")
    record = runs.read_record(made, "pose")
    execute(operations[:1])
    execute([DelegatedOperationService().rerun_operation(operations[0].id)])
    made.reload()
    assert made.values("pose_status") == ["done"] * 3 + [None] * 3
    assert [old in path for path in made.values("pose_max.map_path")] == [False] * 3 + [True] * 3
    assert made.count("pose_nose") == 3, "the old maps stay until the other shard has run"

    execute(operations[1:])
    made.reload()
    assert runs.read_record(made, "pose").run_id == record.run_id != old
    assert runs.read_record(made, "pose").previous == ()
    assert not (tmp_path / old).exists()
    assert not made.has_field("pose_nose")
    assert {path.name for path in tmp_path.rglob("*.png")} == {"max.png"}
    assert len([*tmp_path.rglob("*.png")]) == 6


def test_a_filter_on_what_the_run_replaces_is_answered_when_it_is_queued(
    dataset: Callable, photos: Path, tmp_path: Path
):
    made = dataset(photos)
    settings = pipeline.Settings(maps=("max",), maps_dir=str(tmp_path), input_size=64)
    pipeline.run(made.limit(4), settings, progress=False)
    done = made.match(F("pose_status") == "done")
    results = execute(queue(done, maps_dir=str(tmp_path), shards=2, existing="replace"))
    assert [result["done"] for result in results] == [2, 2]


def test_a_shard_of_a_run_that_was_replaced_says_so(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    first, second = queue(made, maps_dir=str(tmp_path), shards=2)
    execute([first])
    settings = pipeline.Settings(maps=("max",), keypoints=False, maps_dir=str(tmp_path), input_size=64, floor=0.1)
    pipeline.run(made, settings, existing="replace", progress=False)
    result = DelegatedOperationService().execute_operation(second)
    assert "was replaced or deleted meanwhile" in result.error
    assert runs.counts(made, "pose") == (6, 0)
    assert len([*tmp_path.rglob("*.png")]) == 6


def test_a_run_that_is_replaced_while_it_goes_on_stops(dataset: Callable, photos: Path, tmp_path: Path):
    """Two calls with different settings at the same time: the later one wins, and its record is true of all maps."""
    made = dataset([photos / "rocket.jpg"] * 30)
    chosen = {"maps": ("max",), "keypoints": False, "maps_dir": str(tmp_path), "input_size": 64, "batch_size": 1}
    steps = pipeline.process(made, pipeline.Settings(**chosen))
    while next(steps).done < 3:
        pass
    pipeline.run(made, pipeline.Settings(**chosen, floor=0.1), existing="replace", progress=False)
    with pytest.raises(RuntimeError, match="replaced or deleted meanwhile"):
        for _ in steps:
            pass
    record = runs.read_record(made, "pose")
    assert record.settings["floor"] == 0.1
    folders = {Path(path).parents[2].name for path in made.match({"pose_status": "done"}).values("pose_max.map_path")}
    assert folders == {record.run_id}, "what is done has the maps that the record describes"

    # the few samples that both were at are done again
    state = pipeline.run(made, pipeline.Settings(**chosen, floor=0.1), progress=False)
    assert state.skipped >= 20
    assert made.values("pose_status") == ["done"] * 30
    assert {path.parents[2].name for path in tmp_path.rglob("*.png")} == {record.run_id}


def test_shards_need_delegation(dataset: Callable, photos: Path):
    made = dataset(photos)
    with pytest.raises(ValueError, match="leave delegate out"):
        queue(made, shards=2, delegate=False)
    with pytest.raises(ValueError, match="at least 1"):
        queue(made, shards=0)
    with pytest.raises(ValueError, match="no sample"):
        queue(made.limit(0), shards=2)
    assert made.list_runs() == []


def test_processes_that_begin_at_once_make_one_record(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    code = (
        "import sys, fiftyone as fo; from inference import checkpoints, pipeline, recording\n"
        "made = fo.load_dataset(sys.argv[1])\n"
        "settings = pipeline.Settings(maps_dir=sys.argv[2]).resolved(made)\n"
        "print('ready', flush=True); input()\n"
        "print(recording.open_record(made, settings, checkpoints.find_model(settings.model), 'the hash').run_id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, made.name, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    run_ids = [process.communicate(timeout=200)[0].strip() for process in processes]
    made.reload()
    assert run_ids == [runs.read_record(made, "pose").run_id] * 2
    document = made._sample_collection.database.datasets.find_one({"_id": made._doc.id})
    names = [field["name"] for field in document["sample_fields"]]
    assert len(names) == len(set(names))
    assert {"pose_max", "pose_left_wrist", "pose_status"} <= set(names)
