"""Stored maps come back as they were, whatever way they are stored."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
from bson import Binary, ObjectId

from evaluation import reading
from inference import runs
from inference.joints import COCO

JOINTS = ("nose", "left_wrist")


def values_of(joint: int, shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    """A map with one peak, another place and value for each joint."""
    values = np.zeros(shape, np.float32)
    values[2 + joint, 3] = 1 - joint / 2
    return values


def stored(kind: str, values: np.ndarray, path: Path) -> fo.Heatmap:
    eight = np.round(255 * values).astype(np.uint8)
    if kind == "png 8":
        assert cv2.imwrite(str(path.with_suffix(".png")), eight)
        return fo.Heatmap(map_path=str(path.with_suffix(".png")))
    if kind == "png 16":
        assert cv2.imwrite(str(path.with_suffix(".png")), np.round(65535 * values).astype(np.uint16))
        return fo.Heatmap(map_path=str(path.with_suffix(".png")), range=[0, 65535])
    if kind == "jpg":
        large = cv2.resize(eight, None, fx=16, fy=16, interpolation=cv2.INTER_NEAREST)
        assert cv2.imwrite(str(path.with_suffix(".jpg")), cv2.merge([0 * large, 0 * large, large]))  # red
        return fo.Heatmap(map_path=str(path.with_suffix(".jpg")))
    if kind == "uint8":
        return fo.Heatmap(map=eight, range=[0, 255])
    if kind == "float32":
        return fo.Heatmap(map=values)
    return fo.Heatmap(map=4 * values - 2, range=[-2, 2])


def unexpected(*report: str) -> None:
    raise AssertionError(report)


@pytest.mark.parametrize("kind", ["png 8", "png 16", "jpg", "uint8", "float32", "range"])
def test_maps_come_back_whatever_way_they_are_stored(dataset: Callable, photos: Path, tmp_path: Path, kind: str):
    made = dataset(photos)
    for number, sample in enumerate(made):
        for k, joint in enumerate(JOINTS):
            path = tmp_path / f"{number}_{joint}"
            sample[f"pose_{joint}"] = stored(kind, values_of(k) * (1 - number / 10), path)
        sample["number"] = number
        sample.save()

    read = list(reading.read_maps(made, "pose", JOINTS, unexpected, ["number", "metadata.width"]))

    assert [sample.sample_id for sample in read] == made.values("id")
    assert [sample.filepath for sample in read] == made.values("filepath")
    assert [sample.fields for sample in read] == [{"number": n, "metadata.width": None} for n in range(len(made))]
    scale = 16 if kind == "jpg" else 1
    for number, sample in enumerate(read):
        assert sample.maps.dtype == np.float32
        expected = np.stack([values_of(k) * (1 - number / 10) for k in range(2)])
        np.testing.assert_allclose(sample.maps[:, scale // 2 :: scale, scale // 2 :: scale], expected, atol=0.02)


def test_joints_come_in_the_order_of_the_record_or_of_the_call(dataset: Callable, photos: Path):
    made = dataset(photos)
    for k, joint in enumerate(reversed(JOINTS)):
        maps = [fo.Heatmap(map=values_of(1 - k))] * len(made)
        made.set_values(f"pose_{joint}", maps)
    runs.adopt(made, "pose")

    assert reading.map_joints(made, "pose") == JOINTS
    assert next(reading.read_maps(made, "pose", JOINTS, unexpected)).maps.max(axis=(1, 2)).tolist() == [1, 0.5]
    only = next(reading.read_maps(made.limit(2), "pose", ["left_wrist"], unexpected))
    assert only.maps.max(axis=(1, 2)).tolist() == [0.5]
    with pytest.raises(ValueError, match="no maps of tail, only nose, left_wrist"):
        next(reading.read_maps(made, "pose", ["tail"], unexpected))
    with pytest.raises(ValueError, match=r"heatmap fields are .*pose_nose"):
        next(reading.read_maps(made, "other", JOINTS, unexpected))


def test_maps_of_joints_that_the_record_lacks_come_last(dataset: Callable, photos: Path):
    made = dataset(photos)
    for joint in ("tail", "nose", "paw"):
        made.set_values(f"pose_{joint}", [fo.Heatmap(map=values_of(0))] * len(made))
    runs.adopt(made, "pose", COCO)
    assert reading.map_joints(made, "pose") == ("nose", "tail", "paw")
    record = runs.read_record(made, "pose")
    runs.save_record(made, replace(record, joints=()))
    assert reading.map_joints(made, "pose") == ("tail", "nose", "paw")
    runs.save_record(made, replace(record, replaced=("pose_tail",)))  # of an earlier run
    assert reading.map_joints(made, "pose") == ("nose", "paw")


def test_a_sample_that_cannot_be_read_is_told_and_left_out(dataset: Callable, photos: Path, tmp_path: Path):
    made = dataset(photos)
    samples = list(made)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG no more")
    for number, sample in enumerate(samples):
        sample["pose_nose"] = fo.Heatmap(map=values_of(0))
        if number != 1:
            sample["pose_left_wrist"] = fo.Heatmap(map=values_of(1))
    samples[0]["pose_nose"] = fo.Heatmap(map_path=str(tmp_path / "gone.png"))
    samples[2]["pose_nose"] = fo.Heatmap(map_path=str(damaged))
    for sample in samples:
        sample.save()
    made._sample_collection.update_one(
        {"_id": ObjectId(samples[3].id)}, {"$set": {"pose_nose.map": Binary(b"no more than this")}}
    )
    told: list[tuple[str, str, str]] = []

    read = list(reading.read_maps(made, "pose", JOINTS, lambda *report: told.append(report)))

    assert [sample.sample_id for sample in read] == [sample.id for sample in samples[4:]]
    assert [report[:2] for report in told] == [(sample.id, sample.filepath) for sample in samples[:4]]
    reasons = ["gone.png cannot be read", "no map of left_wrist", "damaged", "in the database cannot be decoded"]
    for report, words in zip(told, reasons, strict=True):
        assert words in report[2]


def test_large_maps_are_not_read_far_ahead(dataset: Callable, photos: Path, monkeypatch: pytest.MonkeyPatch):
    made = dataset(photos)
    made.set_values("pose_nose", [fo.Heatmap(map=values_of(0))] * len(made))
    monkeypatch.setattr(reading, "READ_AHEAD_BYTES", 1)
    decoded: list[None] = []
    decode = reading.decode_maps
    monkeypatch.setattr(reading, "decode_maps", lambda labels: (decode(labels), decoded.append(None))[0])
    samples = reading.read_maps(made, "pose", ["nose"], unexpected, num_readers=2)
    for used, _ in enumerate(samples, 1):
        time.sleep(0.05)
        assert len(decoded) <= max(2, used)  # two begin before the size of either is known
    assert len(decoded) == len(made)
    samples = reading.read_maps(made, "pose", ["nose"], unexpected, num_readers=2)
    next(samples)
    samples.close()  # also while readers wait


def test_maps_of_several_sizes_get_the_largest(dataset: Callable, photos: Path):
    made = dataset(list(photos.iterdir())[:1])
    sample = made.first()
    sample["pose_nose"] = fo.Heatmap(map=values_of(0))
    sample["pose_left_wrist"] = fo.Heatmap(map=values_of(1, (12, 16)))
    sample.save()
    maps = next(reading.read_maps(made, "pose", JOINTS, unexpected)).maps
    assert maps.shape == (2, 12, 16)
    assert maps[0].max() > 0.5


def test_values_that_are_no_numbers_are_nothing(dataset: Callable, photos: Path):
    made = dataset(list(photos.iterdir())[:1])
    made.set_values("pose_nose", [fo.Heatmap(map=np.array([[np.nan, 0.5]]))])
    (read,) = reading.read_maps(made, "pose", ["nose"], unexpected)
    assert read.maps.tolist() == [[[0, 0.5]]]


def test_more_samples_than_a_page_are_read_once_each(dataset: Callable):
    made = dataset([f"/nowhere/{number}.jpg" for number in range(2 * reading.BLOCK + 7)])
    made.set_values("pose_nose", [fo.Heatmap(map=values_of(0))] * len(made))
    assert [sample.sample_id for sample in reading.read_maps(made, "pose", ["nose"], unexpected)] == made.values("id")
    assert len(list(reading.read_maps(made.take(150), "pose", ["nose"], unexpected))) == 150
