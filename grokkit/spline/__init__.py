"""The partition of input space that a network makes, and how finely it is cut around given points."""

from grokkit.spline.complexity import complexity_spectrum, local_complexity
from grokkit.spline.frames import orthonormal_frame
from grokkit.spline.results import ComplexitySpectrum, LocalComplexity

__all__ = [
    "ComplexitySpectrum",
    "LocalComplexity",
    "complexity_spectrum",
    "local_complexity",
    "orthonormal_frame",
]
