"""The operators, one a file: a form and a call."""

from .generate_heatmaps import GenerateHeatmaps

OPERATORS = (GenerateHeatmaps,)
