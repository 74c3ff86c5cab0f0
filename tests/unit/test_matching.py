"""What becomes of labelled joints, on maps drawn by hand."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation import coco, matching, skeletons
from evaluation.matching import Truth
from inference import runs
from inference.joints import COCO as JOINTS

WH = (80.0, 60.0)  # of the image; a map has half of it
AREA = 400.0  # a radius of 0.15 is 3 pixels then, and a shift at most 15
NAMES = ("nose", "left_wrist", "right_wrist")
NAN = (np.nan, np.nan)


def draw(*peaks: tuple[int, float, float, float]) -> np.ndarray:
    """Maps with Gaussians: joint, x and y in pixels of the image, value."""
    maps = np.zeros((3, 30, 40), np.float32)
    ys, xs = np.mgrid[:30, :40] * 2 + 1
    for joint, x, y, value in peaks:
        np.maximum(maps[joint], value * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 8), out=maps[joint])
    return maps


def truth(*people: list[tuple[float, float]], ignored: list | None = None) -> Truth:
    points = np.array(people, float).reshape(-1, 3, 2)
    boxes = np.array([[np.nanmin(p[:, 0]), np.nanmin(p[:, 1]), np.nanmax(p[:, 0]), np.nanmax(p[:, 1])] for p in points])
    return Truth(
        points,
        np.full(len(points), AREA),
        boxes.reshape(-1, 4) + np.array([-5, -5, 5, 5]),
        np.array(ignored or []).reshape(-1, 4),
    )


def judge(maps: np.ndarray, labels: Truth) -> matching.Verdict:
    return matching.judge(maps, labels, skeletons.twins(NAMES), WH)


def test_peaks_are_local_maxima_and_a_plateau_is_one():
    maps = draw((0, 21, 11, 0.9), (0, 61, 41, 0.5), (2, 31, 31, 0.15))
    maps[1, 10:13, 20:24] = 0.7
    peaks = matching.find_peaks(maps, WH)
    assert peaks.joints.tolist() == [0, 0, 1]
    assert peaks.places.tolist() == [[21, 11], [61, 41], [41, 21]]
    np.testing.assert_allclose(peaks.values, [0.9, 0.5, 0.7])


def test_a_wide_round_plateau_is_one_peak():
    ys, xs = np.mgrid[:200, :200]
    maps = np.zeros((1, 200, 200), np.float32)
    for x, y in ((60, 60), (150, 140)):
        maps[0, (xs - x) ** 2 + (ys - y) ** 2 <= 40**2] = 0.9
    assert matching.find_peaks(maps, (200, 200)).places.tolist() == [[60.5, 20.5], [150.5, 100.5]]


def test_peaks_on_the_border_count():
    maps = np.zeros((1, 30, 40), np.float32)
    maps[0, 0, 0] = maps[0, 29, 39] = 1
    assert matching.find_peaks(maps, WH).places.tolist() == [[1, 1], [79, 59]]


def test_found_missed_and_not_labelled():
    verdict = judge(draw((0, 21, 11, 0.9)), truth([(22, 11), (50, 40), NAN]))
    assert verdict.statuses.tolist() == [["found", "missed", "unlabelled"]]
    assert verdict.distances[0, 0] == pytest.approx(1 / 20)
    assert np.isnan(verdict.distances[0, 1:]).all()  # no peak at all
    assert 0.7 < verdict.values[0, 0] < 0.9
    assert verdict.values[0, 1] == 0
    assert verdict.peaks[0, 0] == pytest.approx(0.9)
    assert verdict.seen_as.tolist() == [[0, -1, -1]]
    assert verdict.kinds == []


def test_shifted_names_the_peak_nearby():
    verdict = judge(draw((1, 57, 41, 0.9)), truth([NAN, (51, 41), NAN]))
    assert verdict.statuses[0, 1] == "shifted"
    assert verdict.distances[0, 1] == pytest.approx(6 / 20)
    assert (verdict.kinds, verdict.stray.places.tolist()) == (["shifted"], [[57, 41]])


def test_the_distance_of_a_shifted_joint_is_that_of_its_own_peak():
    """Nearer by is the peak of somebody else, who stands right there."""
    verdict = judge(draw((0, 41, 41, 0.8), (0, 29, 41, 0.9)), truth([(37, 41), NAN, NAN], [(41, 41), NAN, NAN]))
    assert verdict.statuses[:, 0].tolist() == ["shifted", "found"]
    assert verdict.distances[:, 0].tolist() == [8 / 20, 0]
    assert verdict.peaks[:, 0] == pytest.approx([0.9, 0.8])


def test_a_peak_far_away_explains_no_joint():
    verdict = judge(draw((1, 21, 21, 0.9)), truth([NAN, (51, 41), NAN]))
    assert verdict.statuses[0, 1] == "missed"
    assert verdict.kinds == ["false"]


def test_swapped_with_the_other_side():
    verdict = judge(draw((2, 21, 41, 0.9), (1, 61, 41, 0.8)), truth([NAN, (21, 41), (61, 41)]))
    assert verdict.statuses.tolist() == [["unlabelled", "swapped", "swapped"]]
    assert sorted(verdict.kinds) == ["swapped", "swapped"]
    assert verdict.seen_as.tolist() == [[-1, 2, 1]]


def test_swapped_also_where_sides_are_near_each_other():
    """Each side's peak lies near enough to the other side's label to be taken for a shift."""
    verdict = judge(draw((2, 41, 41, 0.9), (1, 49, 41, 0.8)), truth([NAN, (41, 41), (49, 41)]))
    assert verdict.statuses.tolist() == [["unlabelled", "swapped", "swapped"]]


def test_a_peak_of_the_other_side_that_belongs_there_is_no_swap():
    verdict = judge(draw((2, 23, 41, 0.9)), truth([NAN, (21, 41), (23, 41)]))
    assert verdict.statuses.tolist() == [["unlabelled", "missed", "found"]]


def test_one_peak_for_two_people_is_taken_by_the_nearer_one():
    verdict = judge(draw((0, 21, 11, 0.9)), truth([(23, 11), NAN, NAN], [(21, 12), NAN, NAN]))
    assert verdict.statuses[:, 0].tolist() == ["taken", "found"]
    assert verdict.kinds == []


def test_two_peaks_for_two_people_are_both_found_even_if_one_is_nearest_to_both():
    maps = np.zeros((3, 30, 40), np.float32)
    maps[0, 5, 10], maps[0, 5, 13] = 0.9, 0.8  # 21 and 27
    labels = truth([(23.5, 11), NAN, NAN], [(20, 11), NAN, NAN])
    verdict = matching.judge(maps, labels, skeletons.twins(NAMES), WH, radius=0.25)
    assert verdict.statuses[:, 0].tolist() == ["found", "found"]
    assert verdict.distances[:, 0].tolist() == [3.5 / 20, 1 / 20]


def test_peaks_in_crowds_and_of_joints_without_a_label_are_nobodys_mistake():
    labels = truth([(21, 11), NAN, (31, 21)], ignored=[[60, 40, 80, 60]])
    maps = draw((0, 21, 11, 0.9), (2, 31, 21, 0.9), (0, 71, 51, 0.9), (1, 25, 15, 0.9), (1, 71, 11, 0.9))
    verdict = judge(maps, labels)
    assert verdict.kinds == ["false"]
    assert verdict.stray.places.tolist() == [[71, 11]]


def test_an_image_with_nobody_has_only_false_peaks():
    verdict = judge(draw((0, 21, 11, 0.9)), truth())
    assert verdict.statuses.shape == (0, 3)
    assert verdict.kinds == ["false"]


# --- people


def random_people(random: np.random.Generator, images: int) -> tuple[list, list]:
    """Annotations and results, with crowds, unlabelled people and equal scores."""
    annotations, people = [], []
    for image in range(1, images + 1):
        for _ in range(int(random.integers(0, 4))):
            points = random.uniform(0, 300, (17, 2))
            visible = (random.random(17) < 0.7) * 2 * (random.random() < 0.9)
            box = [*points.min(axis=0), *(points.max(axis=0) - points.min(axis=0))]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": 1,
                "keypoints": np.column_stack([points * (visible > 0)[:, None], visible]).ravel().tolist(),
                "num_keypoints": int((visible > 0).sum()),
                "area": float(random.choice([900.0, 5000.0, 40000.0])),
                "bbox": [float(value) for value in box],
                "iscrowd": int(random.random() < 0.1),
            }
            annotations.append(annotation)
            if random.random() < 0.8:
                moved = points + random.normal(0, random.choice([1, 5, 20]), points.shape)
                people.append((image, moved, float(round(random.uniform(0, 1), 1))))
    return annotations, people


@pytest.mark.parametrize("part", [3, 500])
def test_average_precision_in_parts_is_that_of_pycocotools(monkeypatch: pytest.MonkeyPatch, part: int):
    annotations, people = random_people(np.random.default_rng(0), 25)
    monkeypatch.setattr(coco, "PART", part)
    document = {
        image: {"keypoints": [{"points": (p / 300).tolist(), "score": score} for i, p, score in people if i == image]}
        for image in range(1, 26)
    }
    ours = coco.AveragePrecision(np.array(JOINTS.sigmas))
    for image in reversed(range(1, 26)):  # the order does not matter
        ours.add(
            image,
            [a for a in annotations if a["image_id"] == image],
            coco.results(document[image], range(17), (300, 300)),
        )

    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            "images": [{"id": image} for image in range(1, 26)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
        ground_truth.createIndex()
        results = [
            {
                "image_id": i,
                "category_id": 1,
                "keypoints": np.column_stack([p, np.ones(17)]).ravel().tolist(),
                "score": s,
            }
            for i, p, s in people
        ]
        whole = COCOeval(ground_truth, ground_truth.loadRes(results), "keypoints")
        whole.evaluate()
        whole.accumulate()
        whole.summarize()
    np.testing.assert_allclose(list(ours.figures().values()), whole.stats, atol=1e-9)
    assert 0 < whole.stats[0] < 1


def test_oks_is_that_of_pycocotools():
    annotations, people = random_people(np.random.default_rng(1), 1)
    while not people:
        annotations, people = random_people(np.random.default_rng(len(annotations) + 5), 1)
    usable = [a for a in annotations if a["num_keypoints"]]
    points = np.array([a["keypoints"] for a in usable]).reshape(-1, 17, 3)
    labels = Truth(
        np.where(points[..., 2:] > 0, points[..., :2], np.nan),
        np.array([a["area"] for a in usable]),
        np.zeros((len(usable), 4)),
        np.zeros((0, 4)),
    )
    ours = matching.oks(labels, np.array([p for _, p, _ in people]), np.array(JOINTS.sigmas))
    evaluation = COCOeval(iouType="keypoints")
    evaluation._gts[1, 1] = usable
    evaluation._dts[1, 1] = [
        {"keypoints": np.column_stack([p, np.ones(17)]).ravel(), "score": -n} for n, (_, p, _) in enumerate(people)
    ]
    evaluation.params.maxDets = [20]
    np.testing.assert_allclose(ours, evaluation.computeOks(1, 1).T, atol=1e-9)


def test_people_are_matched_one_to_one():
    similarities = np.array([[0.9, 0.8], [0.85, 0.05], [0.2, 0.09]])
    assert matching.match_people(similarities).tolist() == [0.8, 0.85, 0]
    assert matching.match_people(np.zeros((2, 0))).tolist() == [0, 0]


# --- names


def test_names_of_labels_find_their_joints():
    known = ("left_wrist", "right_wrist", "nose", "head")
    names = ("Left Wrist", "rightWrist", "r_ankle", "NOSE", "wrist-left")
    assert skeletons.match_names(names, known) == {
        "Left Wrist": "left_wrist",
        "rightWrist": "right_wrist",
        "NOSE": "nose",
        "wrist-left": "left_wrist",
    }


def test_twins_and_sigmas_go_by_names():
    assert skeletons.twins(NAMES).tolist() == [0, 2, 1]
    assert skeletons.twins(JOINTS.joints).tolist() == list(JOINTS.flip)
    assert skeletons.twins(("left_wing", "beak")).tolist() == [0, 1]
    assert tuple(skeletons.sigmas(JOINTS.joints)) == JOINTS.sigmas
    assert skeletons.sigmas(("beak",)).tolist() == [0.079]


def test_twins_and_sigmas_of_a_run_come_before_names():
    run = runs.Record("pose", "0", "0", (), ("beak", "wing", "fin"), flip=(0, 2, 1), sigmas=(0.01, 0.02, 0.03))
    assert skeletons.twins(("fin", "left_wing", "wing", "right_wing"), run).tolist() == [2, 3, 0, 1]
    assert skeletons.twins(("fin", "beak"), run).tolist() == [0, 1]
    assert skeletons.sigmas(("wing", "nose"), run).tolist() == [0.02, JOINTS.sigmas[0]]
