"""Maps that another tool saved, attached to the samples that they belong to.

A map file belongs to a sample by its name: a pattern says how the names are made, for example ``{stem}.png`` for the
maximum and ``{stem}_{joint}.png`` for single joints. Images are referenced where they are and never changed; NumPy
arrays, which FiftyOne cannot show from files, are converted to 8-bit PNG.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import fiftyone.core.utils as fou
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray
from pymongo import UpdateOne

from . import runs
from .joints import JOINT_SETS, RESERVED_NAMES
from .map_files import MapWriter, check_writable
from .views import bulk_write, pages, target_problem

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
ARRAY = ".npy"
MATCHES = ("name", "relative path")
PATTERN, JOINT_PATTERN = "{stem}.png", "{stem}_{joint}.png"
BATCH = 200  # samples written at once
MAX_LISTED = 10
MAX_JOINTS = 200
KNOWN_JOINTS = frozenset(joint for joint_set in JOINT_SETS.values() for joint in joint_set.joints)

_JOINT = re.compile(r"[a-z][a-z0-9_]*")
_PATTERN = re.compile(r"([^{}]*)\{(stem|joint)\}(?:([^{}]*)\{(stem|joint)\})?([^{}]*)")


@dataclass(frozen=True)
class Matching:
    """How maps and samples are matched.

    Attributes:
        maps_dir: folder with the maps; folders inside it are searched too
        pattern: how the files of maximum maps are called, with ``{stem}`` for the image's name without its extension;
            empty = there are none
        joint_pattern: how the files of single joints are called, with ``{stem}`` and ``{joint}``; empty = none
        match: ``"name"`` = the image's name alone decides; ``"relative path"`` = the folder of a map below ``maps_dir``
            must also be the folder of its image below ``rel_dir``
        rel_dir: None = the folder that all files of the dataset have in common
        range: the values that mean nothing and certainty, in ``.npy`` files, or, where the patterns name none, in the
            images; None = what the file format can hold
    """

    maps_dir: str
    pattern: str = PATTERN
    joint_pattern: str = JOINT_PATTERN
    match: str = "name"
    rel_dir: str | None = None
    range: tuple[float, float] | None = None

    @property
    def arrays(self) -> bool:
        """Whether maps are to be converted."""
        return self.pattern.endswith(ARRAY) or self.joint_pattern.endswith(ARRAY)


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
    runs.declare(dataset, fields)
    record = _open_record(dataset, label_field, matching, fields)

    state = Attached(index.samples, index.matched(), fields=tuple(heatmaps))
    yield state
    with ExitStack() as stack:
        writer = None
        if matching.arrays:
            writer = stack.enter_context(MapWriter(str(record.maps_dir), record.run_id))
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        samples = pages(view)
        while batch := list(itertools.islice(samples, BATCH)):
            work = [(sample_id, image, index.maps_of(image)) for sample_id, image in batch]
            values = threads.map(lambda item: _labels(item[0], item[2], matching, writer), work)
            updates = [
                _update(record, sample_id, image, labels, state)
                for (sample_id, image, _), labels in zip(work, values, strict=True)
            ]
            bulk_write(dataset, updates)
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
    if record and not record.adopted:
        found.append(
            f"'{label_field}' holds the maps of a run of '{record.settings.get('model')}'. Choose another label field, "
            "or delete that run first."
        )
    maximum = runs.field_name(label_field, "max")
    status = runs.field_name(label_field, "status")
    return found + runs.conflicts(view._dataset, {maximum: fo.Heatmap, status: fo.StringField})


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
        maps_dir=old.maps_dir if old and own else runs.default_maps_dir(dataset),
        source=str(Path(matching.maps_dir).expanduser().absolute()),
        pattern=matching.pattern,
        joint_pattern=matching.joint_pattern,
        range=list(matching.range) if matching.range else None,
    )


# --- matching


@dataclass(frozen=True)
class Pattern:
    """How map files are called: ``before``, ``first`` ("stem" or "joint"), ``between``, ``second``, ``after``."""

    text: str
    before: str
    first: str
    between: str
    second: str | None
    after: str

    @classmethod
    def parse(cls, text: str, joints: bool) -> Pattern:
        """Raises ValueError, with what to do, if maps cannot be found by such a pattern."""
        example = JOINT_PATTERN if joints else PATTERN
        match = _PATTERN.fullmatch(text)
        wanted = {"stem", "joint"} if joints else {"stem"}
        if not match or {match[2], match[4]} - {None} != wanted or (match[4] and not match[3]):
            needs = "{stem} and {joint} once each, with something between them" if joints else "{stem} once"
            raise ValueError(f"The pattern '{text}' cannot be used: it must hold {needs}, for example {example}.")
        if Path(text).suffix.lower() not in (*IMAGES, ARRAY):
            raise ValueError(f"The pattern '{text}' must end with one of {', '.join((*IMAGES, ARRAY))}.")
        return cls(text, match[1], match[2], match[3] or "", match[4], match[5])

    def fill(self, stem: str, joint: str) -> str:
        return self.text.replace("{stem}", stem).replace("{joint}", joint)

    def split(self, path: str) -> Iterator[tuple[str, str, str]]:
        """The ways to read a path below the maps folder: (folder with a / at its end or empty, stem, joint)."""
        depth = self.text.count("/")
        parts = path.split("/")
        folder, name = "/".join(parts[: -depth - 1]), "/".join(parts[-depth - 1 :])
        if len(parts) <= depth or not (name.startswith(self.before) and name.endswith(self.after)):
            return
        folder += "/" if folder else ""
        inner = name[len(self.before) : len(name) - len(self.after)]
        if self.second is None:
            if inner and "/" not in inner:
                yield folder, inner, "max"
            return
        at = inner.find(self.between)
        while at >= 0:
            left, right = inner[:at], inner[at + len(self.between) :]
            stem, joint = (left, right) if self.first == "stem" else (right, left)
            if stem and "/" not in stem and _JOINT.fullmatch(joint) and joint not in RESERVED_NAMES:
                yield folder, stem, joint
            at = inner.find(self.between, at + 1)


def patterns(matching: Matching) -> list[Pattern]:
    """Raises ValueError, with what to do, if maps cannot be found by these patterns."""
    found = [Pattern.parse(matching.pattern, joints=False)] if matching.pattern else []
    found += [Pattern.parse(matching.joint_pattern, joints=True)] if matching.joint_pattern else []
    if not found:
        raise ValueError(f"Give a pattern of the map files' names, for example {PATTERN} or {JOINT_PATTERN}.")
    return found


class Index:
    """Which map files belong to which images: one small entry per image. No file is opened.

    Args:
        view: the images
        matching: where the maps are and how they are called
        limit: look at no more than so many images and files, for a first impression

    Attributes:
        samples: images looked at
        complete: False where the limit stopped the look at the images or the folder
    """

    def __init__(self, view: fo.core.collections.SampleCollection, matching: Matching, limit: int | None = None):
        self.root = Path(matching.maps_dir).expanduser().absolute()
        self.samples = 0
        self._view = view
        self._patterns = patterns(matching)
        self._rel_dir = None
        if matching.match == "relative path":
            self._rel_dir = os.path.abspath(os.path.expanduser(matching.rel_dir or common_dir(view)))
        self._names = {"max": 0}  # and the joints that were found, with the number of their bit
        # Per image, the folders that hold maps of it, and which maps: a bit each. The paths follow from that.
        self._found: dict[str, dict[str, int]] = {}
        self._same_name: set[str] = set()
        self._ambiguous: list[str] = []
        self._first_image = self._first_file = self._own_image = ""
        for _, image in itertools.islice(pages(view), limit):
            self._add_image(image)
        listed = 0
        for file in itertools.islice(_files(self.root), limit):
            self._add_file(file)
            listed += 1
        self.complete = limit is None or max(self.samples, listed) < limit

    def _key(self, image: str) -> str:
        stem = os.path.splitext(os.path.basename(image))[0]
        if self._rel_dir is None:
            return stem
        folder = os.path.relpath(os.path.dirname(os.path.abspath(image)), self._rel_dir)
        return stem if folder == "." else f"{folder.replace(os.sep, '/')}/{stem}"

    def _add_image(self, image: str) -> None:
        self.samples += 1
        self._first_image = self._first_image or image
        key = self._key(image)
        if key in self._found:
            self._same_name.add(key)
        self._found.setdefault(key, {})
        if self.root in Path(image).parents:
            file = Path(image).relative_to(self.root).as_posix()
            readings = (reading for pattern in self._patterns for reading in pattern.split(file))
            if any(self._of_image(folder, stem) == key for folder, stem, _ in readings):
                self._own_image = self._own_image or image

    def _add_file(self, file: str) -> None:
        self._first_file = self._first_file or file
        readings = []
        for pattern in self._patterns:
            possible = [reading for reading in pattern.split(file) if self._of_image(*reading[:2]) in self._found]
            if possible:  # where it can be read in several ways: a known joint first, else the longest image name
                readings.append(max(possible, key=lambda reading: (reading[2] in KNOWN_JOINTS, len(reading[1]))))
        if len(readings) > 1:
            self._ambiguous.append(f"{file} (the map of {readings[0][1]}, or the {readings[1][2]} of {readings[1][1]})")
        for folder, stem, joint in readings[:1]:
            folders = self._found[self._of_image(folder, stem)]
            bit = 1 << self._names.setdefault(joint, len(self._names))
            if any(bits & bit for bits in folders.values()):
                self._ambiguous.append(f"{file} (there is another file of that name)")
            folders[folder] = folders.get(folder, 0) | bit

    def _of_image(self, folder: str, stem: str) -> str:
        return stem if self._rel_dir is None else folder + stem

    def check(self) -> None:
        """Raises ValueError if nothing was found, or if it is not clear what belongs together."""
        if self._own_image:
            raise ValueError(
                f"The folder {self.root} holds the images themselves ({self._own_image}), and the pattern fits them. "
                "Choose a folder with maps only, or a pattern that fits only the maps."
            )
        same = {key for key in self._same_name if self._found[key]}
        if same:
            images = [image for _, image in pages(self._view) if self._key(image) in same]
            raise ValueError(
                f"{len(images)} images share their names, so it is not clear whose the maps are: "
                f"{_some(sorted(images))}. Use match='relative path', or attach to a view of one of the folders."
            )
        if self._ambiguous:
            raise ValueError(
                f"{len(self._ambiguous)} map files can be matched in more than one way: {_some(self._ambiguous)}. Use "
                "match='relative path', a folder with only one set of maps, or another pattern."
            )
        if not self.samples:
            raise ValueError("The view is empty; choose one with samples.")
        if len(self._names) > MAX_JOINTS:
            raise ValueError(
                f"The file names show {len(self._names)} joints, for example {_some(list(self._names)[1:])}, and each "
                "would become a field. Choose a joint pattern that fits only the maps of joints."
            )
        if not self.matched():
            folder = self._key(self._first_image).rpartition("/")[0]
            looked = [str(self.root / folder / p.fill(Path(self._first_image).stem, "nose")) for p in self._patterns]
            there = f"The folder has, for example, {self._first_file}." if self._first_file else "The folder is empty."
            raise ValueError(
                f"No map fits any of {self.samples} images. For {self._first_image} this was looked for: "
                f"{' and '.join(looked)}. {there} Change the pattern or the folder."
            )

    def names(self) -> list[str]:
        """ "max" and joints, as far as there are maps of them, in the order in which people know them."""
        bits = functools.reduce(operator.or_, (b for folders in self._found.values() for b in folders.values()), 0)
        known = ["max", *(joint for joint_set in JOINT_SETS.values() for joint in joint_set.joints)]
        names = [name for name, number in self._names.items() if bits >> number & 1]
        return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))

    def matched(self) -> int:
        """How many images have a map."""
        return sum(bool(folders) for folders in self._found.values())

    def files(self) -> int:
        """How many map files belong to images."""
        return sum(bits.bit_count() for folders in self._found.values() for bits in folders.values())

    def maps_of(self, image: str) -> dict[str, str]:
        """The map files of an image, by "max" or joint."""
        key = self._key(image)
        stem = key.rpartition("/")[2]
        maps = {}
        for folder, bits in self._found.get(key, {}).items():
            for name, number in self._names.items():
                if bits >> number & 1:
                    pattern = next(p for p in self._patterns if (p.second is None) == (name == "max"))
                    maps[name] = str(self.root / folder / pattern.fill(stem, name))
        return maps


def common_dir(view: fo.core.collections.SampleCollection) -> str:
    """The folder that all files of the view's dataset have in common."""
    # What the first and the last in alphabetical order have in common is common to all; FiftyOne has an index of them.
    samples = view._dataset
    ends = [samples.sort_by("filepath", reverse=last).limit(1).values("filepath") for last in (False, True)]
    return os.path.commonpath([os.path.dirname(path) for paths in ends for path in paths] or [os.sep])


def _files(root: Path) -> Iterator[str]:
    """All files below a folder, with / between the parts of their relative path."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in sorted(names))


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")


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
        if writer:
            writer.remove(sample_id)
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
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}).") from error
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not values.size:
        raise ValueError(
            f"{path} holds an array of {values.dtype} with the shape {values.shape}; a map has two dimensions and real "
            "numbers. Save the map of each joint to a file of its own."
        )
    low, high = values_range
    shares = np.nan_to_num(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1))
    return np.rint(255 * shares).astype(np.uint8)


def _update(
    record: runs.Record, sample_id: str, image: str, labels: dict[str, dict[str, Any]] | str, state: Attached
) -> UpdateOne:
    """What to write for a sample; counts it in the state."""
    status = runs.field_name(record.label_field, "status")
    values: dict[str, Any]
    if isinstance(labels, str):
        state.failed += 1
        if len(state.failures) < MAX_LISTED:
            state.failures.append((image, labels))
        values = {**dict.fromkeys(record.fields), status: labels}
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
    return UpdateOne(which, {"$set": {**values, "last_modified_at": datetime.now(UTC)}})
