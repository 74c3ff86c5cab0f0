"""From a batch of images to FiftyOne labels: what the pipeline and the SDK model have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fiftyone as fo
import numpy as np
from bson import ObjectId
from numpy.typing import NDArray

from .geometry import Warp
from .grouping import GroupingConfig, People, group
from .joints import JointSet
from .map_files import MapWriter
from .maps import ImageMaps, make_maps
from .predictor import Predictor, PreparedImage
from .runs import DONE
from .settings import Settings, find_maps

# The published grouping makes a group of every stray peak. A ranking by score, as in AP, does not mind; people who look
# at skeletons do, and so does the App, which loads all of them with every page.
MIN_MEAN = 0.15  # value over all joints, without a pose refiner
# With one; whom it cannot judge, as fewer than four joints fit a pose, has too low a score. How both numbers
# were chosen is in training/README.md.
MIN_JUDGED_MEAN = 0.1
MIN_EXPECTED_OKS = 0.3
# It also finds a place for every joint that a person lacks, however low the heatmap is there; these are not drawn.
# The bundled model's labelled joints are right as often from 0.05 to 0.1 as from 0.1 to 0.2, see training/README.md.
MIN_JOINT_VALUE = 0.05
NO_NUMBERS = "The network gave values that are no numbers: its weights are damaged, or their training diverged."
DIGITS = 5  # of coordinates relative to the image and of heatmap values: a hundredth of a pixel, in half the bytes


@dataclass(frozen=True)
class Seen:
    """What the network saw in one image, on the CPU.

    Attributes:
        warp: that made the network's input
        maps: for people to look at
        heatmaps: (K, h/2, w/2) float32, for grouping, with
        tags: (T, h/2, w/2, D) float32; both None where people are not asked for
        enlarged: (K, h, w) float32, where it is not just the heatmaps enlarged
        own: the network's own values, neither gated nor calibrated, as large as ``enlarged`` or else as ``heatmaps``;
            None where these are the same
        grouping: how these weights' maps are grouped
    """

    warp: Warp
    maps: ImageMaps
    heatmaps: NDArray[np.float32] | None = None
    tags: NDArray[np.float32] | None = None
    enlarged: NDArray[np.float32] | None = None
    own: NDArray[np.float32] | None = None
    grouping: GroupingConfig = field(default_factory=GroupingConfig)


def see(predictor: Predictor, settings: Settings, images: Sequence[PreparedImage], joints: bool) -> list[Seen]:
    """Run images of one shape through the network and fetch all that labels are made of.

    Args:
        joints: also make the maps of single joints
    """
    prediction = predictor.predict(images)
    warps = [image.warp for image in images]
    maps = make_maps(prediction, warps, settings.resolution, settings.dtype, settings.floor, joints)
    if not settings.keypoints:
        return [Seen(warp, image_maps) for warp, image_maps in zip(warps, maps, strict=True)]
    heatmaps, tags = prediction.heatmaps.cpu().numpy(), prediction.tags.cpu().numpy()
    enlarged, own = (
        [None] * len(maps) if some is None else some.cpu().numpy() for some in (prediction.enlarged, prediction.own)
    )
    return [
        Seen(warp, maps[i], heatmaps[i], tags[i], enlarged[i], own[i], predictor.grouping)
        for i, warp in enumerate(warps)
    ]


def find_people(seen: Seen, order: tuple[int, ...], all_groups: bool = True) -> People:
    """Group what was seen; see :func:`group`. Joints are in pixels of the network's input (its base scale).

    Args:
        all_groups: keep doubtful people, too
    """
    assert seen.heatmaps is not None
    assert seen.tags is not None
    shape = (2 * seen.heatmaps.shape[1], 2 * seen.heatmaps.shape[2])
    heatmaps = seen.heatmaps if seen.enlarged is None else seen.enlarged
    config = seen.grouping
    if not all_groups:
        min_mean, min_score = (MIN_JUDGED_MEAN, MIN_EXPECTED_OKS) if config.refiner else (MIN_MEAN, 0.0)
        config = replace(config, min_mean=min_mean, min_score=min_score)
    return group(heatmaps, seen.tags, order, config, shape, seen.own)


class Labeller:
    """Turns what was seen into the values of a sample's fields.

    Args:
        settings: of the run
        joint_set: of the model
        files: where map files are written; None keeps the maps in the labels
    """

    def __init__(self, settings: Settings, joint_set: JointSet, files: MapWriter | None):
        self.keypoints = settings.keypoints
        self.all_groups = settings.all_groups
        self.joint_set = joint_set
        self.files = files
        self.maximum, self.joints = find_maps(settings.maps, joint_set)
        self._channels = [joint_set.joints.index(joint) for joint in self.joints]
        self._blank = file_heatmap("").to_dict()

    def labels(self, seen: Seen, sample_id: str) -> dict[str, Any]:
        """Labels and plain values by the suffix of their field; see :meth:`documents`."""
        kinds: dict[str, type[fo.Label]] = {"keypoints": fo.Keypoints}
        return {
            name: kinds.get(name, fo.Heatmap).from_dict(value) if isinstance(value, dict) else value
            for name, value in self.documents(seen, sample_id).items()
        }

    def documents(self, seen: Seen, sample_id: str) -> dict[str, Any]:
        """The same as the database holds them; map files are written first.

        Raises:
            OSError: if the files cannot be written
            ValueError: if the network gave values that are no numbers
        """
        if not math.isfinite(seen.maps.confidence):
            raise ValueError(NO_NUMBERS)
        maps: dict[str, NDArray] = {"max": seen.maps.maximum} if self.maximum else {}
        if seen.maps.joints is not None:
            maps |= {name: seen.maps.joints[k] for name, k in zip(self.joints, self._channels, strict=True)}
        values: dict[str, Any] = {}
        if seen.heatmaps is not None:
            people = find_people(seen, self.joint_set.grouping_order, self.all_groups)
            labels = keypoints(people, seen.warp, self.all_groups)
            values = {"keypoints": labels.to_dict(), "num_people": len(people)}
        if self.files:
            paths = self.files.write(sample_id, maps)
            # Filled in, because making 18 of FiftyOne's objects takes longer than compressing the maps.
            heatmaps = {name: {**self._blank, "_id": ObjectId(), "map_path": path} for name, path in paths.items()}
        else:
            heatmaps = {name: memory_heatmap(array).to_dict() for name, array in maps.items()}
        return {**heatmaps, **values, "confidence": seen.maps.confidence, "status": DONE}


def memory_heatmap(values: NDArray) -> fo.Heatmap:
    """A map (h, w), uint8 or float32, kept in the database with its explicit range."""
    return fo.Heatmap(map=values, range=[0, 255] if values.dtype == np.uint8 else [0, 1])


def file_heatmap(path: str) -> fo.Heatmap:
    """A map in a PNG file; without a range FiftyOne reads it as [0, 255]."""
    return fo.Heatmap(map_path=path)


def keypoints(people: People, warp: Warp, exact: bool = False) -> fo.Keypoints:
    """People as keypoints: points relative to the image with the heatmap's values, NaN where that is below 0.05.

    Args:
        people: in pixels of the network's input
        warp: that made it
        exact: keep doubtful joints too, and all digits
    """
    joints = people.joints.astype(np.float64)
    points = warp.to_image(joints[:, :, :2]) / np.array(warp.image_wh)
    values, scores = joints[:, :, 2], people.scores.astype(np.float64)
    absent = values == 0 if exact else values < MIN_JOINT_VALUE
    points[absent] = np.nan
    values[absent] = np.nan
    if not exact:
        points, values, scores = points.round(DIGITS), values.round(DIGITS), scores.round(DIGITS)
    return fo.Keypoints(
        keypoints=[
            fo.Keypoint(label="person", points=p.tolist(), confidence=v.tolist(), score=score)
            for p, v, score in zip(points, values, scores.tolist(), strict=True)
        ]
    )
