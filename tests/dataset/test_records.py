"""Evaluations are kept as FiftyOne runs: listed, read back with their results, and deleted without a trace."""

from collections.abc import Callable
from dataclasses import replace

import fiftyone as fo
import pytest
from bson import ObjectId
from pymongo import UpdateOne

from evaluation import records


def test_a_record_and_its_results_come_back_until_they_are_deleted(dataset: Callable):
    made = dataset(["/nowhere/1.jpg", "/nowhere/2.jpg"])
    made.set_values("people", [fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5)])]) for _ in range(2)])
    made.set_values("eval_recall", [0.5, 1.0])
    made.add_sample_field("people.keypoints.eval_status", fo.ListField, subfield=fo.StringField)
    made.register_run("other", made.init_run(something="else"))
    record = records.Record(
        "eval", "ground truth", ("eval_recall",), ("people.keypoints.eval_status",), {"radius": 0.15}
    )

    records.save_record(made, record)
    assert records.load_results(made, "eval") is None
    records.save_results(made, "eval", {"ap": 0.5, "recall": {"nose": [1, 2]}})
    records.save_record(made, record)  # a second call keeps the results

    again = fo.load_dataset(made.name)
    assert records.list_records(again) == {"eval": record}
    assert records.list_records(again, "comparison") == {}
    assert records.load_results(again, "eval") == {"ap": 0.5, "recall": {"nose": [1, 2]}}
    assert records.read_record(again, "other") is None
    with pytest.raises(ValueError, match="another run with the key 'other'"):
        records.save_record(again, records.Record("other", "ground truth"))

    assert records.delete(again, "eval") == ["eval_recall", "people.keypoints.eval_status"]
    assert again.list_runs() == ["other"]
    assert not again.has_field("eval_recall")
    assert not again.has_field("people.keypoints.eval_status")
    with pytest.raises(ValueError, match="not the key of an evaluation"):
        records.delete(again, "eval")


def test_keys_that_would_overwrite_something_are_refused(dataset: Callable):
    made = dataset(["/nowhere/1.jpg"])
    made.set_values("eval_recall", [0.5])
    made.register_run("pose", made.init_run(something="else"))
    assert records.check_key(made, "fine", ["fine_recall"]) is None
    for key, words in (("my key", "letters, digits"), ("pose", "another run"), ("eval", "has a field 'eval_recall'")):
        assert words in str(records.check_key(made, key, [f"{key}_recall"]))
    records.save_record(made, records.Record("eval", "ground truth", ("eval_recall",)))
    assert records.check_key(made, "eval", ["eval_recall"]) is None


def test_what_is_written_while_an_evaluation_is_deleted_is_taken_back(dataset: Callable):
    made = dataset(["/nowhere/1.jpg", "/nowhere/2.jpg"])
    record = records.Record(
        "eval", "ground truth", ("eval_recall",), settings={"radius": 0.15, "annotations": "a.json"}
    )
    records.save_record(made, record)
    made.add_sample_field("eval_recall", fo.FloatField)
    updates = [UpdateOne({"_id": ObjectId(name)}, {"$set": {"eval_recall": 0.5}}) for name in made.values("id")]
    records.write(made, record, updates)
    assert made.values("eval_recall") == [0.5, 0.5]

    records.save_record(made, replace(record, settings={"radius": 0.15, "annotations": "moved.json"}))
    records.write(made, record, updates)
    records.save_record(made, replace(record, settings={"radius": 0.3, "annotations": "a.json"}))
    with pytest.raises(RuntimeError, match="'eval' was deleted or replaced meanwhile"):
        records.write(made, record, updates)
    assert made.values("eval_recall") == [None, None]

    records.save_record(made, record)
    records.delete(made, "eval")
    with pytest.raises(RuntimeError, match="'eval' was deleted or replaced meanwhile"):
        records.write(made, record, updates)
    assert [sample.filepath for sample in made] == ["/nowhere/1.jpg", "/nowhere/2.jpg"]
    assert not any("eval_recall" in sample.to_mongo_dict() for sample in made)
