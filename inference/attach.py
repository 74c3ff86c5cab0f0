"""Maps that another tool saved, attached to the samples that they belong to.

A map file belongs to a sample by its name: a pattern says how the names are made, for example ``{stem}.png`` for the
maximum and ``{stem}_{joint}.png`` for single joints. Images are referenced where they are and never changed; NumPy
arrays, which FiftyOne cannot show from files, are converted to 8-bit PNG.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray
from pymongo import UpdateOne

from . import runs
from .cores import usable_cores
from .file_index import ARRAY, MATCHES, MAX_LISTED, Index, Matching, patterns
from .map_files import MapWriter, check_writable
from .views import bulk_write, change, pages, take_back, target_problem

BATCH = 200  # samples written at once


@dataclass
class Attached:
    """How far attaching is, and how it went at the end.

    Attributes:
        total: samples in the view
        matched: samples with at least one map
        seen: samples looked at so far
        done, failed: samples with maps that are written
        files: maps that are attached
        fields: heatmap fields
        unmatched: the first image files without a map
        failures: the first (image file, reason)
        seconds: since the beginning
    """

    total: int = 0
    matched: int = 0
    seen: int = 0
    done: int = 0
    failed: int = 0
    files: int = 0
    fields: tuple[str, ...] = ()
    unmatched: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self) -> str:
        """What to tell people."""
        text = f"{self.files} maps were attached to {self.done} of {self.total} samples, in {len(self.fields)} fields."
        if self.failed:
            image, reason = self.failures[0]
            text += f" {self.failed} failed, for example {image}: {reason}"
        missing = self.total - self.matched
        if missing:
            more = ", …" if missing > len(self.unmatched) else ""
            text += f" {missing} have no map: {', '.join(self.unmatched)}{more}."
        return text


def attach(
    view: fo.core.collections.SampleCollection,
    matching: Matching,
    label_field: str = "pose",
    progress: bool | None = None,
) -> Attached:
    """Attach saved maps to the samples of a view, with or without a progress bar; see :func:`process`."""
    steps = process(view, matching, label_field)
    state = next(steps)
    with fou.ProgressBar(total=state.total, progress=progress) as bar:
        for state in steps:
            bar.set_iteration(state.seen)
    return state


def process(
    view: fo.core.collections.SampleCollection, matching: Matching, label_field: str = "pose"
) -> Generator[Attached, None, None]:
    """Attach saved maps to the samples of a view, step by step.

    The fields are ``<label_field>_max`` and ``<label_field>_<joint>``, for the joints that the file names show. A
    sample without a map keeps what it has.

    Yields:
        the state, the same object each time: when the files are matched, after each batch, and at the end

    Raises:
        ValueError: before anything is written, if view, patterns, folder or field cannot work, if no file matches, or
            if a file or a sample can be matched in more than one way; the message lists examples
        OSError: if converted maps cannot be written
    """
    started = time.monotonic()
    found = problems(view, matching, label_field)
    if found:
        raise ValueError(" ".join(found))
    index = Index(view, matching)
    index.check()
    dataset: fo.Dataset = view._dataset
    heatmaps = [runs.field_name(label_field, name) for name in index.names()]
    fields: dict[str, type] = dict.fromkeys(heatmaps, fo.Heatmap)
    fields[runs.field_name(label_field, "status")] = fo.StringField
    unknown = unknown_problem(dataset, label_field, fields)
    if unknown:
        raise ValueError(unknown)
    runs.declare(dataset, fields)
    record = _open_record(dataset, label_field, matching, fields)

    state = Attached(index.samples, index.matched(), fields=tuple(heatmaps))
    yield state
    with ExitStack() as stack:
        writer = None
        if matching.arrays:
            writer = stack.enter_context(MapWriter(str(record.maps_dir), record.run_id))
        threads = stack.enter_context(ThreadPoolExecutor(usable_cores()))
        samples = pages(view)
        while batch := list(itertools.islice(samples, BATCH)):
            work = [(sample_id, image, index.maps_of(image)) for sample_id, image in batch]
            values = threads.map(lambda item: _labels(item[0], item[2], matching, writer), work)
            updates: list[UpdateOne] = []
            verdicts = runs.verdicts(record)
            failed: list[str] = []
            try:
                for (sample_id, image, _), labels in zip(work, values, strict=True):
                    updates.append(_update(record, sample_id, image, labels, state, verdicts))
                    failed += [sample_id] if isinstance(labels, str) else []
                bulk_write(dataset, updates)
                if writer:
                    for sample_id in failed:  # nothing refers to their files of an earlier call any more
                        writer.remove(sample_id)
            except OSError:  # of a file; its folder goes with the run
                if runs.is_current(record):
                    raise
            if not runs.is_current(record):
                threads.shutdown(wait=True, cancel_futures=True)
                take_back(dataset, updates)
                if writer:
                    for sample_id, _ in batch:
                        writer.remove(sample_id)
                raise RuntimeError(runs.gone(label_field))
            state.seen += len(batch)
            state.seconds = time.monotonic() - started
            yield state
    dataset.reload()
    yield state


def problems(view: fo.core.collections.SampleCollection, matching: Matching, label_field: str) -> list[str]:
    """What keeps maps from being attached, as sentences that say what to do. Changes nothing, reads no map."""
    target = target_problem(view)
    if target:
        return [target]
    found = []
    try:
        runs.check_label_field(label_field)
        patterns(matching)
    except ValueError as error:
        found.append(str(error))
    if matching.match not in MATCHES:
        found.append(f"match is '{matching.match}'; it must be 'name' or 'relative path'.")
    if not matching.maps_dir or not Path(matching.maps_dir).expanduser().is_dir():
        found.append(f"There is no folder '{matching.maps_dir}'; choose the folder that holds the maps.")
    values = matching.range
    if values is not None and not (len(values) == 2 and values[0] < values[1]):
        found.append(f"range is {list(values)}; it must be two numbers, the smaller one first.")
    if matching.arrays:
        if values is None:
            found.append("Maps in .npy files need a range, for example [0, 1]: the values for nothing and certainty.")
        unwritable = check_writable(runs.default_maps_dir(view._dataset))
        found += [unwritable] if unwritable else []
    record = runs.read_record(view._dataset, label_field)
    if record is None and label_field in view._dataset.list_runs():
        found.append(runs.taken_problem(label_field))
    if record and not record.adopted:
        found.append(
            f"'{label_field}' holds the maps of a run of '{record.settings.get('model')}'. Choose another label field, "
            "or delete that run first."
        )
    maximum = runs.field_name(label_field, "max")
    status = runs.field_name(label_field, "status")
    return found + runs.conflicts(view._dataset, {maximum: fo.Heatmap, status: fo.StringField})


def unknown_problem(dataset: fo.Dataset, label_field: str, fields: Iterable[str]) -> str | None:
    """What is in the fields to be written must not be lost unless a record says that it is maps of this label field."""
    record = runs.read_record(dataset, label_field)
    names = runs.unknown_values(dataset, fields, record)
    if not names:
        return None
    found = f"The dataset has values in {', '.join(names)} that no run of '{label_field}' is known for. Choose another "
    if record or not {*names} & {*runs.heatmap_fields(dataset)}:  # nothing that the panel could adopt
        return f"{found}label field."
    return f"{found}label field, or adopt them in the panel Pose heatmaps: maps that are attached then replace theirs."


def _open_record(dataset: fo.Dataset, label_field: str, matching: Matching, fields: Iterable[str]) -> runs.Record:
    """The record is written before the first map, so that what a killed run left can be deleted."""
    old = runs.read_record(dataset, label_field)
    own = old is not None and old.dataset_id == runs.dataset_id(dataset)
    return runs.adopt(
        dataset,
        label_field,
        fields=(*(old.fields if old else ()), *fields),
        run_id=old.run_id if old and own else None,
        # of converted maps; the originals are only referred to
        maps_dir=(old.maps_dir if old and own else None) or runs.default_maps_dir(dataset),
        source=str(Path(matching.maps_dir).expanduser().absolute()),
        pattern=matching.pattern,
        joint_pattern=matching.joint_pattern,
        range=list(matching.range) if matching.range else None,
    )


# --- labels


def _labels(
    sample_id: str, maps: dict[str, str], matching: Matching, writer: MapWriter | None
) -> dict[str, dict[str, Any]] | str:
    """The labels of a sample's maps as documents, by "max" or joint; or why there are none. Thread-safe."""
    arrays = {name: path for name, path in maps.items() if path.endswith(ARRAY)}
    try:
        labels = {name: _image_label(path, matching) for name, path in maps.items() if name not in arrays}
        if arrays and writer and matching.range:
            converted = {name: convert(path, matching.range) for name, path in arrays.items()}
            labels |= {name: fo.Heatmap(map_path=path) for name, path in writer.write(sample_id, converted).items()}
    except ValueError as error:
        return str(error)
    return {name: label.to_dict() for name, label in labels.items()}


def _image_label(path: str, matching: Matching) -> fo.Heatmap:
    """The label of an image file.

    FiftyOne takes 0 to 255 for granted, so that 16-bit images without a range would be shown as saturated blobs.

    Raises:
        ValueError: if it is no image
    """
    deep = _is_16_bit(path)
    if matching.range and not matching.arrays:
        return fo.Heatmap(map_path=path, range=list(matching.range))
    return fo.Heatmap(map_path=path, range=[0, 65535] if deep else None)


def _is_16_bit(path: str) -> bool:
    if path.lower().endswith((".jpg", ".jpeg")):
        return False
    try:
        if path.endswith(".png"):  # the beginning is enough, and there may be millions of files
            with open(path, "rb") as file:
                header = file.read(25)
            if len(header) == 25 and header.startswith(b"\x89PNG"):
                return header[24] == 16
            raise ValueError(f"{path} is not a PNG image; is it damaged, or another kind of file?")
        image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if image is None:
        raise ValueError(f"{path} is not an image that OpenCV can decode; is it damaged, or another kind of file?")
    return image.dtype == np.uint16


def convert(path: str, values_range: tuple[float, float]) -> NDArray[np.uint8]:
    """A map (h, w) of any real type in a ``.npy`` file, to 8 bits: clipped to the range and rounded; NaN is 0.

    Raises:
        ValueError: if the file holds something else
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}).") from error
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{path} is an archive of several arrays. Save the map of each joint to a file of its own.")
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not values.size:
        raise ValueError(
            f"{path} holds an array of {values.dtype} with the shape {values.shape}; a map has two dimensions and real "
            "numbers. Save the map of each joint to a file of its own."
        )
    low, high = values_range
    shares = np.nan_to_num(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1))
    return np.rint(255 * shares).astype(np.uint8)


def _update(
    record: runs.Record,
    sample_id: str,
    image: str,
    labels: dict[str, dict[str, Any]] | str,
    state: Attached,
    verdicts: tuple[str, ...],
) -> UpdateOne:
    """What to write for a sample; counts it in the state."""
    status = runs.field_name(record.label_field, "status")
    values: dict[str, Any]
    others = verdicts if labels else ()  # on earlier maps
    if isinstance(labels, str):
        state.failed += 1
        if len(state.failures) < MAX_LISTED:
            state.failures.append((image, labels))
        values = {**dict.fromkeys(state.fields), status: labels}
        others += record.fields
    elif labels:
        state.done += 1
        state.files += len(labels)
        values = {runs.field_name(record.label_field, name): label for name, label in labels.items()}
        values[status] = runs.DONE
    else:
        if len(state.unmatched) < MAX_LISTED:
            state.unmatched.append(image)
        # A sample that has maps from another folder keeps them, and its status.
        values = {status: f"No map of this image was found in {record.settings['source']}."}
    which = {"_id": ObjectId(sample_id)} if labels else {"_id": ObjectId(sample_id), status: {"$ne": runs.DONE}}
    return UpdateOne(which, change(values, others))
