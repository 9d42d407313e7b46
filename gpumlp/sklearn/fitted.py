"""A fitted estimator: its weights, the network made of them, devices, copies and pickles."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..backends import Array, Backend, HostArray, get_backend, is_device_array
from ..nn.network import MLP
from .inputs import on_device, read_samples
from .solver import Solver, outputs


class Fitted:
    """What an estimator keeps of its network.

    The truth is ``coefs_`` and ``intercepts_``. On the CPU they are views of the network's buffer, so that writing
    into them is writing into the network; on a GPU they are read-only copies. An array that is exchanged for
    another is taken over before the next use.
    """

    coefs_: list[HostArray]
    intercepts_: list[HostArray]
    device: Any
    _activation: str
    _loss: str

    def _backend(self) -> Backend:
        """Of the device that the parameter names.

        Raises:
            DeviceError: it cannot be used; the message says why and what mends it.
        """
        network = self.__dict__.get("_network")
        if network is not None and self.__dict__.get("_on") == self.device:
            backend: Backend = network.backend
            return backend
        return get_backend(self.device)

    def _expose(self, network: MLP) -> None:
        """Let the estimator have this network, and show its weights."""
        self._network, self._on = network, self.device
        if isinstance(network.parameters.data, np.ndarray):
            self.coefs_ = [layer.weight for layer in network.layers]
            self.intercepts_ = [layer.bias for layer in network.layers]
        else:
            self.coefs_, self.intercepts_ = self._attributes(network).values()
            for array in (*self.coefs_, *self.intercepts_):
                array.flags.writeable = False  # it would be lost: the network is elsewhere
        self._shown = [*self.coefs_, *self.intercepts_]

    def _attributes(self, network: MLP) -> dict[str, list[HostArray]]:
        """Copies of the weights on the host, as they are now, under their names."""
        tensors, layers = network.state_dict(), range(len(network.layers))
        return {
            "coefs_": [tensors[f"layers.{index}.weight"] for index in layers],
            "intercepts_": [tensors[f"layers.{index}.bias"] for index in layers],
        }

    def _current(self) -> MLP:
        """The network with the weights that the attributes hold, on the device that the parameter names.

        Raises:
            NotFittedError: there is none.
            ValueError: an array that was exchanged does not fit.
        """
        check_is_fitted(self)
        network: MLP | None = self.__dict__.get("_network")
        if network is None or self._on != self.device:  # read from a pickle, or the parameter was changed
            backend = self._backend()
            sizes = [len(self.coefs_[0]), *(np.shape(weight)[1] for weight in self.coefs_)]
            network = MLP(sizes, self._activation, device=backend, loss=self._loss)
            solver = self.__dict__.get("_solver")
            if isinstance(solver, Solver):
                self._solver: Solver | dict[str, Any] = solver.to_host()
        elif len(self._shown) == len(self.coefs_) + len(self.intercepts_) and all(
            mine is shown for mine, shown in zip((*self.coefs_, *self.intercepts_), self._shown, strict=True)
        ):
            return network
        tensors = {f"layers.{index}.weight": np.asarray(array) for index, array in enumerate(self.coefs_)}
        tensors |= {f"layers.{index}.bias": np.asarray(array) for index, array in enumerate(self.intercepts_)}
        network.load_state_dict(tensors)
        self._expose(network)
        return network

    def _outputs_of(self, X: Any) -> Array:
        """The network's outputs for samples: on the device if X is there, else a NumPy array."""
        network = self._current()
        backend = network.backend
        X = read_samples(self, X, backend, reset=False)
        with backend.activate():
            found = outputs(network, backend.asarray(X, dtype=network.dtype))
        return found if on_device(X, backend) else backend.to_numpy(found)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coefs_")

    def __getstate__(self) -> dict[str, Any]:
        """Everything on the host: what was fitted on a GPU can be read where there is none."""
        state = dict(super().__getstate__())  # type: ignore[misc]
        for name in ("_network", "_on", "_shown"):
            state.pop(name, None)
        solver = state.get("_solver")
        if isinstance(solver, Solver):
            state["_solver"] = solver.to_host()
        return state

    def __sklearn_array_api_convert__(self, converter: Any) -> Any:
        """A copy on the device to which `converter` moves arrays, for scikit-learn's ``move_estimator_to``."""
        probe = converter(np.zeros(1, dtype=np.float32))
        moved = copy.copy(self)
        if isinstance(probe, np.ndarray):
            moved.device = "cpu"
        elif is_device_array(probe):
            moved.device = f"cuda:{probe.device.id}"
        else:
            raise ValueError(f"expected NumPy or CuPy as the place to go to, got {type(probe).__module__}")
        return moved
