"""Measure how much the gates of a net differ between images: the Overfitting-Underfitting Indicator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import preserved_state
from grokkit.errors import ModelContractError, UsageError
from grokkit.measures import register
from grokkit.measures.base import Context, select_probes, to_tensor, unwrap_normalisation
from grokkit.names import Reading
from grokkit.spline.passes import forward_with_interception
from grokkit.spline.uncounted import find_uncounted
from grokkit.units import Call, known_constants


@register("oui")
@dataclass(frozen=True)
class OUI:
    """The Overfitting-Underfitting Indicator (arXiv 2504.17160): in 0..1, 0 for a net that is linear on the images.

    The mean over layers and pairs of different images of 2 min(d, 1/2), where d is the share of a layer's units that
    are above their kink at one image of the pair and below it at the other.

    Args:
        probe_sets: sets to measure; those that the run does not have are skipped.
        points: images of each set, the first ones, 2 or more.

    Cost: one forward pass per image, and points^2 multiplications per unit.
    """

    probe_sets: tuple[str, ...] = ("train", "test", "random")
    points: int = 128

    def __post_init__(self) -> None:
        if self.points < 2:
            raise UsageError(f"`points` must be at least 2: OUI compares images; got {self.points}")

    def __call__(self, context: Context) -> Reading:
        """Measure OUI. Dims (probe_set,); unit: mean share of gates, doubled and capped at 1."""
        probes = select_probes(context, self.probe_sets, self.points)
        values = np.zeros(len(probes))
        for i, probe in enumerate(probes.values()):
            net, inputs, _ = unwrap_normalisation(context.model, to_tensor(probe, context.model))
            values[i] = gate_distances(net, inputs).mean()
        counts = tuple(len(probe) for probe in probes.values())
        return Reading(
            "oui", values, ("probe_set",), {"probe_set": tuple(probes)}, "2 x share of gates, at most 1", n=counts
        )


def gate_distances(net: nn.Module, inputs: Tensor) -> np.ndarray:
    """Compute one value per image whose mean is OUI and whose spread gives its standard error.

    Args:
        net: any module that local complexity can count.
        inputs: (N, ...) in the net's own input space, N >= 2.

    Returns:
        float64 (N,): image i gets OUI + 2 (m_i - OUI), m_i = its mean over pairs. Their mean is OUI. The factor 2 is
        there because every image counts twice in a mean over pairs: the standard error of the mean of the returned
        values is then that of OUI (Hoeffding 1948, first order).

    Raises:
        UsageError: fewer than 2 images.
        ModelContractError: the net has no counted units.
    """
    if len(inputs) < 2:
        raise UsageError(f"OUI compares images and needs at least 2; got {len(inputs)}")
    shares: list[Tensor] = []

    def on_call(call: Call) -> None:
        shares.append(
            sum((_mean_pair_distance(call.z > kink) for kink in call.kinks), torch.zeros(())) / len(call.kinks)
        )

    with preserved_state(net) as inner, torch.no_grad(), known_constants(find_uncounted(inner, inputs).constants):
        forward_with_interception(inner, inputs.clone(), on_call)
    if not shares:
        raise ModelContractError(
            "the model calls no activation that grokkit counts (ReLU, GELU, ...; see `grokkit model`): move the "
            "activation into the module's forward"
        )
    distances = torch.stack(shares).mean(0)
    return (distances.mean() + 2 * (distances - distances.mean())).numpy()


def _mean_pair_distance(gates: Tensor) -> Tensor:
    """Compute, from bool (N, ...), the mean over the other images of 2 min(d, 1/2): float64 (N,) on the CPU."""
    signs = gates.flatten(1).float() * 2 - 1
    count, units = signs.shape
    # products of signs sum to units - 2 x differences: integers, exact in float32 below 2^24 units
    share = (1 - (signs @ signs.T).double() / units) / 2
    return ((2 * share.clamp(max=0.5)).sum(1) / (count - 1)).cpu()
