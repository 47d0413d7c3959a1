"""Measure the spline partition of a network's input space: local complexity, exact partitions of segments."""

from grokkit.spline.complexity import complexity_spectrum, local_complexity
from grokkit.spline.frames import draw_orthonormal_frame
from grokkit.spline.path_integral import ExactIntegratedGradients, exact_integrated_gradients
from grokkit.spline.presets import preset
from grokkit.spline.results import ComplexitySpectrum, LocalComplexity
from grokkit.spline.segment import Segments, partition_segment
from grokkit.spline.uncertainty import complexity_interval
from grokkit.stats.intervals import t_interval

__all__ = [
    "ComplexitySpectrum",
    "ExactIntegratedGradients",
    "LocalComplexity",
    "Segments",
    "complexity_interval",
    "complexity_spectrum",
    "draw_orthonormal_frame",
    "exact_integrated_gradients",
    "local_complexity",
    "partition_segment",
    "preset",
    "t_interval",
]
