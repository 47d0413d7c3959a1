"""Build optimizers by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from grokkit.config.run_config import Spec
from grokkit.errors import UsageError
from grokkit.optim import decay
from grokkit.optim.muon import Muon
from grokkit.registry import did_you_mean

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "muon": Muon}


def get_optimizer_class(name: str) -> type[Optimizer]:
    """Return the optimizer class for `name`. Raises UsageError for an unknown name, with the nearest match."""
    if name not in OPTIMIZERS:
        raise UsageError(
            f"unknown optimizer {name!r}.{did_you_mean(name, list(OPTIMIZERS))} Known: {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def build_optimizer(spec: Spec, parameters: Iterable[Tensor]) -> Optimizer:
    """Build the optimizer of a spec.

    torch's own optimizers are `fused` unless the options set it. The option `fixed_decay`, which all of them accept, is
    stored in the parameter groups: `PolicyLR` then keeps lr * weight_decay at its value for the base rate.

    Raises:
        UsageError: an unknown name or option, or `fixed_decay` without weight decay.
    """
    cls = get_optimizer_class(spec.name)
    known = [*list(inspect.signature(cls).parameters)[1:], decay.FIXED_DECAY]
    for name in spec.options:
        if name not in known:
            raise UsageError(
                f"optimizer {spec.name!r} has no option {name!r}.{did_you_mean(name, known)} "
                f"Its options: {', '.join(known)}"
            )
    options = {**({} if spec.name == "muon" else {"fused": True}), **spec.options}
    is_fixed = options.pop(decay.FIXED_DECAY, False)
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    try:
        optimizer = cls(list(parameters), **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {spec.name!r} with {dict(spec.options)}: {error}") from error
    decay.mark_fixed_decay(optimizer, is_fixed, has_decay_option="weight_decay" in options)
    return optimizer
