"""Stored maps, read back: from files and from the database, sample after sample, in flat memory."""

from __future__ import annotations

import itertools
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from .inference import cores, runs, views

BLOCK = 100  # samples asked of the database at once
READ_AHEAD = 4  # samples per reader
READ_AHEAD_BYTES = 500_000_000  # of decoded maps, which may be as large as their photos

Report = Callable[[str, str, str], None]  # sample id, file, and a sentence that says what is wrong


@dataclass(frozen=True)
class SampleMaps:
    """The maps of a sample.

    Attributes:
        sample_id: of the sample
        filepath: of its image
        maps: (K, h, w) float32, 0 to 1, in the order of the joints that were asked for. A map covers its image exactly:
            pixel (i, j) is the image's x from i / w to (i + 1) / w of its width
        fields: the values of the other fields that were asked for, as the database holds them: labels are dicts
    """

    sample_id: str
    filepath: str
    maps: NDArray[np.float32]
    fields: dict[str, Any]


def map_joints(dataset: fo.Dataset, label_field: str) -> tuple[str, ...]:
    """The joints that a label field has maps of: in its record's order, then or without a record in that of the fields.

    Raises:
        ValueError: if there are none
    """
    heatmaps = runs.heatmap_fields(dataset)
    record = runs.read_record(dataset, label_field)
    prefix = runs.field_name(label_field, "")
    present = [name.removeprefix(prefix) for name in heatmaps if name.startswith(prefix)]
    joints = [name for name in (record.joints if record else present) if name in present and name != "max"]
    if record:  # maps that were attached may show others than the joints of its skeleton
        own = {name.removeprefix(prefix) for name in set(record.fields) - set(record.replaced)}
        joints += [name for name in present if name in own - {"max", *joints}]
    if not joints:
        raise ValueError(
            f"The label field '{label_field}' has no maps of single joints; the dataset's heatmap fields are "
            f"{', '.join(heatmaps) or 'none'}. Run generate_heatmaps or attach_heatmaps with maps of joints first."
        )
    return tuple(joints)


def read_maps(
    view: fo.core.collections.SampleCollection,
    label_field: str,
    joints: Sequence[str],
    on_error: Report,
    fields: Sequence[str] = (),
    num_readers: int | None = None,
) -> Iterator[SampleMaps]:
    """Read the maps of a view's samples, in the order of ids.

    Maps come from files (`map_path`: 8 and 16 bits, of colour images the red channel, as the App shows them) or the
    database (`map`), and are scaled by their `range`. Where those of a sample differ in size, all get the largest.

    Args:
        view: a dataset or view of images
        label_field: prefix of the heatmap fields
        joints: whose maps
        on_error: told of each sample that is left out because maps are missing or unreadable
        fields: other fields whose values are wanted, such as ``"metadata.width"``
        num_readers: threads that decode; None = one per core

    Raises:
        ValueError: at the first sample, if the label field has no maps of these joints
    """
    dataset: fo.Dataset = view._dataset
    known = map_joints(dataset, label_field)
    unknown = [joint for joint in joints if joint not in known]
    if unknown:
        raise ValueError(
            f"The label field '{label_field}' has no maps of {', '.join(unknown)}, only {', '.join(known)}."
        )
    names = {joint: runs.field_name(label_field, joint) for joint in joints}
    num_readers = num_readers or cores.usable_cores()
    documents = _documents(view, [*names.values(), *fields])
    reading: deque[tuple[dict[str, Any], Future[NDArray[np.float32]]]] = deque()
    ahead, numbers = _Ahead(), itertools.count()
    readers = ThreadPoolExecutor(num_readers, "read maps")
    try:
        while True:
            for document in itertools.islice(documents, num_readers * READ_AHEAD - len(reading)):
                labels = {joint: document.get(name) for joint, name in names.items()}
                reading.append((document, readers.submit(ahead.decode, next(numbers), labels)))
            if not reading:
                return
            document, future = reading.popleft()
            ahead.want_next()
            sample_id, filepath = str(document["_id"]), document["filepath"]
            try:
                maps = future.result()
            except ValueError as error:
                on_error(sample_id, filepath, str(error))
                continue
            ahead.hand_over(maps)
            yield SampleMaps(sample_id, filepath, maps, {name: nested(document, name) for name in fields})
    finally:
        ahead.want_all()
        readers.shutdown(wait=True, cancel_futures=True)


class _Ahead:
    """Keeps threads from decoding more ahead than a number of bytes; the sample that is wanted is always decoded."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free = READ_AHEAD_BYTES
        self._largest = 0  # bytes of a sample so far; the first one is decoded alone
        self._wanted: float = 0  # so many samples

    def decode(self, number: int, labels: dict[str, dict[str, Any] | None]) -> NDArray[np.float32]:
        with self._changed:
            self._changed.wait_for(lambda: 0 < self._largest <= self._free or number < self._wanted)
            expected = self._largest
            self._free -= expected
        used = 0
        try:
            maps = decode_maps(labels)
            used = maps.nbytes
            return maps
        finally:
            with self._changed:
                self._free += expected - used
                self._largest = max(self._largest, used)
                self._changed.notify_all()

    def want_next(self) -> None:
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()

    def hand_over(self, maps: NDArray[np.float32]) -> None:
        with self._changed:
            self._free += maps.nbytes
            self._changed.notify_all()

    def want_all(self) -> None:
        with self._changed:
            self._wanted = float("inf")
            self._changed.notify_all()


def _documents(view: fo.core.collections.SampleCollection, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    # As the database holds them: making FiftyOne's objects of 17 heatmaps takes longer than decoding their files.
    pages = views.pages(view)
    collection = view._dataset._sample_collection
    while block := list(itertools.islice(pages, BLOCK)):
        ids = [ObjectId(sample_id) for sample_id, _ in block]
        yield from collection.find({"_id": {"$in": ids}}, ["filepath", *fields]).sort("_id")


def nested(document: dict[str, Any], path: str) -> Any:
    """The value of a field such as ``metadata.width`` in a document; None where there is none."""
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


# --- one sample


def decode_maps(labels: dict[str, dict[str, Any] | None]) -> NDArray[np.float32]:
    """The maps (K, h, w) of heatmap labels, 0 to 1, all at the size of the largest.

    Args:
        labels: by joint, as the database holds them

    Raises:
        ValueError: if one is missing or cannot be read
    """
    missing = [joint for joint, label in labels.items() if not label]
    if missing:
        names = ", ".join(missing) if len(missing) < len(labels) else "any joint"
        raise ValueError(f"It has no map of {names}.")
    stored = [(_values(label), label.get("range")) for label in labels.values() if label]
    for values, _ in stored:
        if values.ndim != 2:
            raise ValueError(f"A map of it has {values.ndim} dimensions; maps have 2.")
    height, width = max((values.shape for values, _ in stored), key=lambda shape: shape[0] * shape[1])
    maps = np.empty((len(stored), height, width), np.float32)
    for k, (values, limits) in enumerate(stored):  # one by one: floats take four times the memory of what is stored
        scaled = _scaled(values, limits)
        maps[k] = scaled if scaled.shape == (height, width) else _resized(scaled, height, width)
    return maps


def _values(label: dict[str, Any]) -> NDArray:
    """The values (h, w) of a map, as they are stored."""
    path = label.get("map_path")
    if not path:
        if label.get("map") is None:
            raise ValueError("It has a heatmap label without a map.")
        try:
            return fou.deserialize_numpy_array(label["map"])
        except (zlib.error, ValueError, EOFError) as error:
            raise ValueError("A map of it in the database cannot be decoded; is it damaged?") from error
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"The map {path} cannot be read: {error.strerror}.") from error
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        values = None
    if values is None:
        raise ValueError(f"The map {path} is not an image that OpenCV can decode; is it damaged?")
    return values if values.ndim == 2 else values[:, :, -1 if values.shape[2] == 3 else 2]  # OpenCV's are BGR, BGRA


def _scaled(values: NDArray, limits: Sequence[float] | None) -> NDArray[np.float32]:
    """By the range, or by what the App takes it to be where there is none; NaN is 0."""
    low, high = limits or ((0, 1) if np.issubdtype(values.dtype, np.floating) else (0, 255))
    scaled = (values.astype(np.float32) - low) / (high - low or 1)
    return np.nan_to_num(scaled).clip(0, 1)


def _resized(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]
