"""The operators, one a file: a form and a call."""

from .attach_heatmaps import AttachHeatmaps
from .compare_runs import CompareRuns
from .delete_heatmaps import DeleteHeatmaps
from .generate_heatmaps import GenerateHeatmaps
from .index_poses import IndexPoses

OPERATORS = (GenerateHeatmaps, AttachHeatmaps, CompareRuns, IndexPoses, DeleteHeatmaps)
