"""AP and AR of people by pycocotools, a part of the images at a time, so that memory grows little.

Only what its last step needs is kept of each image, about 2 KB: scores, and what was matched at each threshold.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

PART = 500  # images
FIGURES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")


class AveragePrecision:
    """Collects people image by image; the figures are those of one evaluation over all of them.

    Args:
        sigmas: (K,) COCO's constants of the joints
    """

    def __init__(self, sigmas: NDArray[np.floating]):
        self._sigmas = sigmas
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._people: list[dict[str, Any]] = []
        self._kept: list[list[dict[str, Any] | None]] = []  # per area, in the order of pycocotools, per image
        self._ids: list[int] = []

    def add(self, image_id: int, annotations: Sequence[dict[str, Any]], people: Sequence[dict[str, Any]]) -> None:
        """Add an image: COCO annotations of its people, and what the model found, as :func:`results`."""
        self._images.append({"id": image_id})
        self._annotations += ({**person, "image_id": image_id, "category_id": 1} for person in annotations)
        self._people += ({**person, "image_id": image_id} for person in people)
        if len(self._images) == PART:
            self._evaluate()

    def figures(self) -> dict[str, float]:
        """AP and AR; -1 where no labelled person is of that size."""
        self._evaluate()
        if not any(self._kept):
            return dict.fromkeys(FIGURES, -1.0)
        order = np.argsort(self._ids, kind="stable")  # pycocotools goes by ids; it shows where scores are equal
        evaluation = COCOeval(iouType="keypoints")
        evaluation.params.imgIds, evaluation.params.catIds = sorted(self._ids), [1]
        evaluation.evalImgs = [images[i] for images in self._kept for i in order]
        evaluation._paramsEval = copy.deepcopy(evaluation.params)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(FIGURES, map(float, evaluation.stats), strict=True))

    def _evaluate(self) -> None:
        if not self._images:
            return
        annotations = [{**person, "id": number} for number, person in enumerate(self._annotations, 1)]
        people = [{**person, "category_id": 1, "id": number} for number, person in enumerate(self._people, 1)]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(_coco(self._images, annotations), _coco(self._images, people), "keypoints")
            evaluation.params.kpt_oks_sigmas = self._sigmas
            evaluation.evaluate()
        self._kept = self._kept or [[] for _ in evaluation.params.areaRng]
        # pycocotools lists by area, then by image
        parts = np.array(evaluation.evalImgs, object).reshape(len(self._kept), len(self._images))
        for images, part in zip(self._kept, parts, strict=True):
            images += map(_compact, part)
        self._ids += evaluation.params.imgIds
        self._images, self._annotations, self._people = [], [], []


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> COCO:
    made = COCO()
    made.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    made.createIndex()
    return made


def _compact(image: dict[str, Any] | None) -> dict[str, Any] | None:
    if image is None:
        return None
    return {
        "dtScores": np.array(image["dtScores"], float),
        "dtMatches": np.array(image["dtMatches"]) > 0,
        "dtIgnore": np.array(image["dtIgnore"], bool),
        "gtIgnore": np.array(image["gtIgnore"], bool),
    }


def results(
    document: dict[str, Any] | None, columns: Sequence[int], image_wh: tuple[float, float]
) -> list[dict[str, Any]]:
    """The people that a run stored, as COCO results in pixels of the image.

    Args:
        document: ``fo.Keypoints`` as the database holds them
        columns: which of their points are the joints that count
        image_wh: width and height of the image
    """
    made = []
    for person in (document or {}).get("keypoints") or []:
        points = np.array(person["points"], float)[list(columns)] * image_wh
        there: NDArray[np.bool_] = ~np.any(np.isnan(points), axis=1)
        if not there.any():
            continue
        left_top, right_bottom = points[there].min(axis=0), points[there].max(axis=0)
        points[~there] = 0  # nowhere near, as published results have it
        keypoints = np.concatenate([points, there[:, None]], axis=1)
        score = person.get("score")
        if score is None:
            score = np.nanmean(np.array(person.get("confidence") or [0], float))
        area = float(np.prod(right_bottom - left_top))
        made.append({"keypoints": keypoints.ravel().tolist(), "score": float(score), "area": area})
    return made


def annotation(points: NDArray[np.floating], area: float, box: NDArray[np.floating]) -> dict[str, Any]:
    """A labelled person as a COCO annotation.

    Args:
        points: (K, 2) pixels of the image, NaN = not labelled
        area: pixels^2
        box: left, top, right, bottom
    """
    labelled = ~np.isnan(points).any(axis=1)
    keypoints = np.concatenate([np.nan_to_num(points), 2.0 * labelled[:, None]], axis=1)
    left, top, right, bottom = map(float, box)
    return {
        "keypoints": keypoints.ravel().tolist(),
        "num_keypoints": int(labelled.sum()),
        "area": area,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def ignored(box: NDArray[np.floating], joints: int) -> dict[str, Any]:
    """A box (left, top, right, bottom) as a COCO annotation in which nobody has to be found."""
    nobody = annotation(np.full((joints, 2), np.nan), float(np.prod(box[2:] - box[:2])), box)
    return {**nobody, "iscrowd": 1}


def chosen_joints(person: dict[str, Any], columns: Sequence[int]) -> dict[str, Any]:
    """An annotation with some of its joints only."""
    keypoints = np.reshape(person["keypoints"], (-1, 3))
    if list(columns) == list(range(len(keypoints))):
        return person
    keypoints = keypoints[list(columns)]
    return {**person, "keypoints": keypoints.ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
