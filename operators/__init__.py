"""The operators, one a file: a form and a call."""

from .attach_heatmaps import AttachHeatmaps
from .compare_runs import CompareRuns
from .convert_checkpoint import ConvertCheckpoint
from .delete_evaluation import DeleteEvaluation
from .delete_heatmaps import DeleteHeatmaps
from .evaluate_heatmaps import EvaluateHeatmaps
from .generate_heatmaps import GenerateHeatmaps
from .index_poses import IndexPoses
from .relocate_heatmaps import RelocateHeatmaps

OPERATORS = (
    GenerateHeatmaps,
    AttachHeatmaps,
    EvaluateHeatmaps,
    CompareRuns,
    IndexPoses,
    RelocateHeatmaps,
    DeleteHeatmaps,
    DeleteEvaluation,
    ConvertCheckpoint,
)
