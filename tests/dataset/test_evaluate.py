"""Evaluating maps against labels: what is written, where areas come from, and what a second call does."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, Executor

from benchmarks import accuracy, generated
from evaluation import evaluate, records, skeletons, summary
from inference import attach, checkpoints, pipeline, runs
from inference.file_index import Matching
from inference.joints import AI_CHALLENGER, COCO
from inference.predictor import Predictor
from inference.settings import Settings

URI = "@pose-heatmaps/higherhrnet/evaluate_heatmaps"
COUNT = 8


@pytest.fixture
def operator() -> foo.Operator:
    return foo.get_operator(URI)


@pytest.fixture
def people() -> list[list[generated.Person]]:
    random = np.random.default_rng(3)
    return [generated.make_people(random, number % 3 + 1) for number in range(COUNT)]


@pytest.fixture
def made(people: list, tmp_path: Path) -> Iterator[fo.Dataset]:
    """Eight images with one to three people; of the first one, left and right arms and legs are swapped."""
    random = np.random.default_rng(4)
    samples = []
    for number, them in enumerate(people):
        seen = them if number else generated.swapped(them, random)
        paths = generated.save_maps(generated.draw_maps(seen, random), tmp_path / "maps" / str(number))
        samples.append(generated.make_sample(number, them, paths))
    dataset = generated.make_dataset(samples)
    yield dataset
    if fo.dataset_exists(dataset.name):
        fo.delete_dataset(dataset.name)


def coco_file(path: Path, people: list, names: tuple[str, ...] | None = None) -> str:
    """The same people as COCO annotations, with a crowd and somebody without labelled joints in the last image."""
    images, annotations = [], []
    for number, them in enumerate(people):
        name = names[number] if names else f"{number}.jpg"
        images.append({"id": 100 + number, "file_name": name, "width": generated.WIDTH, "height": generated.HEIGHT})
        for person in them:
            visible = 2 * ~np.isnan(person.points[:, 0])
            keypoints = np.column_stack([np.nan_to_num(person.points), visible])
            low, high = np.nanmin(person.points, axis=0), np.nanmax(person.points, axis=0)
            annotations.append(
                {"keypoints": keypoints.ravel().tolist(), "num_keypoints": int((visible > 0).sum()), "iscrowd": 0}
                | {"area": person.area, "bbox": [*low, *(high - low)], "image_id": 100 + number}
            )
    nobody = {"keypoints": [0] * 51, "num_keypoints": 0, "area": 4000.0, "image_id": 100 + len(people) - 1}
    annotations += [{**nobody, "iscrowd": crowd, "bbox": [600 * crowd, 0, 40, 40]} for crowd in (0, 1)]
    category = {"id": 1, "name": "person", "keypoints": list(COCO.joints), "skeleton": []}
    numbered = [{**annotation, "id": n, "category_id": 1} for n, annotation in enumerate(annotations, 1)]
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": [category]}))
    return str(path)


def written(dataset: fo.Dataset) -> list[str]:
    return [name for name in dataset.get_field_schema(flat=True) if name.rpartition(".")[2].startswith("eval_")]


def statuses(dataset: fo.Dataset) -> list:
    return dataset.values(["eval_worst", "eval_recall", "people.keypoints.eval_status", "eval_mistakes"])


# --- what is written


def test_joints_people_and_samples_say_what_became_of_them(operator, made: fo.Dataset):
    state = operator(made, gt_field="people")

    assert (state.total, state.done, state.failed) == (COUNT, COUNT, 0)
    person = made.first().people.keypoints[0]
    labelled = ~np.isnan(np.array(person.points)[:, 0])
    limbs = [k for k, joint in enumerate(COCO.joints) if joint.endswith(("elbow", "wrist", "knee", "ankle"))]
    both = [k for k in limbs if labelled[k] and labelled[COCO.flip[k]]]  # `made` has exchanged these
    assert both
    for k in both:
        assert (person.eval_status[k], person.eval_seen_as[k]) == ("swapped", COCO.joints[COCO.flip[k]])
    for joint in np.flatnonzero(~labelled):
        assert person.eval_status[joint] == person.eval_seen_as[joint] == "unlabelled"
    assert made.values("eval_worst") == ["swapped"] + [None] * (COUNT - 1)
    assert made.values("eval_status") == ["done"] * COUNT
    sound = made.skip(1)
    assert sound.values("eval_recall") == [1] * (COUNT - 1)
    assert sound.values("eval_oks") == [1] * (COUNT - 1)
    assert 0 < sound.mean("eval_distance") < 0.05
    other = sound.first().people.keypoints[0]
    found = [n for n, status in enumerate(other.eval_status) if status == "found"]
    assert all(other.eval_value[n] > 0.7 and other.eval_distance[n] < 0.1 for n in found)
    for n in found:
        assert other.eval_oks_distance[n] == pytest.approx(
            other.eval_distance[n] / (2 * COCO.sigmas[n]), rel=0.02, abs=2e-3
        )
    made.first().save()  # FiftyOne's own checks of types
    assert made.get_run_info("eval").config.record["kind"] == "ground truth"


def test_results_count_what_the_samples_say(operator, made: fo.Dataset):
    results = operator(made, gt_field="people").results

    assert results == records.load_results(fo.load_dataset(made.name), "eval")
    every = [s for image in made.values("people.keypoints.eval_status") for person in image for s in person]
    labelled = [status for status in every if status != "unlabelled"]
    assert results["labelled_joints"] == len(labelled)
    assert results["recall"] == pytest.approx(labelled.count("found") / len(labelled))
    counted = np.sum([list(of.values()) for of in results["statuses"].values()], axis=(0, 1))
    assert counted.tolist() == [labelled.count(s) for s in ("found", "shifted", "swapped", "taken", "missed")]
    assert sum(map(sum, results["seen_as"].values())) == len(labelled)
    assert sum(b["true"] for b in results["reliability"]) == labelled.count("found")
    assert sum(b["stray"] for b in results["reliability"]) == made.count("eval_stray_peaks.keypoints")
    assert results["worst"] == {"swapped": 1}
    assert results["figures"]["ap"] == pytest.approx(1)
    assert results["joints_named_by"] == "its skeleton"
    assert "AP 1.000" in summary.sentences(results)


def test_every_figure_leads_to_its_samples(operator, made: fo.Dataset):
    results = operator(made, gt_field="people").results
    for size, joints in results["statuses"].items():
        for joint, counts in joints.items():
            for status, count in zip(("found", "shifted", "swapped", "taken", "missed"), counts, strict=True):
                samples = summary.select(made, "eval", joint=joint, status=status, size=size)
                assert bool(len(samples)) == bool(count), (size, joint, status)
    for joint, counts in results["seen_as"].items():
        for other, count in zip((*COCO.joints, "nothing"), counts, strict=True):
            assert bool(len(summary.select(made, "eval", joint=joint, seen_as=other))) == bool(count)
    for part in results["reliability"]:
        samples = summary.select(made, "eval", stray=(part["from"], part["to"]))
        assert bool(len(samples)) == bool(part["stray"])
    highest = made.first()
    for number, peak in enumerate(highest.eval_stray_peaks.keypoints):
        peak.confidence = [0.5 if number else 1.0]
    highest.save()
    assert summary.select(made, "eval", stray=(0.9, 1.0)).values("id") == [highest.id]
    assert summary.select(made, "eval", worst="swapped").values("id") == [made.first().id]
    assert summary.select(made, "eval", status="swapped").values("id") == [made.first().id]


def test_nobody_there_only_false_peaks_and_no_labels_is_an_error(operator, made: fo.Dataset):
    first, second, third = made.limit(3)
    first["people"] = fo.Keypoints()
    second["people"] = None
    third["pose_nose"] = None
    fourth = made.skip(3).first()
    fourth.pose_keypoints = keypoints_of(14)
    for sample in (first, second, third, fourth):
        sample.save()
    state = operator(made, gt_field="people")
    assert (state.done, state.failed) == (COUNT - 3, 3)
    assert "fewer points than the run has joints" in made.skip(3).first().eval_status
    first, second, third = made.limit(3)
    assert (first.eval_worst, first.eval_recall) == ("false", None)
    assert first.eval_false_peaks == len(first.eval_stray_peaks.keypoints) > 10
    assert second.eval_status == "It has no labels in 'people'."
    assert third.eval_status == "It has no map of nose."
    assert (third.eval_recall, third.eval_missed) == (None, None)


# --- areas


def test_areas_come_from_annotations_attributes_or_estimates(operator, made: fo.Dataset, people: list, tmp_path: Path):
    annotations = coco_file(tmp_path / "coco.json", people)
    true = [[person.area for person in them] for them in people]

    results = operator(made, gt_field="people", annotations=annotations).results
    assert results["areas_from"] == {"annotations": sum(map(len, people)), "attributes": 0, "estimated": 0}
    assert results["annotations_found_by"] == {"file name": COUNT}
    assert results["figures"]["ap"] == pytest.approx(1)
    for found, expected in zip(made.values("people.keypoints.eval_area"), true, strict=True):
        assert found == pytest.approx(expected, abs=0.01)

    estimated = operator(made, gt_field="people", eval_key="guess").results
    assert estimated["areas_from"]["estimated"] == sum(map(len, people))
    ratios = np.concatenate(made.values("people.keypoints.guess_area")) / np.concatenate(true)
    assert 0.3 < np.median(ratios) < 3

    made.set_values("people.keypoints.area", true)
    given = operator(made, gt_field="people", eval_key="given").results
    assert given["areas_from"]["attributes"] == sum(map(len, people))


def test_images_are_matched_by_id_first_and_crowds_are_ignored(
    operator, made: fo.Dataset, people: list, tmp_path: Path
):
    annotations = coco_file(tmp_path / "coco.json", people, tuple(f"{9 - n}.jpg" for n in range(COUNT)))
    made.set_values("people_coco_id", [100 + number for number in range(COUNT)])
    maps = generated.draw_maps(people[-1], np.random.default_rng(0))
    maps[:, 3:6, 3:6] = maps[:, 3:6, -6:-3] = maps[:, -6:-3, 3:6] = (
        0.8  # on somebody without joints, on a crowd, on nobody
    )
    last = made.last()
    for joint, path in generated.save_maps(maps, tmp_path / "last").items():
        last[f"pose_{joint}"] = fo.Heatmap(map_path=path)
    last.save()

    results = operator(made, gt_field="people", annotations=annotations).results
    assert results["annotations_found_by"] == {"coco_id": COUNT}
    assert made.values("eval_false_peaks") == [0] * (COUNT - 1) + [len(COCO)]


def test_annotations_without_optional_keys_are_completed(operator, made: fo.Dataset, people: list, tmp_path: Path):
    path = Path(coco_file(tmp_path / "coco.json", people))
    content = json.loads(path.read_text())
    crowd = next(annotation for annotation in content["annotations"] if annotation["iscrowd"])
    bare = [{name: a[name] for name in ("keypoints", "image_id", "category_id")} for a in content["annotations"]]
    bare[0]["bbox"] = content["annotations"][0]["bbox"]
    bare[1]["bbox"] = []
    bare[-1] = {**crowd, "keypoints": []}
    path.write_text(json.dumps({**content, "annotations": bare}))

    results = operator(made, gt_field="people", annotations=path).results
    assert results["areas_from"] == {"annotations": 1, "attributes": 0, "estimated": sum(map(len, people)) - 1}
    assert results["figures"]["ap"] == pytest.approx(1)
    bare[0]["keypoints"] = bare[0]["keypoints"][:-3]
    path.write_text(json.dumps({**content, "annotations": bare}))
    with pytest.raises(ValueError, match="not a COCO keypoint file"):
        operator(made, gt_field="people", eval_key="other", annotations=path)


def test_annotations_are_read_again_only_if_they_changed(people: list, tmp_path: Path):
    settings = evaluate.Settings(annotations=coco_file(tmp_path / "coco.json", people))
    first = evaluate.read_annotations(settings)
    assert evaluate.read_annotations(settings) is first
    coco_file(tmp_path / "coco.json", people[:-1])
    assert evaluate.read_annotations(settings).sha256 != first.sha256


def test_a_missing_ap_is_explained(operator, made: fo.Dataset, people: list, tmp_path: Path):
    others = coco_file(tmp_path / "coco.json", people, tuple(f"other-{n}.jpg" for n in range(COUNT)))
    results = operator(made, gt_field="people", annotations=others).results
    assert "no AP: no image was found in the annotations" in summary.sentences(results)
    made.set_values("people", [fo.Keypoints()] * COUNT)
    assert "no AP: nobody is labelled" in summary.sentences(operator(made, gt_field="people", eval_key="b").results)
    made.delete_sample_field("pose_keypoints")
    results = operator(made, gt_field="people", eval_key="c").results
    assert "no AP: the run stored no people" in summary.sentences(results)


def test_a_sample_whose_run_stored_no_people_does_not_count_for_ap(operator, made: fo.Dataset):
    last = made.last()
    last.pose_keypoints = None
    last.save()
    results = operator(made, gt_field="people").results
    assert (results["samples"], results["images_for_ap"]) == (COUNT, COUNT - 1)
    assert results["figures"]["ap"] == pytest.approx(1)
    assert made.last().eval_oks is None
    assert made.last().people.keypoints[0].eval_oks is None


def test_an_area_that_is_no_number_does_not_stop_it(operator, made: fo.Dataset):
    made.set_values("people.keypoints.area", [[float("nan")] * len(s.people.keypoints) for s in made])
    assert operator(made, gt_field="people").results["areas_from"]["attributes"] == 0


def test_a_file_that_is_no_annotations_is_refused(operator, made: fo.Dataset, tmp_path: Path):
    (tmp_path / "list.json").write_text("[1, 2]")
    for path, words in ((tmp_path / "list.json", "not a COCO keypoint file"), (tmp_path / "no.json", "cannot be read")):
        with pytest.raises(ValueError, match=words):
            operator(made, gt_field="people", annotations=path)
    assert written(made) == []


# --- joints


def test_joints_are_compared_by_name_or_as_mapped(operator, made: fo.Dataset):
    names = [joint.replace("_", " ").title() for joint in COCO.joints]
    names[0], names[9] = "Snout", "Paw"
    made.skeletons["people"] = fo.KeypointSkeleton(labels=names, edges=[])
    made.save()

    results = operator(made, gt_field="people").results
    assert results["joints"] == [joint for joint in COCO.joints if joint not in ("nose", "left_wrist")]
    statuses = made.last().people.keypoints[0].eval_status
    assert (len(statuses), statuses[0], statuses[9]) == (17, "unlabelled", "unlabelled")
    with pytest.raises(ValueError, match=r"was made with other settings: joints"):
        operator(made, gt_field="people", joints={"Snout": "nose"})
    again = operator(made, gt_field="people", joints={"Snout": "nose", "Paw": "left_wrist"}, existing="replace")
    assert again.results["joints"] == list(COCO.joints)
    with pytest.raises(ValueError, match="same joint of the maps"):
        operator(made, gt_field="people", eval_key="other", joints={"Snout": "nose", "Paw": "nose"})


def test_joints_that_are_mapped_are_found_in_the_annotations_too(
    operator, made: fo.Dataset, people: list, tmp_path: Path
):
    made.skeletons["people"] = fo.KeypointSkeleton(labels=["Snout", *COCO.joints[1:]], edges=[])
    made.save()
    annotations = coco_file(tmp_path / "coco.json", people)
    results = operator(made, gt_field="people", annotations=annotations, joints={"Snout": "nose"}).results
    assert results["joints"] == list(COCO.joints)
    assert results["figures"]["ap"] == pytest.approx(1)


def test_without_a_skeleton_the_number_of_joints_tells(operator, made: fo.Dataset):
    del made.skeletons["people"]
    made.save()
    results = operator(made, gt_field="people").results
    assert results["joints_named_by"] == "the run 'pose', which has as many joints"
    made.set_values("people", [keypoints_of(14)] * COUNT)
    with pytest.raises(ValueError, match="and crowdpose-14 and ai-challenger-14 have as many"):
        skeletons.label_names(made, "people", "pose")
    record = runs.read_record(made, "pose")
    runs.save_record(made, dataclasses.replace(record, joints=AI_CHALLENGER.joints))
    assert skeletons.label_names(made, "people", "pose")[0] == AI_CHALLENGER.joints
    made.set_values("people", [keypoints_of(17)] * COUNT)
    assert skeletons.label_names(made, "people", "pose") == (COCO.joints, "coco-17, which has as many joints")


def keypoints_of(count: int) -> fo.Keypoints:
    return fo.Keypoints(keypoints=[fo.Keypoint(points=[(0.5, 0.5)] * count)])


# --- the form


def form_of(operator: foo.Operator, dataset: fo.Dataset, **params: object) -> tuple[ExecutionContext, dict]:
    """A context with these parameters, and the parts of the form, by name."""
    request = {"dataset_name": dataset.name, "params": params}
    ctx = ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)
    return ctx, operator.resolve_input(ctx).type.properties


def test_the_form_asks_for_joints_whose_names_do_not_tell(operator, made: fo.Dataset):
    names = [*COCO.joints[:9], "Paw", *COCO.joints[10:]]
    made.skeletons["people"] = fo.KeypointSkeleton(labels=names, edges=[])
    made.save()
    given = {"label_field": "pose", "gt_field": "people", "eval_key": "eval"}
    _, form = form_of(operator, made, **given)
    assert form["gt_field"].type.values == ["people"]  # not what the run wrote
    assert [name for name in form if name.startswith("joint_")] == ["joint_9"]
    assert form["joint_9"].view.label == "'Paw' of the labels is"
    assert form["notice"].view.label.startswith("8 images; areas from attributes, or estimated.")

    ctx, _ = form_of(operator, made, **given, joint_9="left_wrist")
    for _ in operator.execute(ctx):
        pass
    assert records.load_results(made, "eval")["joints"] == list(COCO.joints)
    _, form = form_of(operator, made, **given, threshold=0.5)
    assert "with other settings: joints" in form["problem_0"].view.label
    _, form = form_of(operator, made, **given, threshold=0.5, existing="replace")
    assert "problem_0" not in form


def test_advanced_settings_count_only_while_they_are_switched_on(operator, made: fo.Dataset):
    given = {"gt_field": "people", "threshold": 0.5, "radius": 0.3, "skip_existing": False}
    for advanced, expected in ((False, (0.2, 0.15)), (True, (0.5, 0.3))):
        ctx, _ = form_of(operator, made, **given, advanced=advanced, existing="replace")
        list(operator.execute(ctx))
        settings = records.read_record(made, "eval").settings
        assert (settings["threshold"], settings["radius"]) == expected
    ctx, _ = form_of(operator, made, **{**given, "threshold": 0.2, "radius": 0.15}, advanced=True, existing="replace")
    list(operator.execute(ctx))
    made.set_values("eval_worst", ["kept"] * COUNT)
    list(operator.execute(form_of(operator, made, **given, advanced=False)[0]))
    assert made.values("eval_worst") == ["kept"] * COUNT, "skip_existing=False does not count either"


@pytest.mark.parametrize("declared", [True, False])
def test_attributes_of_the_users_labels_are_not_written_over(operator, made: fo.Dataset, declared: bool):
    made._sample_collection.update_many({}, {"$set": {"people.keypoints.$[].person_area": 5.0}})
    if declared:
        made.add_sample_field("people.keypoints.person_area", fo.FloatField)
    with pytest.raises(ValueError, match="Labels have attributes 'person_…' that are not of an evaluation 'person'"):
        operator(made, gt_field="people", eval_key="person")
    assert made.list_runs() == ["pose"]
    assert operator(made, gt_field="people").done == COUNT
    assert operator(made, gt_field="people").skipped == COUNT


def test_a_view_chooses_samples_not_labels(operator, made: fo.Dataset):
    everybody = made.count("people.keypoints")
    state = operator(
        made.filter_labels("people", fo.ViewField("label") == "nobody", only_matches=False), gt_field="people"
    )
    assert state.results["people"] == everybody


def test_the_form_says_what_is_missing(operator, dataset, photos: Path):
    made = dataset(photos)
    _, form = form_of(operator, made)
    assert form["problem_0"].view.label.startswith("This dataset has no heatmaps of joints.")


# --- again, elsewhere, and away


def test_a_run_that_was_stopped_goes_on_and_comes_to_the_same(operator, made: fo.Dataset, monkeypatch):
    operator(made, gt_field="people", eval_key="eval")
    whole, results = statuses(made), records.load_results(made, "eval")
    operator(made, gt_field="people", eval_key="other")  # stays
    records.delete(made, "eval")

    monkeypatch.setattr(evaluate, "BATCH", 3)
    steps = evaluate.process(made, evaluate.Settings(gt_field="people"))
    next(steps), next(steps)
    steps.close()
    assert made.values("eval_status").count("done") == 3
    state = operator(made, gt_field="people")
    assert (state.total, state.skipped) == (COUNT - 3, 3)
    assert statuses(made) == whole
    assert records.load_results(made, "eval") == results
    assert made.values("other_status") == ["done"] * COUNT
    assert operator(made, gt_field="people").total == 0
    assert operator(made, gt_field="people", skip_existing=False).total == COUNT


def test_samples_with_maps_attached_anew_are_evaluated_anew(operator, made: fo.Dataset, people: list, tmp_path: Path):
    operator(made, gt_field="people")
    operator(made, gt_field="people", eval_key="other")
    maps = generated.save_maps(generated.draw_maps(people[0], np.random.default_rng(4)), tmp_path / "anew")
    for joint, path in maps.items():  # the first image's, with nothing swapped
        Path(path).rename(tmp_path / "anew" / f"0_{joint}.png")
    attached = attach.attach(made.limit(3), Matching(str(tmp_path / "anew"), pattern=""), progress=False)
    assert (attached.done, attached.failed) == (1, 0)
    made.reload()
    for key in ("eval", "other"):
        assert made.values(f"{key}_status") == [None] + ["done"] * (COUNT - 1)
    state = operator(made, gt_field="people")
    assert (state.done, state.skipped) == (1, COUNT - 1)
    assert state.results["worst"] == {}
    assert made.first().eval_worst is None


def test_a_view_by_what_is_deleted_is_refused(operator, made: fo.Dataset):
    operator(made, gt_field="people")
    for view in (
        made.match({"eval_worst": "swapped"}),
        summary.select(made, "eval", joint="left_wrist", status="swapped"),
        made.filter_keypoints("people", filter=fo.ViewField("eval_status") == "swapped"),
    ):
        with pytest.raises(ValueError, match=r"The view goes by '.*eval_\w+', which is deleted"):
            operator(view, gt_field="people", threshold=0.3, existing="replace")
    assert made.values("eval_status") == ["done"] * COUNT
    params = {"gt_field": "people", "threshold": 0.3, "view_target": "CURRENT_VIEW"}
    request = {"dataset_name": made.name, "params": params, "view": view._serialize()}
    ctx = ExecutionContext(request_params=request, executor=Executor(), operator_uri=URI)
    assert "The view goes by" in operator.resolve_input(ctx).type.properties["problem_0"].view.label
    assert operator(made.limit(3), gt_field="people", threshold=0.3, existing="replace").done == 3


def test_evaluated_by_a_worker(operator, made: fo.Dataset):
    queued = operator(made.limit(5), gt_field="people", threshold=0.3, delegate=True)
    assert queued.delegated
    DelegatedOperationService().execute_queued_operations(operator=URI)
    operation = DelegatedOperationService().list_operations(operator=URI)[-1]
    assert operation.run_state == "completed"
    assert "5 of 5 samples evaluated" in operation.result.result["summary"]
    made.reload()
    assert made.values("eval_status") == ["done"] * 5 + [None] * 3
    assert records.list_records(made)["eval"].settings["threshold"] == 0.3


def test_a_worker_finds_annotations_by_a_relative_path(
    operator, made: fo.Dataset, people: list, tmp_path: Path, monkeypatch
):
    coco_file(tmp_path / "coco.json", people)
    monkeypatch.chdir(tmp_path)
    operator(made, gt_field="people", annotations="coco.json", delegate=True)
    monkeypatch.chdir("/")
    (result,) = DelegatedOperationService().execute_queued_operations(operator=URI, dataset_name=made.name)
    assert result.error is None
    assert records.load_results(made, "eval")["annotations_found_by"] == {"file name": COUNT}


def test_deleting_leaves_no_trace(operator, made: fo.Dataset):
    before = list(made.get_field_schema(flat=True))
    operator(made, gt_field="people")
    assert len(written(made)) > 15
    foo.get_operator("@pose-heatmaps/higherhrnet/delete_evaluation")(made, "eval")
    made.reload()
    assert written(made) == []
    assert set(made.get_field_schema(flat=True)) == set(before)
    assert made.list_runs() == ["pose"]
    stored = made._sample_collection.find_one()
    assert not [name for name in (*stored, *stored["people"]["keypoints"][0]) if name.startswith("eval_")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gt_field": "pose_nose"}, "not a field of fo.Keypoints; the dataset's are people, pose_keypoints"),
        ({"label_field": "other"}, "no maps of single joints"),
        ({"eval_key": "my key"}, "letters, digits"),
        ({"eval_key": "pose"}, "another run with the key 'pose'"),
        ({"threshold": 0}, "above 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(operator, made: fo.Dataset, arguments, words):
    with pytest.raises(ValueError, match=words):
        operator(made, **{"gt_field": "people", **arguments})
    assert written(made) == []
    assert made.list_runs() == ["pose"]


@pytest.mark.parametrize("all_groups", [False, True])
def test_ap_is_that_of_the_accuracy_benchmark(operator, data_dir: Path, tmp_path: Path, all_groups: bool):
    """On photos: of the people that a run stores by default, and of all groups, which is how AP is published."""
    annotations = json.loads((data_dir / "val/person_keypoints.json").read_text())
    annotations["images"] = annotations["images"][:24]
    (tmp_path / "some.json").write_text(json.dumps(annotations))
    photos = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(data_dir / "val/images"),
        labels_path=str(tmp_path / "some.json"),
        label_types="keypoints",
        include_id=True,
        label_field="people",
        progress=False,
    )
    settings = Settings(maps_dir=str(tmp_path / "maps"), all_groups=all_groups)
    pipeline.run(photos, settings, progress=False)
    results = operator(photos, gt_field="people_keypoints", annotations=tmp_path / "some.json").results

    model = checkpoints.load(settings.model)
    predictor = Predictor(model.network, model.entry.joint_set.flip, model.entry.input_size)
    truth = accuracy.COCO(str(tmp_path / "some.json"))
    figures = accuracy.measure(predictor, model.entry.joint_set, data_dir / "val/images", truth, None)
    names = {"ap": "ap", "ap50": "ap50", "ar": "ar"}
    if not all_groups:
        names = {f"stored_{name}": name for name in results["figures"]}
    assert results["images_for_ap"] == len(photos) == 24
    assert results["annotations_found_by"] == {"coco_id": 24}
    assert results["joints_named_by"] == "the annotations"
    assert 0 < results["figures"]["ap"] < 1
    for published, ours in names.items():
        assert results["figures"][ours] == pytest.approx(figures[published], abs=1e-6), ours
    photos.delete()
