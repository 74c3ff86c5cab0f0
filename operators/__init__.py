"""The operators, one a file: a form and a call."""

from .attach_heatmaps import AttachHeatmaps
from .delete_heatmaps import DeleteHeatmaps
from .generate_heatmaps import GenerateHeatmaps

OPERATORS = (GenerateHeatmaps, AttachHeatmaps, DeleteHeatmaps)
