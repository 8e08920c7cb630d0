"""Figures, drawn with Matplotlib from histories and arrays. They read no files."""

from kdistill.evaluation.figures.curves import Curve, learning_curves
from kdistill.evaluation.figures.examples import Example, dark_knowledge, most_likely
from kdistill.evaluation.figures.outputs import average_precisions, predicted_against_true, vectors
from kdistill.evaluation.figures.style import NAME, NAVY, ORANGE, save, shorten
from kdistill.evaluation.figures.sweeps import HeatMap, Line, errors_over, heat_maps

__all__ = [
    "NAME",
    "NAVY",
    "ORANGE",
    "Curve",
    "Example",
    "HeatMap",
    "Line",
    "average_precisions",
    "dark_knowledge",
    "errors_over",
    "heat_maps",
    "learning_curves",
    "most_likely",
    "predicted_against_true",
    "save",
    "shorten",
    "vectors",
]
