"""Notice whether a model's weights have changed, without reading them: by the version counters of their tensors."""

from __future__ import annotations

from torch import Tensor, nn

from grokkit.device.preserved_state import unwrap


class WeightVersions:
    """Versions of a model's parameters and buffers at the last call of `remember`.

    Every in-place operation of PyTorch counts the version of its tensor up. Cost: some microseconds a call.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = self._list_tensors()
        self._noted: list[int] | None = None

    @property
    def is_new(self) -> bool:
        """Whether `remember` was never called."""
        return self._noted is None

    def remember(self) -> None:
        """Remember the present versions."""
        self._noted = self._read(self._tensors)

    def have_changed(self) -> bool:
        """Return whether a tensor was changed or replaced since `remember`, or whether that cannot be known."""
        tensors = self._list_tensors()
        replaced = [id(each) for each in tensors] != [id(each) for each in self._tensors]
        return replaced or self._noted is None or self._read(tensors) != self._noted

    def _list_tensors(self) -> list[Tensor]:
        model = unwrap(self._model)
        return [*model.parameters(), *model.buffers()]

    @staticmethod
    def _read(tensors: list[Tensor]) -> list[int] | None:
        try:
            return [each._version for each in tensors]
        except RuntimeError:  # tensors made in inference mode have no version
            return None
