"""A network in formats that other programs run: ONNX, safetensors, NumPy's npz."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import gpumlp

from .extras import require
from .nn.activations import LeakyReLU
from .nn.model_file import Inputs, ModelFileError, describe, model_bytes
from .nn.network import MLP

_OPSET, _IR_VERSION = 17, 8  # of 2022: runtimes that are older are rare
_SIMPLE = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def onnx_bytes(model: MLP) -> bytes:
    """The network as ONNX, checked by ``onnx.checker``.

    Input ``samples``: ``(samples, *shape)``. After a training on pixels it is uint8, and the division by 255 is
    part of the graph; otherwise it is of the network's dtype and used as it is. Outputs: ``probabilities`` and
    ``logits``, ``(samples, classes)`` of the network's dtype, and ``classes``, ``(samples,)`` int64, the most
    probable one. The number of samples is free.

    Raises:
        ModelFileError: the activation is not one of gpumlp's.
        MissingExtraError: onnx is not installed.
    """
    require("exports to ONNX", "onnx", "onnx")
    import onnx
    from onnx import helper, numpy_helper

    description = describe(model)
    inputs = _inputs(model)
    number = helper.np_dtype_to_tensor_dtype(model.dtype)
    constants: dict[str, npt.NDArray[Any]] = {"flat": np.array([0, model.sizes[0]], dtype=np.int64)}
    nodes = []

    def add(operator: str, sources: list[str], target: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, sources, [target], name=target, **attributes))
        return target

    x = add("Reshape", ["samples", "flat"], "rows")
    if inputs.pixels:
        constants["scale"] = np.array(255, dtype=model.dtype)
        x = add("Div", [add("Cast", [x], "cast", to=number), "scale"], "scaled")
    for index in range(len(model.layers)):
        is_last = index == len(model.layers) - 1
        parameters = [f"layers.{index}.weight", f"layers.{index}.bias"]
        x = add("Gemm", [x, *parameters], "logits" if is_last else f"layers.{index}.sums")
        if is_last:
            break
        target = f"layers.{index}.outputs"
        if isinstance(
            model.activation, LeakyReLU
        ):  # as max(s, c s): the operator LeakyRelu is float32 only in places
            constants["slope"] = np.array(model.activation.negative_slope, dtype=model.dtype)
            x = add("Max", [x, add("Mul", [x, "slope"], f"layers.{index}.scaled")], target)
        elif model.activation.name in _SIMPLE:
            x = add(_SIMPLE[model.activation.name], [x], target)
        elif model.activation.name != "identity":
            raise ModelFileError(f"ONNX has no equal of the activation {model.activation!r}")
    add("Softmax", ["logits"], "probabilities", axis=1)
    add("ArgMax", ["logits"], "classes", axis=1, keepdims=0)

    classes = model.sizes[-1]
    kind = onnx.TensorProto.UINT8 if inputs.pixels else number
    graph = helper.make_graph(
        nodes,
        "gpumlp",
        [helper.make_tensor_value_info("samples", kind, ["samples", *inputs.shape])],
        [
            helper.make_tensor_value_info("probabilities", number, ["samples", classes]),
            helper.make_tensor_value_info("logits", number, ["samples", classes]),
            helper.make_tensor_value_info("classes", onnx.TensorProto.INT64, ["samples"]),
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(tensor), name)
            for name, tensor in {**constants, **model.state_dict()}.items()
        ],
    )
    program = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="gpumlp",
        producer_version=gpumlp.__version__,
    )
    helper.set_model_props(program, {"class_names": json.dumps(description["class_names"])})
    onnx.checker.check_model(program, full_check=True)
    return bytes(program.SerializeToString())


def safetensors_bytes(model: MLP) -> bytes:
    """The network as ``model.save`` writes it: ``layers.0.weight`` of shape (in, out), ``layers.0.bias``, ...

    ``MLP.load`` reads it too.
    """
    return model_bytes(model)


def npz_bytes(model: MLP) -> bytes:
    """The network as arrays of an .npz file, without pickle.

    ``weight_0`` ``(in_features, out_features)``, ``bias_0`` ``(out_features,)``, ``weight_1``, ...; ``divisor``:
    255 after a training on pixels, otherwise 1, what the samples are divided by; ``activation``, its name;
    ``negative_slope``, of leaky_relu, otherwise 0; ``shape`` of a sample; ``class_names``, 0, 1, 2, ... by
    default.
    """
    description, inputs = describe(model), _inputs(model)
    names = description["class_names"]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in model.state_dict().items():
        _, index, part = name.split(".")
        arrays[f"{part}_{index}"] = tensor
    arrays |= {
        "divisor": np.array(255 if inputs.pixels else 1, dtype=model.dtype),
        "activation": np.array(model.activation.name),
        "negative_slope": np.array(description["activation_options"].get("negative_slope", 0), dtype=model.dtype),
        "shape": np.array(inputs.shape, dtype=np.int64),
        "class_names": np.arange(model.sizes[-1]) if names is None else np.array(names),
    }
    buffer = io.BytesIO()
    savez: Any = np.savez  # whose signature has an option among the names
    savez(buffer, **arrays)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[MLP], bytes]] = {
    "onnx": onnx_bytes,
    "safetensors": safetensors_bytes,
    "npz": npz_bytes,
}


def _inputs(model: MLP) -> Inputs:
    return model.inputs or Inputs((model.sizes[0],), model.dtype.name, "")
