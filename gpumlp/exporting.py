"""The formats of ``python -m gpumlp.export``: ONNX, safetensors, NumPy's .npz, and a page for a browser."""

from __future__ import annotations

from collections.abc import Callable

from .data import DataError, Dataset, load_digits
from .files import utf8
from .interop.npz import npz_bytes
from .interop.onnx import onnx_bytes
from .nn import MLP, Committee, ModelFileError
from .nn.committee import members_of, one_input
from .nn.model_file import committee_bytes, model_bytes
from .pictures import choose_preparation
from .words import as_product

__all__ = ["FORMATS", "html_bytes", "npz_bytes", "onnx_bytes", "safetensors_bytes"]


def safetensors_bytes(model: MLP | Committee) -> bytes:
    """The network as ``MLP.save`` writes it, or the committee as ``Committee.save`` does.

    Raises:
        ModelFileError: it cannot be saved.
    """
    members = members_of(model)
    return model_bytes(members[0]) if len(members) == 1 else committee_bytes(members)


def html_bytes(model: MLP | Committee, data: Dataset | None = None) -> bytes:
    """The network, or a committee, as a page to draw on, which predicts in the browser.

    See `gpumlp.report.drawing_page`.

    Args:
        model: for images with one channel.
        data: images like those it was trained on, such as a run's test set, for the colours of paper and ink; by
            default these are as in MNIST or in the built-in digits.

    Raises:
        ModelFileError: the network does not take images, or, without `data`, images with an unknown scale; an
            activation or a layer is not one of gpumlp's; or a committee makes a page of more than 3 MB.
        MissingExtraError: jinja2 is not installed.
    """
    from .report import drawing_page  # not above: most exports need none of it
    from .report.embedding import image_size

    inputs = one_input(model)
    shape = image_size(inputs.shape)
    if shape is None:
        raise ModelFileError(
            f"a page to draw on needs a network for images of height x width; this one takes samples of "
            f"{as_product(inputs.shape)}"
        )
    if data is None:
        try:
            choose_preparation(inputs)
        except DataError as error:
            raise ModelFileError(
                f"a page for this network needs its data: it was trained on images of {inputs.dtype} with a scale "
                "of their own; export the run that it comes from, or pass the data to gpumlp.report.drawing_page"
            ) from error
        # The built-in digits fill their images; all other data is assumed to have a margin like MNIST's.
        data = load_digits()[0] if inputs.data == "digits" else None
    title = "Draw a digit" if inputs.data in ("mnist", "digits") else "Draw for the network"
    try:
        page = drawing_page(model, shape, title=title, data=data)
    except ValueError as error:
        raise ModelFileError(f"cannot make a page for this network: {error}") from error
    return utf8(page)


FORMATS: dict[str, Callable[[MLP | Committee], bytes]] = {
    "onnx": onnx_bytes,
    "safetensors": safetensors_bytes,
    "npz": npz_bytes,
    "html": html_bytes,
}
