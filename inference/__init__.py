"""HigherHRNet inference: network, geometry, aggregation, grouping, maps, and the run over a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import PoseHeatmapModel


def zoo_download(model_name: str, model_path: str) -> None:
    from . import checkpoints, weights

    weights.copy(checkpoints.find_model(model_name), model_path)


def zoo_load(model_name: str, model_path: str, **settings: object) -> PoseHeatmapModel:
    from .model import load_model

    return load_model(model_name, model_path, **settings)
