"""Figure of what the units of the first layer look at, before and after training."""

from __future__ import annotations

import numpy as np

from ..backends import Backend, HostArray
from ..nn import MLP, SGD
from ..training import fit
from .samples import Data, in_words, load
from .style import FigureResult, Sheet, in_house_style


@in_house_style
def first_layer_weights(
    data: Data | None = None,
    *,
    seed: int = 0,
    units: int = 32,
    shown: int = 16,
    epochs: int = 5,
    l2: float = 1e-3,
    device: str | Backend = "cpu",
) -> FigureResult:
    """The first layer's weights as images, untrained and after a training in this call.

    Args:
        data: training and test set; MNIST or the built-in digits by default.
        seed: of the initial weights and the batch order.
        units: of the one hidden layer.
        shown: how many of them to show: those whose weights changed most.
        epochs: of training with SGD 0.1, momentum 0.9, batches of 128.
        l2: penalty; without it, what the data does not use stays as random as it was.
        device: as for `MLP`.

    Returns:
        The figure; ``untrained`` and ``trained`` ``(shown, height, width)``; ``smoothness_untrained`` and
        ``smoothness_trained``: the correlation of neighbouring weights, 0 for noise and near 1 for a picture;
        ``accuracy_untrained`` and ``accuracy_trained`` on the test set.

    Raises:
        ValueError: the samples are not images.
    """
    train, test = load(data)
    if len(train.feature_shape) != 2:
        raise ValueError(f"first_layer_weights expects images of height x width, got {train}")
    model = MLP([train.features, units, train.classes], seed=seed, device=device)
    start, first = model.state_dict()["layers.0.weight"], model.accuracy(test)
    optimizer = SGD(0.1, momentum=0.9)
    fit(model, train, optimizer=optimizer, epochs=epochs, batch_size=128, l2=l2, seed=seed)
    end, last = model.state_dict()["layers.0.weight"], model.accuracy(test)
    chosen = np.argsort(np.linalg.norm(end - start, axis=0))[::-1][:shown]
    images = [weight[:, chosen].T.reshape(-1, *train.feature_shape) for weight in (start, end)]
    sheet = Sheet(
        f"First-layer weights, untrained and trained, {in_words(train)}",
        f"Weights of {len(chosen)} of the {units} hidden units of a {'-'.join(map(str, model.sizes))} ReLU "
        f"network, those that changed most, before and after {epochs} epochs in this run (L2 {l2:g}; test "
        f"accuracy {100 * first:.1f} % and {100 * last:.1f} %). Each image is one unit, at the same place on both "
        f"sides; correlation of neighbours: {smoothness(images[0]):.2f} and {smoothness(images[1]):.2f}.",
        1,
        2,
        height=3.95,
    )
    limit = float(np.quantile(np.abs(np.concatenate(images)), 0.998))
    for axes, weights, title in zip(sheet.panels, images, ("untrained", "trained"), strict=True):
        # Ever brighter from below 0 to above it: the sign can be seen by the colour-blind, and in a grey print.
        drawn = axes.imshow(_mosaic(weights), cmap="cividis", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    sheet.figure.colorbar(drawn, ax=sheet.panels, shrink=0.8, label="weight", pad=0.01, extend="both")
    return sheet.result(
        {
            "data": in_words(train),
            "untrained": images[0],
            "trained": images[1],
            "smoothness_untrained": smoothness(images[0]),
            "smoothness_trained": smoothness(images[1]),
            "accuracy_untrained": first,
            "accuracy_trained": last,
        }
    )


def smoothness(images: HostArray) -> float:
    """The correlation of horizontally and vertically neighbouring values, ``(n, height, width)``: from -1 to 1."""
    across = np.stack([images[:, :, :-1].ravel(), images[:, :, 1:].ravel()])
    down = np.stack([images[:, :-1].ravel(), images[:, 1:].ravel()])
    return float(np.corrcoef(np.concatenate([across, down], axis=1))[0, 1])


def _mosaic(images: HostArray) -> HostArray:
    """Images side by side, about as many rows as columns, with a gap of NaN (which is drawn white) between."""
    count, height, width = images.shape
    columns = -(-count // max(1, int(count**0.5)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet
