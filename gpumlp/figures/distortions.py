"""A figure of distorted images."""

from __future__ import annotations

import numpy as np

from ..backends import HostArray, get_backend, to_host
from ..backends.distortion import STEPS, places, random_words
from ..data import Distortion
from .data import Data, in_words, load
from .style import BLUE, GREY, FigureResult, Sheet, in_house_style

_ROWS, _COLUMNS = 5, 6  # of forms
_SKETCH = Distortion(rotation=7.5, scaling=0.12, shear=0.12, elastic=(34, 4))


@in_house_style
def distortion(
    *,
    seed: int = 0,
    data: Data | None = None,
    of: Distortion = _SKETCH,
    sample: int = 0,
) -> FigureResult:
    """One digit in thirty forms, beside the field of displacements of the first.

    Args:
        seed: of the distortions.
        data: of which a training sample is shown; its samples are images.
        of: how to distort.
        sample: the number of the sample.

    Returns:
        The figure; in the numbers ``image`` ``(rows, columns)``, ``forms`` ``(30, rows, columns)``, and ``moves``
        ``(2, rows, columns)``: how far each pixel of the first form comes from, down and to the right, in pixels.
    """
    train, _ = load(data)
    image = to_host(train.images[sample])
    count = _ROWS * _COLUMNS
    forms = np.concatenate(
        [of.apply(image[None], seed=seed, epoch=epoch, rows=np.array([sample])) for epoch in range(count)]
    )
    moves = _moves(of, image.shape, seed, sample)
    sheet = Sheet(
        f"One sample in thirty epochs: distortions of {in_words(train)}",
        f"A training sample as a network sees it: {_words(of)}. Left: the displacements of "
        "the first form, at the top left of the thirty. An arrow leads from a pixel to the place that it comes "
        "from; the fields are how far down and how far to the right that is.",
        1,
        4,
        height=2.3,
        width_ratios=(1, 1, 1, 1.2),
    )
    arrows, *fields, all_forms = sheet.panels
    rows, columns = image.shape
    every = max(1, rows // 14)
    from_row, from_column = np.mgrid[0:rows:every, 0:columns:every]
    down, right = moves[:, ::every, ::every]
    arrows.imshow(image, cmap="gray_r", alpha=0.45)
    arrows.quiver(
        from_column, from_row, right, down, color=BLUE, angles="xy", scale_units="xy", scale=1, width=0.007
    )
    largest = float(np.abs(moves).max())
    for axes, field in zip(fields, moves, strict=True):
        drawn = axes.imshow(field, cmap="RdBu_r", vmin=-largest, vmax=largest)
    bar = sheet.figure.colorbar(drawn, ax=fields, orientation="horizontal", shrink=0.7, aspect=30)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("pixels", fontsize=8)
    mosaic = forms.reshape(_ROWS, _COLUMNS, rows, columns).transpose(0, 2, 1, 3).reshape(_ROWS * rows, -1)
    all_forms.imshow(mosaic, cmap="gray_r")
    for number in range(1, _COLUMNS):
        all_forms.axvline(number * columns - 0.5, color=GREY, linewidth=0.4)
    for number in range(1, _ROWS):
        all_forms.axhline(number * rows - 0.5, color=GREY, linewidth=0.4)
    for axes, title in zip(
        sheet.panels, ("where pixels come from", "down", "right", "thirty epochs"), strict=True
    ):
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
    return sheet.result({"image": image, "forms": forms, "moves": moves})


def _moves(of: Distortion, shape: tuple[int, ...], seed: int, sample: int) -> HostArray:
    """How far each pixel comes from in the first epoch, ``(2, rows, columns)`` pixels down and to the right."""
    warp = of.warp(shape, seed, get_backend("cpu"))
    words = random_words(np, warp, np.array([sample]), np.zeros(1, np.uint64))
    own = np.indices(shape) + 1  # within the border
    found: HostArray = places(np, warp, words)[0] / STEPS - own
    return found


def _words(of: Distortion) -> str:
    parts = [
        (of.rotation, f"rotated by up to {of.rotation:g} degrees"),
        (of.scaling, f"scaled by up to {of.scaling:.0%}"),
        (of.shear, f"sheared by up to {of.shear:.0%}"),
        (of.translation, f"shifted by up to {of.translation:g} pixels"),
    ]
    words = [text for value, text in parts if value]
    if of.elastic is not None:
        alpha, sigma = of.elastic
        words.append(f"displaced by smoothed noise (alpha {alpha:g}, sigma {sigma:g})")
    return ", ".join(words) or "not distorted"
