"""What an evaluation compares: which joints, whose people, and which image of the annotations is a sample's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fiftyone as fo
import numpy as np

from . import skeletons
from .inference import runs
from .matching import Floats
from .reading import SampleMaps, map_joints
from .truth import Annotations, Labels, read_labels

COCO_ID = "coco_id"  # FiftyOne's importer calls it so, with the prefix of the labels where there is one

SIZE = ("metadata.width", "metadata.height")  # fields


@dataclass(frozen=True)
class Pairing:
    """The K joints that labels and maps have in common.

    Attributes:
        names: as the maps call them, in the order of the labels
        columns: which points of the labels they are
        labels: the names of all points of a label
        named_by: where these come from
    """

    names: tuple[str, ...]
    columns: tuple[int, ...]
    labels: tuple[str, ...]
    named_by: str


def pair_joints(
    dataset: fo.Dataset,
    label_field: str,
    gt_field: str,
    joints: Mapping[str, str | None] | None = None,
    annotations: Annotations | None = None,
) -> Pairing:
    """Find out which joints are compared.

    Args:
        annotations: a COCO file with the same people
        joints: joints of the labels and the joints of the maps that they are (None = not compared), where the names do
            not tell

    Raises:
        ValueError: if the labels' joints have no names, or none of the maps'
    """
    known = map_joints(dataset, label_field)
    annotated = annotations.joints if annotations else ()
    names, named_by = skeletons.label_names(dataset, gt_field, label_field, annotated)
    given = {**skeletons.match_names(names, known), **(joints or {})}
    mapping = {name: joint for name, joint in given.items() if joint is not None}
    problem = skeletons.check_names(names, mapping, known)
    if problem:
        raise ValueError(problem)
    columns = [k for k, name in enumerate(names) if name in mapping]
    return Pairing(tuple(mapping[names[k]] for k in columns), tuple(columns), names, named_by)


@dataclass(frozen=True)
class Image:
    """The image of a sample.

    Attributes:
        wh: width and height, pixels
        coco_id: of the image in the annotations; None where there are none of it
        found_by: how it was found there
        annotations: of its people there
    """

    wh: tuple[float, float]
    coco_id: int | None = None
    found_by: str | None = None
    annotations: Sequence[dict[str, Any]] = ()


class Sources:
    """What is compared, for each sample.

    Args:
        dataset: of the samples
        label_field: of the run whose maps are judged
        gt_field: of the labels
        pairing: of their joints
        annotations: a COCO file, or None

    Raises:
        ValueError: if the annotations do not have the joints
    """

    def __init__(
        self, dataset: fo.Dataset, label_field: str, gt_field: str, pairing: Pairing, annotations: Annotations | None
    ):
        self.gt_field = gt_field
        self.pairing = pairing
        self.annotations = annotations
        run = runs.read_record(dataset, label_field)
        self.sigmas = skeletons.sigmas(pairing.names, run)
        self.twins = skeletons.twins(pairing.names, run)
        self.people_field, self.people_columns = _people(dataset, label_field, pairing.names)
        self.annotated = _annotated(annotations, pairing)
        self._coco_id = _coco_id_field(dataset, gt_field)
        optional = [self._coco_id] if self._coco_id else []
        optional += [self.people_field] if self.people_field else []
        self.fields = [gt_field, *SIZE, *optional]

    def image(self, fields: dict[str, Any], filepath: str) -> Image:
        """Look up a sample's image.

        Raises:
            ValueError: if its size is not known
        """
        found = self.annotations.find(fields.get(self._coco_id or ""), filepath) if self.annotations else None
        if found is None or self.annotations is None:
            return Image(image_size(fields, filepath))
        record, how = found
        wh = (record["width"], record["height"]) if record.get("width") else image_size(fields, filepath)
        return Image(wh, record["id"], how, self.annotations.people(record["id"], wh))

    def labels(self, fields: dict[str, Any], image: Image) -> Labels:
        """The labelled people of a sample.

        Raises:
            ValueError: if nobody looked for people in it
        """
        document = fields[self.gt_field]
        if document is None and image.coco_id is None:
            raise ValueError(f"It has no labels in '{self.gt_field}'.")
        return read_labels(document, self.pairing.columns, image.wh, image.annotations, self.annotated)

    def people(self, fields: dict[str, Any], image: Image) -> Floats | None:
        """Places (Q, K, 2) of the joints of the people that the run found, pixels, NaN = absent.

        None where it stored none: no run of it looked for people in this sample.

        Raises:
            ValueError: if they have other joints
        """
        document = fields[self.people_field] if self.people_field else None
        if document is None:
            return None
        people = document.get("keypoints") or []
        if not people:
            return np.zeros((0, len(self.people_columns), 2))
        if any(len(person["points"]) <= max(self.people_columns) for person in people):
            raise ValueError(f"Its people in '{self.people_field}' have fewer points than the run has joints.")
        return np.array([person["points"] for person in people], float)[:, self.people_columns] * image.wh


def _people(dataset: fo.Dataset, label_field: str, joints: Sequence[str]) -> tuple[str | None, list[int]]:
    """The field of a run's people, if it has any with these joints, and which of their points they are."""
    record = runs.read_record(dataset, label_field)
    name = runs.field_name(label_field, "keypoints")
    if record is None or not dataset.has_field(name) or not set(joints) <= set(record.joints):
        return None, []
    return name, [record.joints.index(joint) for joint in joints]


def _coco_id_field(dataset: fo.Dataset, gt_field: str) -> str | None:
    names = [name for name in dataset.get_field_schema(ftype=fo.IntField) if name.endswith(COCO_ID)]
    prefixed = f"{gt_field.removesuffix('keypoints')}{COCO_ID}"
    return next((name for name in (prefixed, COCO_ID, *names) if name in names), None)


def _annotated(annotations: Annotations | None, pairing: Pairing) -> list[int]:
    """Which joints of the annotations are those of the labels: by the labels' names, else by those of the maps."""
    if annotations is None:
        return []
    wanted = [pairing.labels[column] for column in pairing.columns]
    same = skeletons.match_names(wanted, annotations.joints)
    others = [joint for joint in annotations.joints if joint not in same.values()]
    by_map = skeletons.match_names(pairing.names, others)
    same = {label: by_map[name] for label, name in zip(wanted, pairing.names, strict=True) if name in by_map} | same
    missing = [name for name in wanted if name not in same]
    if missing:
        raise ValueError(f"The annotations have no joint {', '.join(missing)}, only {', '.join(annotations.joints)}.")
    return [annotations.joints.index(same[name]) for name in wanted]


def image_size(fields: dict[str, Any], filepath: str) -> tuple[float, float]:
    """Width and height of a sample's image: from its metadata, else its file.

    Args:
        fields: with those of :data:`SIZE`

    Raises:
        ValueError: if neither tells
    """
    width, height = (fields.get(name) for name in SIZE)
    if not width or not height:
        try:
            metadata = fo.ImageMetadata.build_for(filepath)
        except Exception as error:  # whatever it may be: the file is the user's
            raise ValueError(f"The size of its image is not known, and the file cannot be read: {error}") from error
        width, height = metadata.width, metadata.height
    return float(width), float(height)


def size_for(sample: SampleMaps) -> tuple[float, float]:
    """Width and height of a sample's image; where they are not known, of its maps, which may be squashed."""
    try:
        return image_size(sample.fields, sample.filepath)
    except ValueError:
        height, width = sample.maps.shape[1:]
        return float(width), float(height)
