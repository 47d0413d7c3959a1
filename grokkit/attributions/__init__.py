"""Attribute a prediction to pixels: relevance per pixel, with checks on the inputs and the results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.attributions.checks import check_completeness, completeness_sums
from grokkit.device.model_check import WithoutAutocast, check_two_classes, require_gradient, run_classifier
from grokkit.device.preserved_state import device_of, preserved_state, require_full_precision
from grokkit.errors import NumericsError, UsageError
from grokkit.interrupt import check_interrupt
from grokkit.registry import Registry
from grokkit.seeding import seeded

registry: Registry[AttributionMethod] = Registry("attribution", "grokkit.attributions")
register, names, create = registry.register, registry.names, registry.create

__all__ = ["Attribution", "AttributionMethod", "attribute", "create", "names", "register"]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Per-pixel relevance of one prediction per image.

    Args:
        values: (N, C, H, W) float32 on the CPU, in units of the target's logit; (N, 1, H, W) for `grad_cam`, whose
            maps are upsampled to the image.
        checks: for methods with the completeness property `complete`, `tolerance` and, as (N,) float64 tensors,
            `completeness_gap` and `output_difference`; for `deep_lift` also `without_rule`, the operations that
            pass back their plain gradient, and `precision`, in which it was computed; empty for the others.
        settings: the method with all its parameters, seed, targets, precision and Captum's version.
    """

    values: Tensor
    checks: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class AttributionMethod(ABC):
    """An attribution method: a frozen dataclass whose fields are its parameters, registered by `register(name)`."""

    def prepare(self, net: nn.Module, example: Tensor) -> tuple[AttributionMethod, nn.Module]:
        """Return the method with its defaults resolved, and the module to explain; `example` is one image (1, ...)."""
        return self, net

    def reference(self, images: Tensor) -> Tensor | None:
        """Return the baselines (n, ...) that the values are relative to, or None for a method without completeness."""
        return None

    def further_checks(self, net: nn.Module) -> dict[str, Any]:
        """Return what the result's `checks` say besides completeness, of the module that `prepare` returned."""
        return {}

    @abstractmethod
    def explain(self, net: nn.Module, images: Tensor, target: Tensor, rows: int) -> Tensor:
        """Compute the relevance (n, C, H, W) of the logits `target` (n,) for n <= rows images.

        No forward pass has more than `rows` rows. `images` is a leaf that requires a gradient; the net is in eval
        mode and its output has been validated.
        """


def attribute(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor | None,
    method: str = "integrated_gradients",
    *,
    seed: int = 0,
    batch_size: int = 64,
    **parameters: Any,
) -> Attribution:
    """Explain one logit per image, in eval mode and strict precision, without changing the model.

    Args:
        model: any module from images to logits (N, classes); float32 or float64.
        images: (N, C, H, W) floating tensor in the model's input space, pixels for a `Classifier`.
        target: class to explain: one for all, (N,) one per image, or None for the predicted class.
        method: one of `names()`.
        seed: root of every random draw, the same for each call: two snapshots are compared on common noise.
        batch_size: images in the largest forward pass, the method's inner steps included; the values depend on it by
            rounding only.
        parameters: of the method.

    Raises:
        UsageError: an unknown method or parameter, images or targets of the wrong form.
        ModelContractError: a model that the method cannot handle; the message names an alternative.
        NumericsError: values that are not finite.

    Cost: one forward pass, plus that of the method. Most are Captum's (Kokhlikyan et al., 2020, arXiv 2009.07896).
    """
    explainer = create(method, **parameters)
    _validate_inputs(images, batch_size)
    with (
        preserved_state(model) as net,
        seeded(seed, "attribution", method),
        torch.enable_grad(),
        WithoutAutocast(),
    ):
        dtype = require_full_precision(net, "attributions need")
        inputs = images.detach().to(device_of(net), dtype)
        logits = _compute_logits(net, inputs, batch_size)
        targets = _to_targets(target, logits)
        require_gradient(net, inputs[:1])
        explainer, module = explainer.prepare(net, inputs[:1].clone())
        parts = list(_explain_chunks(explainer, net, module, inputs, targets, logits, batch_size))
    values = torch.cat([part for part, _ in parts])
    if not torch.isfinite(values).all():
        raise NumericsError(f"attribution {method!r} gave values that are not finite")
    checks = _collect_checks(explainer, module, [check for _, check in parts], dtype)
    settings = {
        "method": method,
        **asdict(explainer),
        "seed": seed,
        "precision": str(dtype).removeprefix("torch."),
        "target": "predicted" if target is None else "given",
        "targets": targets.tolist(),
        "captum": version("captum"),
    }
    return Attribution(values, checks, settings)


def _explain_chunks(
    explainer: AttributionMethod,
    net: nn.Module,
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
    logits: Tensor,
    rows: int,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield, per chunk, the values on the CPU and the (n, 3) completeness check, or None without completeness."""
    for chunk, target, outputs in zip(*(torch.split(each, rows) for each in (images, targets, logits)), strict=True):
        check_interrupt()
        # Captum leaves `requires_grad` set after an exception: pass it a fresh leaf, never the caller's tensor.
        values = explainer.explain(module, chunk.clone().requires_grad_(), target, rows).detach()
        baselines = explainer.reference(chunk)
        check = (
            None
            if baselines is None
            else completeness_sums(values, outputs, _compute_logits(net, baselines, rows), target)
        )
        yield values.float().cpu(), check


def _collect_checks(
    explainer: AttributionMethod, module: nn.Module, sums: list[Tensor | None], dtype: torch.dtype
) -> dict[str, Any]:
    """Return the `checks` of an attribution from the completeness sums of its chunks."""
    tolerance = getattr(explainer, "tolerance", 0.0)
    completeness = check_completeness([each for each in sums if each is not None], tolerance, dtype)
    return {**completeness, **explainer.further_checks(module)}


def _compute_logits(net: nn.Module, images: Tensor, rows: int) -> Tensor:
    """Compute the (N, classes) logits without a gradient."""
    outputs = []
    with torch.no_grad():
        for chunk in torch.split(images, rows):
            check_interrupt()
            outputs.append(run_classifier(net, chunk.clone()))
    return torch.cat(outputs)


def _to_targets(target: int | Tensor | None, logits: Tensor) -> Tensor:
    """Return (N,) int64 classes on the device of the logits."""
    count, classes = logits.shape
    if target is None:
        return logits.argmax(1)
    check_two_classes(logits, "targets need")
    expected = f"`target` must be None, one class in 0..{classes - 1} or a tensor of {count} of them"
    try:
        targets = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{expected}; got {target!r:.80} ({type(target).__name__})") from error
    if not _is_integer(targets.dtype) or targets.shape not in ((), (count,)):
        raise UsageError(f"{expected}; got {targets.dtype} of shape {tuple(targets.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise UsageError(f"{expected}; got {int(targets.min())}..{int(targets.max())}")
    return targets.to(logits.device, torch.int64).expand(count).clone()


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _validate_inputs(images: Tensor, batch_size: int) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4 or not len(images):
        received = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a floating tensor (N, C, H, W) with N of 1 or more; got {received}")
    if batch_size < 1:
        raise UsageError(f"`batch_size` must be at least 1; got {batch_size}")
