"""What panels draw, without a browser; tests/app has the rest."""

import sys
from types import ModuleType

import fiftyone.operators as foo
import fiftyone.operators.types as types
import pytest


@pytest.fixture
def sample_panel() -> ModuleType:
    """The module of the panel in an open sample, as the plugin has it."""
    return sys.modules[type(foo.get_operator("@pose-heatmaps/higherhrnet/pose_heatmaps_sample")).__module__]


def test_people_with_fewer_values_than_joints_are_drawn(sample_panel: ModuleType):
    run = sample_panel.Run("pose", None, {}, {"keypoints": "pose_keypoints"}, ("nose", "neck"), "attached maps")
    people = sample_panel._people({"pose_keypoints": {"keypoints": [{"score": 0.5, "confidence": [0.7]}, {}]}}, run)
    body = types.Object()
    sample_panel._render_people(body, run, people, ["nose", "neck"])
    drawn = str(types.Property(body).to_json())
    assert "0.70" in drawn
    assert drawn.count("not found") == 3
