"""What a model sees in an image, and in its mirror image turned back: for telling how far the two differ."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from . import checkpoints
from .cores import usable_cores
from .images import read_image
from .joints import JointSet
from .maps import make_maps
from .predictor import Prediction, Predictor, PreparedImage
from .runs import Record

READ_AHEAD = 64  # images


@dataclass(frozen=True)
class PlainAndMirrored:
    """The maps of one image.

    Attributes:
        sample_id: of the sample
        filepath: of its image
        plain: (K, h, w) float32 0 to 1, of the image
        mirrored: the same of its mirror image, turned back: left joints are left again
        problem: why there are none, as a sentence; None where there are
    """

    sample_id: str
    filepath: str
    plain: NDArray[np.float32] | None = None
    mirrored: NDArray[np.float32] | None = None
    problem: str | None = None


def load(record: Record, device: str | None = None) -> tuple[Predictor, JointSet]:
    """The model of a run with its settings, but without the flip test, which would average what is to be compared, and
    in float32, so that what is different is not rounding.

    Raises:
        ValueError: if the weights that made the run are no longer there
        CheckpointError: if they cannot be used
    """
    settings = record.settings
    model = checkpoints.load(settings["model"], settings.get("checkpoint"))
    if model.sha256 != settings.get("sha256"):
        raise ValueError(
            f"The weights of '{settings['model']}' are not those that made the maps of '{record.label_field}'. Run "
            "generate_heatmaps again with existing='replace', then compare."
        )
    joint_set = model.entry.joint_set
    scales = tuple(settings["scales"])
    return Predictor(model.network, joint_set.flip, settings["input_size"], scales=scales, device=device), joint_set


def look(
    samples: Iterable[tuple[str, str]],
    predictor: Predictor,
    joint_set: JointSet,
    joints: Sequence[str],
    num_readers: int | None = None,
) -> Iterator[PlainAndMirrored]:
    """Run images plain and mirrored, in batches of one shape, so nearly in their order.

    Args:
        samples: ids and files
        predictor, joint_set: as of :func:`load`
        joints: whose maps are wanted
        num_readers: threads that decode images; None = one for two cores
    """
    batch_size = 4 if predictor.device.type == "cpu" else 16
    samples = iter(samples)
    reading: deque[tuple[str, str, Future[PreparedImage]]] = deque()
    waiting: dict[tuple, list[tuple[str, str, PreparedImage]]] = {}  # by shape
    readers = ThreadPoolExecutor(num_readers or max(1, usable_cores() // 2), "read")
    try:
        while True:
            free = READ_AHEAD - len(reading) - sum(map(len, waiting.values()))
            for sample_id, filepath in itertools.islice(samples, free):
                reading.append((sample_id, filepath, readers.submit(_read, predictor, filepath)))
            if not reading:
                break
            sample_id, filepath, future = reading.popleft()
            try:
                image = future.result()
            except Exception as error:
                yield PlainAndMirrored(sample_id, filepath, problem=str(error))
                continue
            same = waiting.setdefault(image.shape, [])
            same.append((sample_id, filepath, image))
            if len(same) == batch_size:
                yield from _run(waiting.pop(image.shape), predictor, joint_set, joints)
            elif sum(map(len, waiting.values())) >= READ_AHEAD // 2:
                oldest = next(iter(waiting))
                yield from _run(waiting.pop(oldest), predictor, joint_set, joints)
        for batch in waiting.values():
            yield from _run(batch, predictor, joint_set, joints)
    finally:
        readers.shutdown(wait=True, cancel_futures=True)


def _read(predictor: Predictor, filepath: str) -> PreparedImage:
    return predictor.prepare(read_image(filepath))


def _run(
    batch: list[tuple[str, str, PreparedImage]], predictor: Predictor, joint_set: JointSet, joints: Sequence[str]
) -> Iterator[PlainAndMirrored]:
    """Run a batch; where it fails (out of memory, say), run its images one by one."""
    try:
        pairs = _maps([image for _, _, image in batch], predictor, joint_set, joints)
    except RuntimeError as error:
        if len(batch) > 1:
            for item in batch:
                yield from _run([item], predictor, joint_set, joints)
            return
        (sample_id, filepath, _), reason = batch[0], str(error).splitlines()[0]
        yield PlainAndMirrored(sample_id, filepath, problem=f"The network failed on it: {reason}")
        return
    for (sample_id, filepath, _), (plain, mirrored) in zip(batch, pairs, strict=True):
        yield PlainAndMirrored(sample_id, filepath, plain, mirrored)


def _maps(
    images: list[PreparedImage], predictor: Predictor, joint_set: JointSet, joints: Sequence[str]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For each image the maps (K, h, w) of what the network sees in it, and in its mirror image."""
    warps = [image.warp for image in images]
    # The network's input is mirrored, as in the flip test: turned back, the heatmaps lie exactly on the plain ones.
    mirror_images = [replace(i, inputs=[np.ascontiguousarray(x[:, ::-1]) for x in i.inputs]) for i in images]
    order = torch.tensor(joint_set.flip, device=predictor.device)
    channels = [joint_set.joints.index(joint) for joint in joints]
    mirrored = predictor.predict(mirror_images)
    turned = Prediction(mirrored.heatmaps.flip(3)[:, order], None, mirrored.tags)
    plain = Prediction(predictor.predict(images).heatmaps, None, mirrored.tags)
    seen = [make_maps(prediction, warps, "network", "float32") for prediction in (plain, turned)]
    return [tuple(maps.joints[channels] for maps in pair) for pair in zip(*seen, strict=True)]
