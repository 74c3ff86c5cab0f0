"""The model for ``dataset.apply_model`` and FiftyOne's model zoo.

It gives the same maps and people as the operator, but FiftyOne drives it: images come from FiftyOne's loaders, and
results go back through its one writing thread. For large datasets the operator is faster, and loses no batch to a
corrupt file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fiftyone as fo
import fiftyone.core.models as fom
import numpy as np
import torch
from bson import ObjectId
from numpy.typing import NDArray

from . import checkpoints, runs
from .cores import usable_cores
from .labels import Labeller, Seen, see
from .map_files import MapWriter
from .predictor import PreparedImage
from .settings import Settings, default_maps_dir


class PoseHeatmapModel(fom.SamplesMixin, fom.Model):
    """Images to pose heatmaps.

    Args:
        settings: as of a run; ``label_field``, ``batch_size`` and ``num_readers`` are FiftyOne's here

    Predictions are dicts: ``max`` and the joints (``fo.Heatmap``), ``keypoints`` (``fo.Keypoints``), ``num_people``,
    ``confidence``, ``status``. With ``apply_model(model, "pose")`` they become the fields ``pose_max`` and so on.
    Storage ``"files"`` needs samples, whose ids name the files; without samples the maps stay in memory.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        loaded = checkpoints.load(settings.model, settings.checkpoint)
        self.settings = settings
        self.joint_set = loaded.entry.joint_set
        self.run_id = runs.new_run_id()
        self.config = SimpleNamespace()  # FiftyOne asks it for settings that this model does not have
        self._predictor = settings.predictor(loaded)
        self._in_memory = Labeller(settings, self.joint_set, None)
        self._files: MapWriter | None = None
        self._preprocess = True

    @property
    def media_type(self) -> str:
        return "image"

    @property
    def ragged_batches(self) -> bool:
        return False  # True would keep FiftyOne from making batches; images of any size are welcome

    @property
    def transforms(self) -> None:
        return None

    @property
    def preprocess(self) -> bool:
        return self._preprocess

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        self._preprocess = value

    def __exit__(self, *args: object) -> None:
        if self._files:
            self._files.__exit__(*args)
            self._files = None

    def predict(self, arg: NDArray[np.uint8], sample: fo.Sample | None = None) -> dict[str, Any]:
        """The labels of one image (H, W, 3), uint8 RGB."""
        return self.predict_all([arg], None if sample is None else [sample])[0]

    def predict_all(
        self, args: Iterable[NDArray[np.uint8]], samples: Sequence[fo.Sample] | None = None
    ) -> list[dict[str, Any]]:
        """The labels of images (H, W, 3), uint8 RGB, of any sizes.

        Raises:
            OSError: if the maps cannot be written
        """
        usual_threads = torch.get_num_threads()
        try:
            # One core each: the pose refiner is a network, too.
            with ThreadPoolExecutor(usable_cores(), "label", torch.set_num_threads, (1,)) as threads:
                images = list(threads.map(self._predictor.prepare, args))
                labeller = self._labeller(samples)
                return list(threads.map(labeller.labels, self._see(images), _ids(samples, len(images))))
        finally:
            torch.set_num_threads(usual_threads)  # a worker's setting is also that of threads that begin later

    def _see(self, images: list[PreparedImage]) -> list[Seen]:
        """In the order of the images, though images of one shape go through the network together."""
        shapes: dict[tuple, list[int]] = {}
        for index, image in enumerate(images):
            shapes.setdefault(image.shape, []).append(index)
        seen: dict[int, Seen] = {}
        for members in shapes.values():
            batch = [images[index] for index in members]
            results = see(self._predictor, self.settings, batch, bool(self._in_memory.joints))
            seen.update(zip(members, results, strict=True))
        return [seen[index] for index in range(len(images))]

    def _labeller(self, samples: Sequence[fo.Sample] | None) -> Labeller:
        if self.settings.storage == "memory" or not samples:
            return self._in_memory
        if self._files is None:
            maps_dir = self.settings.maps_dir or default_maps_dir(samples[0].dataset)
            self._files = MapWriter(str(Path(maps_dir).expanduser().absolute()), self.run_id).__enter__()
        return Labeller(self.settings, self.joint_set, self._files)


def load_model(name: str, model_path: str | None = None, **settings: Any) -> PoseHeatmapModel:
    """A model for ``dataset.apply_model``.

    Args:
        name: of the model
        model_path: where FiftyOne looks for weights; not used, as the plugin fetches and checks its own
        settings: as of :class:`.settings.Settings`

    Raises:
        ValueError: if a setting is unknown or makes no sense
    """
    try:
        chosen = Settings(model=name, **settings)
    except TypeError as error:
        known = [field for field in Settings.__dataclass_fields__ if field not in ("model", "label_field")]
        raise ValueError(f"Unknown setting ({error}). The settings are: {', '.join(known)}.") from error
    return _model_class()(chosen)


def _model_class() -> type[PoseHeatmapModel]:
    """A class that FiftyOne's data loaders serve where torchvision, which they need, can be imported."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # missing, or built for another torch
        return PoseHeatmapModel

    import fiftyone.utils.torch as fout

    class LoaderPoseHeatmapModel(PoseHeatmapModel, fom.SupportsGetItem, fom.TorchModelMixin):
        """Images are decoded in FiftyOne's loader processes, as arrays: PIL's path would ignore EXIF orientation."""

        def build_get_item(self, field_mapping: dict | None = None) -> fout.ImageGetItem:
            return fout.ImageGetItem(field_mapping=field_mapping, raw_inputs=True, use_numpy=True)

        @property
        def has_collate_fn(self) -> bool:
            return True  # lists of arrays of any sizes: TorchModelMixin's own

        @property
        def _using_gpu(self) -> bool:
            return False  # FiftyOne's loaders ask with pin_memory=True; batches are lists, of which nothing is pinned

    return LoaderPoseHeatmapModel


def _ids(samples: Sequence[fo.Sample] | None, count: int) -> list[str]:
    """The samples' ids, or new ones: a frame of a video has none before it is saved."""
    return [""] * count if samples is None else [sample.id or str(ObjectId()) for sample in samples]
