"""The partition of input space that a network makes, and how finely it is cut around given points."""

from grokkit.spline.complexity import complexity_spectrum, local_complexity
from grokkit.spline.frames import orthonormal_frame
from grokkit.spline.path_integral import ExactIntegratedGradients, exact_integrated_gradients
from grokkit.spline.results import ComplexitySpectrum, LocalComplexity
from grokkit.spline.segment import Segments, partition_segment

__all__ = [
    "ComplexitySpectrum",
    "ExactIntegratedGradients",
    "LocalComplexity",
    "Segments",
    "complexity_spectrum",
    "exact_integrated_gradients",
    "local_complexity",
    "orthonormal_frame",
    "partition_segment",
]
