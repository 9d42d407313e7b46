"""A network as an ONNX program."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from ..extras import require
from ..nn import ELU, GELU, MLP, Activation, Committee, Identity, LeakyReLU, ModelFileError, SiLU, Softplus
from ..nn.activations import ACTIVATIONS
from ..nn.committee import members_of, one_input
from ..nn.losses import output_function
from ..nn.model_file import describe, plain_inputs
from ..nn.preprocessing import HALF, INK, STEEPEST, Preprocessing, middle_of
from .dense import dense_layers

_OPSET, _IR_VERSION = 17, 8  # of 2022: older runtimes are rare
_INT64, _DOUBLE = 7, 11  # of onnx.TensorProto.DataType
_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
_PROBABILITIES: dict[str, tuple[str, dict[str, int]]] = {
    "softmax": ("Softmax", {"axis": 1}),
    "sigmoid": ("Sigmoid", {}),
}


def onnx_bytes(model: MLP | Committee) -> bytes:
    """The network, or a committee, as the content of an ONNX file, checked by ``onnx.checker``.

    The input is ``samples``, ``(samples, *shape)`` with any number of samples. If the network was trained on
    uint8, it is uint8, and the division by 255 is part of the graph; otherwise it has the network's dtype and is
    used as it is. The outputs are ``probabilities`` and ``logits``, ``(samples, classes)`` of the network's dtype,
    and, of a softmax, ``classes``, ``(samples,)`` int64, the most probable ones; a regression has only
    ``outputs``. A committee has the means over its members, and no ``logits``.

    Raises:
        ModelFileError: an activation or a layer is not one of gpumlp's, the loss makes other predictions than
            these, or the members of a committee take samples of different scales or dtypes.
        MissingExtraError: onnx is not installed.
    """
    require("exports to ONNX", "onnx", "onnx")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from gpumlp import __version__

    program, first = _Program(model), members_of(model)[0]
    number = helper.np_dtype_to_tensor_dtype(first.dtype)
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
            helper.make_tensor_value_info(name, *kinds.get(name, (number, ["samples", first.sizes[-1]])))
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
    helper.set_model_props(result, {"class_names": json.dumps(describe(first)["class_names"])})
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

    def __init__(self, model: MLP | Committee) -> None:
        self.inputs, members = one_input(model), members_of(model)
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._dtype = members[0].dtype
        try:
            function = output_function(members[0].loss)
        except ValueError as error:
            raise ModelFileError(f"{error}, which have no equivalent in ONNX") from error
        self._rows: dict[Preprocessing | None, str] = {}
        if len(members) == 1:
            logits, found = self._member(members[0], function, "")
            self.outputs = list(dict.fromkeys([found, logits])) if function != "exp" else [found]
        else:
            each = [self._member(member, function, f"members.{k}.")[1] for k, member in enumerate(members)]
            name = "probabilities" if function in _PROBABILITIES else "outputs"
            mean = self._add("Mul", [self._add("Sum", each, "sum"), self._name(1 / len(each))], name)
            found, self.outputs = mean, [mean]
        if function == "softmax":
            self.outputs.append(self._add("ArgMax", [found], "classes", axis=1, keepdims=0))

    def _member(self, model: MLP, function: str, prefix: str) -> tuple[str, str]:
        """The outputs of a network, before and after the function of its loss."""
        x = self._first(model)
        self.constants |= {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
        layers = dense_layers(model)
        last = prefix + ("outputs" if function == "identity" else "logits")
        for index, layer in enumerate(layers):
            is_last = index == len(layers) - 1
            own = f"{prefix}layers.{index}"
            x = self._add("Gemm", [x, f"{own}.weight", f"{own}.bias"], last if is_last else f"{own}.sums")
            if not is_last:
                x = self._activate(layer.activation, x, own)
        if function == "exp":
            return last, self._add("Exp", [last], f"{prefix}outputs")
        if function in _PROBABILITIES:
            operator, options = _PROBABILITIES[function]
            return last, self._add(operator, [last], f"{prefix}probabilities", **options)
        return last, last

    def _first(self, model: MLP) -> str:
        """The samples as rows of scaled values, the input of the first layer; one for each preprocessing."""
        inputs = plain_inputs(model)
        if inputs.preprocessing in self._rows:
            return self._rows[inputs.preprocessing]
        prefix, x = f"{len(self._rows)}." if self._rows else "", "samples"
        number = {"float32": 1, "float64": _DOUBLE}[self._dtype.name]
        if inputs.preprocessing is not None:
            x = self._preprocessed(inputs.preprocessing, inputs.shape, prefix)
            x = self._add("Cast", [x], f"{prefix}preprocessed", to=number)
        self.constants["flat"] = np.array([0, model.sizes[0]], dtype=np.int64)
        x = self._add("Reshape", [x, "flat"], f"{prefix}rows")
        if self.inputs.pixels:
            self.constants["white"] = np.array(255, dtype=self._dtype)
            x = self._add("Cast", [x], f"{prefix}numbers", to=number)
            x = self._add("Div", [x, "white"], f"{prefix}scaled")
        self._rows[inputs.preprocessing] = x
        return x

    def _preprocessed(self, preprocessing: Preprocessing, shape: tuple[int, ...], prefix: str) -> str:
        """What `Preprocessing` makes of the samples, in the same order of operations, in float64."""
        rows, columns = shape
        count = itertools.count()

        def node(operator: str, *sources: Any, **options: Any) -> str:
            return self._add(
                operator, [constant(each) for each in sources], f"{prefix}step{next(count)}", **options
            )

        def constant(source: Any) -> str:
            if isinstance(source, str):
                return source
            name = f"{prefix}constant{next(count)}"
            self.constants[name] = np.asarray(source, None if isinstance(source, np.ndarray) else np.float64)
            return name

        def total(values: str) -> str:
            return node("ReduceSum", values, np.array([1, 2]), keepdims=1)

        def or_one(values: str) -> str:
            return node("Where", node("Greater", values, 0), values, 1)

        images = node("Cast", node("Reshape", "samples", np.array([0, rows, columns])), to=_DOUBLE)
        y, x = np.arange(rows, dtype=np.float64)[:, None], np.arange(columns, dtype=np.float64)
        mass = or_one(total(images))

        def mean(values: Any) -> str:
            return node("Div", total(node("Mul", images, values)), mass)

        dy = node("Sub", y, mean(y))
        slope: str | float = 0.0
        if preprocessing.deskew:
            spread = or_one(mean(node("Mul", dy, dy)))
            slope = node("Div", mean(node("Mul", node("Sub", x, mean(x)), dy)), spread)
            slope = node("Max", node("Min", slope, STEEPEST), -STEEPEST)
        shift = node("Mul", slope, dy)
        if preprocessing.width is None:
            place, reach, taps = node("Add", shift, x), constant(1), 1
        else:
            brightest = node("ReduceMax", images, axes=[1, 2], keepdims=1)
            ink = node("Greater", images, node("Mul", INK, brightest))
            upright, centre = node("Sub", x, shift), middle_of(preprocessing.width, columns)
            left = node("ReduceMin", node("Where", ink, upright, columns), axes=[1, 2], keepdims=1)
            right = node("ReduceMax", node("Where", ink, upright, -1), axes=[1, 2], keepdims=1)
            found = node("GreaterOrEqual", right, left)
            size = node("Add", node("Sub", right, left), 1)
            scale = node("Where", found, node("Div", size, preprocessing.width), 1)
            middle = node("Where", found, node("Div", node("Add", left, right), 2), centre)
            place = node("Add", node("Add", middle, node("Mul", scale, x - centre)), shift)
            reach, taps = node("Max", scale, 1), -(-(rows + columns) // preprocessing.width)
        first, sums, weights = node("Floor", place), [], []
        for tap in range(1 - taps, taps + 1):
            source = node("Add", first, tap)
            distance = node("Div", node("Abs", node("Sub", place, source)), reach)
            weights.append(node("Max", node("Sub", 1, distance), 0))
            clipped = node("Max", node("Min", source, columns - 1), 0)
            inside = node("Where", node("Equal", source, clipped), weights[-1], 0)
            taken = node("GatherElements", images, node("Cast", clipped, to=_INT64), axis=2)
            sums.append(node("Mul", inside, taken))
        result = node("Div", node("Sum", *sums), node("Sum", *weights))
        return node("Floor", node("Add", result, HALF)) if self.inputs.pixels else result

    def _activate(self, h: Activation, s: str, layer: str) -> str:
        """h(s), from operations that runtimes have for float64 too, unlike LeakyRelu, Elu and Softplus."""
        if type(h) not in ACTIVATIONS.built_in:
            raise ModelFileError(f"the activation {h!r} has no equivalent in ONNX")

        def node(operator: str, name: str, *sources: str | float) -> str:
            return self._add(operator, [self._name(source) for source in sources], f"{layer}.{name}")

        if isinstance(h, Identity):
            return s
        if isinstance(h, LeakyReLU):
            return node("Max", "outputs", s, node("Mul", "scaled", s, h.negative_slope))
        if isinstance(h, GELU):
            cubic = node("Mul", "cubic", node("Mul", "squares", s, s), h.cubic)
            z = node("Mul", "z", s, node("Add", "factor", cubic, h.linear))
            return node("Mul", "outputs", s, node("Sigmoid", "gate", z))
        if isinstance(h, SiLU):
            return node("Mul", "outputs", s, node("Sigmoid", "gate", s))
        if isinstance(h, ELU):
            power = node("Sub", "below", node("Exp", "power", node("Min", "negative", s, 0)), 1)
            return node("Add", "outputs", node("Max", "positive", s, 0), node("Mul", "scaled", power, h.alpha))
        if isinstance(h, Softplus):
            power = node("Exp", "power", node("Neg", "size", node("Abs", "absolute", s)))
            rest = node("Log", "rest", node("Add", "sum", power, 1))
            return node("Add", "outputs", node("Max", "positive", s, 0), rest)
        return node(_OPERATORS[h.name], "outputs", s)

    def _name(self, source: str | float) -> str:
        """The name of an array; a number becomes a constant."""
        if isinstance(source, str):
            return source
        name = f"number {source!r}"
        self.constants[name] = np.array(source, dtype=self._dtype)
        return name

    def _add(self, operator: str, sources: list[str], target: str, **options: Any) -> str:
        self.nodes.append((operator, sources, target, options))
        return target
