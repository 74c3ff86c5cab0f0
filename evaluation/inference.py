"""The modules of the folder `inference` that this one needs; the only place that knows where that folder is.

Inside the plugin it is a package beside this one, run from the repository's root it is top level. Type checkers see the
latter.
"""

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__ == "evaluation":
    from inference import cores, joints, runs, views
else:
    from ..inference import cores, joints, runs, views

__all__ = ["cores", "joints", "runs", "views"]


def load_mirrored() -> ModuleType:
    """`inference.mirrored`, which imports torch, only when it is used."""
    if TYPE_CHECKING or __package__ == "evaluation":
        from inference import mirrored
    else:
        from ..inference import mirrored
    return mirrored
