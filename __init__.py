"""Pose Heatmaps: a FiftyOne plugin and remote model source.

Imports are one level deep and happen inside the functions: FiftyOne runs this file again and again, and as a zoo
source under another name.
"""

from typing import Any


def register(plugin: Any) -> None:
    from .operators import OPERATORS
    from .panels import PANELS

    for part in (*OPERATORS, *PANELS):
        plugin.register(part)


def download_model(model_name: str, model_path: str) -> None:
    """Put the weights of a zoo model where FiftyOne looks for them."""
    from .inference import zoo_download

    zoo_download(model_name, model_path)


def load_model(model_name: str, model_path: str, **settings: Any) -> Any:
    """The model for ``dataset.apply_model``; ``settings`` as of the operator generate_heatmaps."""
    from .inference import zoo_load

    return zoo_load(model_name, model_path, **settings)
