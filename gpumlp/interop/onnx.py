"""A network as an ONNX program."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ..extras import require
from ..nn import MLP, LeakyReLU, ModelFileError
from ..nn.activations import ACTIVATIONS
from ..nn.losses import output_function
from ..nn.model_file import describe, plain_inputs

_OPSET, _IR_VERSION = 17, 8  # of 2022: older runtimes are rare
_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
_PROBABILITIES: dict[str, tuple[str, dict[str, int]]] = {
    "softmax": ("Softmax", {"axis": 1}),
    "sigmoid": ("Sigmoid", {}),
}


def onnx_bytes(model: MLP) -> bytes:
    """The network as the content of an ONNX file, checked by ``onnx.checker``.

    The input is ``samples``, ``(samples, *shape)`` with any number of samples. If the network was trained on
    uint8, it is uint8, and the division by 255 is part of the graph; otherwise it has the network's dtype and is
    used as it is. The outputs are ``probabilities`` and ``logits``, ``(samples, classes)`` of the network's dtype,
    and ``classes``, ``(samples,)`` int64, the most probable ones; a regression has only ``outputs``.

    Raises:
        ModelFileError: the activation is not one of gpumlp's, or the loss makes other predictions than these.
        MissingExtraError: onnx is not installed.
    """
    require("exports to ONNX", "onnx", "onnx")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from gpumlp import __version__

    program = _Program(model)
    number = helper.np_dtype_to_tensor_dtype(model.dtype)
    kinds = {"classes": (TensorProto.INT64, ["samples"])}
    samples = TensorProto.UINT8 if program.inputs.pixels else number
    graph = helper.make_graph(
        [
            helper.make_node(operator, sources, [target], target, **rest)
            for operator, sources, target, rest in program.nodes
        ],
        "gpumlp",
        [helper.make_tensor_value_info("samples", samples, ["samples", *program.inputs.shape])],
        [
            helper.make_tensor_value_info(name, *kinds.get(name, (number, ["samples", model.sizes[-1]])))
            for name in program.outputs
        ],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in program.constants.items()],
    )
    result = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="gpumlp",
        producer_version=__version__,
    )
    helper.set_model_props(result, {"class_names": json.dumps(describe(model)["class_names"])})
    onnx.checker.check_model(result, full_check=True)
    return bytes(result.SerializeToString())


class _Program:
    """The operations of the network, as a list of ONNX nodes.

    Attributes:
        inputs: description of a sample.
        nodes: operator, names of its inputs, name of its output, and options.
        constants: arrays by name, including weights and biases.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: MLP) -> None:
        self.inputs = plain_inputs(model)
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        self.constants: dict[str, npt.NDArray[Any]] = dict(model.state_dict())
        try:
            function = output_function(model.loss)
        except ValueError as error:
            raise ModelFileError(f"{error}, which have no equivalent in ONNX") from error
        last = "outputs" if function == "identity" else "logits"
        x = self._first(model)
        for index in range(len(model.layers)):
            is_last = index == len(model.layers) - 1
            sums = last if is_last else f"layers.{index}.sums"
            x = self._add("Gemm", [x, f"layers.{index}.weight", f"layers.{index}.bias"], sums)
            if not is_last:
                x = self._activate(model, x, f"layers.{index}")
        if function == "exp":
            last = self._add("Exp", [last], "outputs")
        self.outputs = [last]
        if function in _PROBABILITIES:
            operator, options = _PROBABILITIES[function]
            self.outputs.insert(0, self._add(operator, [last], "probabilities", **options))
        if function == "softmax":
            self.outputs.append(self._add("ArgMax", [last], "classes", axis=1, keepdims=0))

    def _first(self, model: MLP) -> str:
        """The samples as rows of scaled values, the input of the first layer."""
        self.constants["flat"] = np.array([0, model.sizes[0]], dtype=np.int64)
        rows = self._add("Reshape", ["samples", "flat"], "rows")
        if not self.inputs.pixels:
            return rows
        self.constants["white"] = np.array(255, dtype=model.dtype)
        number = {"float32": 1, "float64": 11}[model.dtype.name]  # of onnx.TensorProto.DataType
        return self._add("Div", [self._add("Cast", [rows], "numbers", to=number), "white"], "scaled")

    def _activate(self, model: MLP, sums: str, layer: str) -> str:
        target = f"{layer}.outputs"
        if type(model.activation) not in ACTIVATIONS.built_in:
            raise ModelFileError(f"the activation {model.activation!r} has no equivalent in ONNX")
        if isinstance(model.activation, LeakyReLU):  # max(s, c s): some runtimes have LeakyRelu for float32 only
            self.constants["slope"] = np.array(model.activation.negative_slope, dtype=model.dtype)
            return self._add("Max", [sums, self._add("Mul", [sums, "slope"], f"{layer}.scaled")], target)
        if model.activation.name == "identity":
            return sums
        return self._add(_OPERATORS[model.activation.name], [sums], target)

    def _add(self, operator: str, sources: list[str], target: str, **options: Any) -> str:
        self.nodes.append((operator, sources, target, options))
        return target
