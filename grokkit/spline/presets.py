"""Published settings of local complexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grokkit.errors import UnknownNameError, UsageError
from grokkit.literals import CountingMethod
from grokkit.registry import did_you_mean


@dataclass(frozen=True)
class Preset:
    """One published setting.

    Args:
        radii: radii of the neighbourhood, in the input space of the model.
        directions: orthonormal directions P; the published code counts the 2 P vertices instead.
        points: images measured in each set.
        method: counting method.
        dtype: of model and images.
        source: paper and the published code's file.
    """

    radii: tuple[float, ...]
    directions: int
    points: int
    method: CountingMethod
    dtype: str
    source: str

    def options(self, radius: float | None = None) -> dict[str, Any]:
        """Return the arguments of `local_complexity` at one of the radii; it may be None if there is only one."""
        selected = self.radii[0] if radius is None and len(self.radii) == 1 else radius
        if selected not in self.radii:
            raise UsageError(f"`radius` must be one of the preset's {self.radii}; got {radius!r}")
        return {"radius": selected, "directions": self.directions, "method": self.method}

    def measure(self) -> dict[str, Any]:
        """Return the parameters of the measure `local_complexity`."""
        return {"radii": self.radii, "directions": self.directions, "points": self.points, "method": self.method}


_PAPER = "Humayun, Balestriero and Baraniuk 2024, arXiv:2402.15555"
_PRESETS = {
    "humayun2024": Preset((0.005,), 20, 1024, "vertex", "float32", f"{_PAPER}; configs.py, ResNet18 on CIFAR10"),
    "humayun2024_mnist": Preset(
        (0.05, 0.1, 0.5, 1.0, 5.0), 25, 1000, "vertex", "float64", f"{_PAPER}; configs.py and train_mlp_mnist.py"
    ),
}


def preset(name: str) -> Preset:
    """Return a published setting of local complexity by name.

    `humayun2024`: PreActResNet18 on CIFAR10, P = 20, r = 0.005 in the normalised input space, 1,024 points of each
    set. `humayun2024_mnist`: MLPs on MNIST, P = 25, five radii, float64 (call `.double()` on the model), 1,000
    training points; pass the 10,000 test and 10,000 random points yourself. For these MLPs the published code also
    counts the sign changes of the logits, which do not enter an activation and are not counted here.

    >>> preset("humayun2024").options()
    {'radius': 0.005, 'directions': 20, 'method': 'vertex'}

    Raises:
        UnknownNameError: no preset has this name; the message suggests the nearest.

    Source: Humayun, Balestriero and Baraniuk, arXiv:2402.15555, and its code's `configs.py`.
    """
    if name not in _PRESETS:
        known = sorted(_PRESETS)
        raise UnknownNameError(f"unknown preset {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return _PRESETS[name]
