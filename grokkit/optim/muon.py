"""Muon for convolutions, SGD for all other parameters: the optimizer of the speed records on CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

ROUNDS = 3
"""Newton-Schulz iterations; three are enough according to the source."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic that each iteration applies to the singular values; steep at 0, so that few
iterations are enough."""


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix with the same singular vectors and singular values near 1.

    It is scaled to Frobenius norm 1, then `ROUNDS` times s -> a s + b s^3 + c s^5 for every singular value s. This does
    not converge to 1: values of a fiftieth of the norm or more end within 0.68..1.21, smaller ones grow at most
    41-fold.

    Args:
        matrix: (M, N), any floating dtype.

    Returns: (M, N) in the same dtype.

    Cost: `ROUNDS` times 4 min(M, N)^2 max(M, N) + 2 min(M, N)^3 FLOP; nothing waits for the device. In bfloat16 on a
        GPU that supports it, as in the source, else in float32.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; airbench94_muon.py.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(_select_dtype(matrix.device))
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    for _ in range(ROUNDS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * (gram @ gram)) @ wide
    result: Tensor = wide if x.shape[0] <= x.shape[1] else wide.mT
    return result.to(matrix.dtype)


def _select_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if tensor cores support it (compute capability 8.0 and above), else float32."""
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if fast else torch.float32


class Muon(Optimizer):
    """Nesterov momentum with orthogonalised updates for convolutions; SGD with Nesterov momentum for the rest.

    Before its update a convolution's weight is scaled to Frobenius norm sqrt(filters), so that only its direction is
    learned: meant for nets in which a normalisation follows every trained convolution. The other parameters are updated
    as in torch's SGD. The three parameter groups `convolutions`, `vectors` and `matrices` have separate rates; a
    scheduler scales all of them by the same factor.

    Args:
        params: parameters of the model; frozen ones are skipped. Four dimensions: a convolution. One: a bias or a
            scale. Any other: a matrix, such as the head's.
        lr: rate of the convolutions; how far a weight of spectral norm about 1 turns per update.
        momentum: momentum of the convolutions.
        vector_lr, matrix_lr: SGD's rates, for the gradient of the mean loss.
        sgd_momentum: momentum of vectors and matrices.
        weight_decay: share by which an update shrinks a vector or matrix at full rate (torch's SGD: its
            `weight_decay` times its rate). Convolutions need none: their norm is fixed.

    Raises:
        ValueError: a rate or decay below 0, a momentum outside [0, 1).

    Source: KellerJordan/cifar10-airbench, airbench94_muon.py, which writes the same rates for the summed loss.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.24,
        momentum: float = 0.6,
        vector_lr: float = 0.1,
        matrix_lr: float = 0.1,
        sgd_momentum: float = 0.85,
        weight_decay: float = 0.0,
    ) -> None:
        for name, rate in (("lr", lr), ("vector_lr", vector_lr), ("matrix_lr", matrix_lr), ("decay", weight_decay)):
            if not rate >= 0:
                raise ValueError(f"`{name}` must be 0 or more; got {rate}")
        for name, share in (("momentum", momentum), ("sgd_momentum", sgd_momentum)):
            if not 0 <= share < 1:
                raise ValueError(f"`{name}` must lie in [0, 1); got {share}")
        trained = [parameter for parameter in params if parameter.requires_grad]
        kinds = [
            ("convolutions", [p for p in trained if p.dim() == 4], lr, momentum),
            ("vectors", [p for p in trained if p.dim() == 1], vector_lr, sgd_momentum),
            ("matrices", [p for p in trained if p.dim() not in (1, 4)], matrix_lr, sgd_momentum),
        ]
        groups = [
            {
                "params": parameters,
                "kind": kind,
                "lr": rate,
                "momentum": share,
                "capturable": True,
                "weight_decay": weight_decay / rate if rate and kind != "convolutions" else 0.0,
            }
            for kind, parameters, rate, share in kinds
            if parameters
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; nothing waits for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        average = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update = gradient.add(average, alpha=group["momentum"])
        if group["kind"] == "convolutions":
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            update = orthogonalize(update.flatten(1)).reshape(update.shape)
        # The rate may be a tensor on the device, which `alpha=` would read back.
        parameter.sub_(update * group["lr"])
