"""Copies and pickles of a network, whose layers are views of one buffer and have to be made anew."""

from __future__ import annotations

import warnings
from typing import Any

from ..backends import DeviceError, get_backend

_KEPT = ("sizes", "activation", "loss", "dtype", "initializer", "inputs", "class_names")


class Portable:
    """What `copy` and `pickle` need of an `MLP`."""

    def __getstate__(self: Any) -> dict[str, Any]:
        """Everything on the host, so that a network from a GPU can be read anywhere."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return {**kept, "device": self.backend.name, "tensors": self.state_dict()}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        """On the device that the network was on, or on the CPU, with a warning, where that cannot be used."""
        self.__dict__.update({name: state[name] for name in _KEPT})
        device = state["device"]
        try:
            self.backend = get_backend(device)
        except DeviceError as error:
            message = f"a network from {device} is read onto the CPU: {error.cause}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.backend = get_backend("cpu")
        self._allocate()
        self.load_state_dict(state["tensors"])

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        """On the same device, with parameters of its own and its gradients at 0."""
        copy = object.__new__(type(self))
        copy.__dict__.update(
            self.__dict__
        )  # the backend and the rules are shared: they hold no state of a network
        copy.sizes = [*self.sizes]
        copy._allocate()
        with self.backend.activate():
            self.backend.xp.copyto(copy.parameters.data, self.parameters.data)
        return copy

    def __copy__(self: Any) -> Any:
        return self.__deepcopy__({})  # a second network in the same buffer would be trained with the first
