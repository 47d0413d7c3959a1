"""Optimizers by name."""

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
    """The optimizer called `name`; a UsageError with the nearest match otherwise."""
    if name not in OPTIMIZERS:
        raise UsageError(
            f"no optimizer is called {name!r}.{did_you_mean(name, list(OPTIMIZERS))} Known: {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def build_optimizer(chosen: Spec, parameters: Iterable[Tensor]) -> Optimizer:
    """The optimizer; torch's own ones are `fused` unless the options say otherwise. The option `fixed_decay`, which all
    of them take, goes into the parameter groups: `PolicyLR` then keeps lr * weight_decay as it is at the base rate.

    Raises:
        UsageError: an unknown name or option, or a decay to keep where there is none.
    """
    kind = get_optimizer_class(chosen.name)
    taken = [*list(inspect.signature(kind).parameters)[1:], decay.FIXED_DECAY]
    for name in chosen.options:
        if name not in taken:
            raise UsageError(
                f"optimizer {chosen.name!r} has no option {name!r}.{did_you_mean(name, taken)} "
                f"It takes: {', '.join(taken)}"
            )
    options = {**({} if chosen.name == "muon" else {"fused": True}), **chosen.options}
    kept = options.pop(decay.FIXED_DECAY, False)
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    try:
        optimizer = kind(list(parameters), **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer {chosen.name!r} with {dict(chosen.options)}: {error}") from error
    decay.mark_fixed_decay(optimizer, kept, said="weight_decay" in options)
    return optimizer
