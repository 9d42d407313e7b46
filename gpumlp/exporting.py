"""A network in formats that other programs run: ONNX, safetensors, NumPy's npz, a page for a browser."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .data import DataError, Dataset, load_digits
from .nn.model_file import ModelFileError, describe, model_bytes, plain_inputs
from .nn.network import MLP
from .onnx_program import onnx_bytes
from .predicting import choose_preparation


def safetensors_bytes(model: MLP) -> bytes:
    """The network as ``model.save`` writes it: ``layers.0.weight`` of shape (in, out), ``layers.0.bias``, ...

    ``MLP.load`` reads it too.
    """
    return model_bytes(model)


def npz_bytes(model: MLP) -> bytes:
    """The network as arrays of an .npz file, without pickle.

    ``weight_0`` ``(in_features, out_features)``, ``bias_0`` ``(out_features,)``, ``weight_1``, ...; ``divisor``:
    255 after a training on pixels, otherwise 1, what the samples are divided by; ``activation``, its name;
    ``negative_slope``, of leaky_relu, otherwise 0; ``loss``, its name; ``shape`` of a sample; ``class_names``,
    0, 1, 2, ... by default.
    """
    description, inputs = describe(model), plain_inputs(model)
    names = description["class_names"]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in model.state_dict().items():
        _, index, part = name.split(".")
        arrays[f"{part}_{index}"] = tensor
    arrays |= {
        "divisor": np.array(255 if inputs.pixels else 1, dtype=model.dtype),
        "activation": np.array(model.activation.name),
        "negative_slope": np.array(description["activation_options"].get("negative_slope", 0), dtype=model.dtype),
        "loss": np.array(description["loss"]),
        "shape": np.array(inputs.shape, dtype=np.int64),
        "class_names": np.arange(model.sizes[-1]) if names is None else np.array(names),
    }
    buffer = io.BytesIO()
    savez: Any = np.savez  # whose signature has an option among the names
    savez(buffer, **arrays)
    return buffer.getvalue()


def html_bytes(model: MLP, data: Dataset | None = None) -> bytes:
    """The network as a page to draw on, which answers in a browser; see `gpumlp.report.drawing_page`.

    Args:
        model: for images of one channel.
        data: images as it was trained on, as those of a run's test set; without them, paper and ink are those of
            MNIST or of the built-in digits.

    Raises:
        ModelFileError: the network does not take images, or, without `data`, images in a scale that nobody knows;
            or its activation is not one of gpumlp's.
        MissingExtraError: jinja2 is not installed.
    """
    from .report import drawing_page  # not above: most exports need none of it
    from .report.embedding import image_size

    inputs = plain_inputs(model)
    shape = image_size(inputs.shape)
    if shape is None:
        raise ModelFileError(
            f"a page to draw on needs a network for images of height x width; this one takes samples of "
            f"{' x '.join(map(str, inputs.shape))}"
        )
    if data is None:
        try:
            choose_preparation(inputs)
        except DataError as error:
            raise ModelFileError(
                f"there is no page for this network without its data: it was trained on images of {inputs.dtype} "
                "in a scale of their own; export the run that it comes from, or give the data to "
                "gpumlp.report.drawing_page"
            ) from error
        # The built-in digits fill their images, others are taken to have a margin as MNIST's.
        data = load_digits()[0] if inputs.data == "digits" else None
    title = "Draw a digit" if inputs.data in ("mnist", "digits") else "Draw for the network"
    try:
        page = drawing_page(model, shape, title=title, data=data)
    except ValueError as error:
        raise ModelFileError(f"there is no page for this network: {error}") from error
    return page.encode()


FORMATS: dict[str, Callable[[MLP], bytes]] = {
    "onnx": onnx_bytes,
    "safetensors": safetensors_bytes,
    "npz": npz_bytes,
    "html": html_bytes,
}
