"""Notice whether a model's weights have changed, almost without reading them: by the version counters of their tensors,
their addresses in memory, and one number of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import unwrap

Places = list[tuple[Mapping[str, Tensor | None], str]]


class WeightVersions:
    """Versions of a model's parameters and buffers at the last call of `remember`.

    Every in-place operation of PyTorch counts the version of its tensor up, but not one through `.data`, as many
    exchanges of the weights for their moving average are, one through NumPy, or one by a CUDA graph. These show in the
    samples, the number in the middle of each tensor. Cost: a tenth of a millisecond a call for a ResNet-18, without
    waiting for the device.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._places: Places = []
        self._tensors: list[Tensor] = []
        self._samples: list[list[Tensor]] = []
        self._ids: list[int] = []
        self._addresses: list[int] = []
        self._noted: tuple[list[int], list[Tensor]] | None = None

    @property
    def is_new(self) -> bool:
        """Whether `remember` was never called."""
        return self._noted is None

    def remember(self) -> None:
        """Remember the present versions."""
        if self.is_new or self._are_replaced(self._places):
            self._places = _list_places(self._model)
            self._tensors = _get_tensors(self._places)
            self._samples = _view_samples(self._tensors)
            self._ids, self._addresses = list(map(id, self._tensors)), _list_addresses(self._tensors)
        self._noted = self._read()

    def have_changed(self) -> bool:
        """Return whether a tensor was changed or replaced since `remember`."""
        if self._noted is None or self._are_replaced(_list_places(self._model)):
            return True
        (before, samples_before), (now, samples_now) = self._noted, self._read()
        # compared as bytes: NaN is not equal to itself
        return before != now or not all(
            torch.equal(one.view(torch.uint8), other.view(torch.uint8))
            for one, other in zip(samples_before, samples_now, strict=True)
        )

    def _are_replaced(self, places: Places) -> bool:
        """Return whether other tensors are at these places, or the same ones with other memory."""
        tensors = _get_tensors(places)
        return list(map(id, tensors)) != self._ids or _list_addresses(tensors) != self._addresses

    def _read(self) -> tuple[list[int], list[Tensor]]:
        try:
            versions = [each._version for each in self._tensors]
        except RuntimeError:  # tensors made in inference mode have no version
            versions = []
        return versions, [torch.stack(each) for each in self._samples]


def _list_places(model: nn.Module) -> Places:
    """Return where the model's modules hold its parameters and buffers."""
    holders: list[Mapping[str, Tensor | None]] = [
        holder for each in unwrap(model).modules() for holder in (each._parameters, each._buffers)
    ]
    return [(holder, name) for holder in holders for name, each in holder.items() if each is not None]


def _get_tensors(places: Places) -> list[Tensor]:
    return [each for holder, name in places if (each := holder.get(name)) is not None]


def _list_addresses(tensors: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _view_samples(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Return views of the number in the middle of each tensor, by device and type."""
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for each in tensors:
        data = each.detach()
        if type(data) is Tensor and data.layout is torch.strided and data.numel() and data.is_floating_point():
            found[data.device, data.dtype].append(data[tuple(size // 2 for size in data.shape)])
    return list(found.values())
