"""The panels: what people see of a run, on the grid and in an open sample."""

from .grid import HeatmapsPanel
from .sample import SampleHeatmapsPanel

PANELS = (HeatmapsPanel, SampleHeatmapsPanel)
