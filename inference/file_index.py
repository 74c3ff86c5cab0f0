"""Which saved map files belong to which images, by their names alone: no file is opened."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fiftyone as fo

from .joints import JOINT_SETS, RESERVED_NAMES
from .views import all_samples, pages

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
ARRAY = ".npy"
MATCHES = ("name", "relative path")
PATTERN, JOINT_PATTERN = "{stem}.png", "{stem}_{joint}.png"
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
    samples = all_samples(view._dataset)
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
