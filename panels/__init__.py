"""The panels: what people see of a run, on the grid and in an open sample."""

from .evaluation import EvaluationPanel
from .grid import HeatmapsPanel
from .sample import SampleHeatmapsPanel

PANELS = (HeatmapsPanel, SampleHeatmapsPanel, EvaluationPanel)
