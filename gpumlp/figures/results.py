"""Figures of what was measured with the records of the literature: test errors by epoch, and wrong samples."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import HostArray, to_host
from ..data import DataError, Dataset, load_dataset
from ..files import user_path
from ..records import RESULTS, error_words, load_record, read_results, record_names, unit
from ..training.config import ConfigError
from ..words import counted, listed
from .data import Data, load
from .style import BLUE, DASHED, GREY, VERMILION, FigureResult, Sheet, decimal_log_axis, in_house_style, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3  # of panels with curves
_ROOM = 1.06  # between a line and its name, a factor on the logarithmic axis
_FAR = 1.4  # a factor that leaves room for a name
_IN_A_ROW = 18  # wrong samples
_LABEL, _GAP = 0.4, 0.12  # below and beside a sample, of its height and width
_PANEL, _SAMPLES = 7.837, 7.68  # width in inches: a pixel of MNIST is two pixels of the PNG, a third of its bytes
_HEADING = 0.36  # inches
_GREYS = 16


@in_house_style
def records(*, results: str | os.PathLike[str] | None = None) -> FigureResult:
    """The test error of each record over the epochs, beside the published one.

    Args:
        results: a file of results, as ``python -m gpumlp.reproduce NAME --save FILE`` writes it; by default that
            of the package. Of several results of a record, the one of the most seeds is drawn. Committees have no
            curve.

    Returns:
        The figure; in the numbers, for each of the ``records``, ``curves`` ``(seeds, epochs)``, ``errors`` (of
        each seed) and ``published``, all in percent, the result in ``words``, and the ``hardware``.

    Raises:
        ConfigError: the file is damaged, or no result has curves.
        OSError: it cannot be read.
    """
    shown: dict[str, dict[str, Any]] = {}
    for name, result in _of_records("curves", results).items():
        shown[name] = {
            "curves": 100 * np.array(result["curves"]) / result["test_samples"],
            "errors": _errors(result),
            "words": _words(result),
            "published": result.get("published"),
            "hardware": result["hardware"],
        }
    shown = dict(sorted(shown.items(), key=lambda item: -statistics.fmean(item[1]["errors"])))
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    sheet = Sheet(
        "Test error of records of the literature over the epochs",
        "Line: mean over the seeds, with mean and deviation at the end; band: range of the seeds; dashed: the "
        "published error. Measured on the test set after every epoch; training does not use it.",
        rows,
        columns,
        height=2.2 * rows + 0.2,
        sharey=True,
    )
    drawn = [value for each in shown.values() for value in (*each["curves"].flat, each["published"]) if value]
    axis = sheet.panels[0]
    axis.set_yscale("log", nonpositive="clip")
    axis.set_ylim(0.75 * min(drawn, default=1), 1.1 * max(drawn, default=1))
    decimal_log_axis(axis.yaxis)
    for index, axes in enumerate(sheet.panels):
        axes.set_visible(index < len(shown))
        if index + columns >= len(shown):
            axes.set_xlabel("epoch")
        if index % columns == 0:
            axes.set_ylabel("test error in %")
    for axes, (name, each) in zip(sheet.panels, shown.items(), strict=False):
        axes.set_title(name)
        axes.locator_params(axis="x", integer=True)
        _curves(axes, each["curves"], each["words"], each["published"])
    return sheet.result({"records": shown})


def _curves(axes: Axes, curves: HostArray, words: tuple[str, str], published: float | None) -> None:
    """The curves of the seeds ``(seeds, epochs)`` as one line in a band, the result, and the published error."""
    length = curves.shape[1]
    epochs, low, high = range(1, length + 1), curves.min(axis=0), curves.max(axis=0)
    axes.fill_between(epochs, low, high, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(epochs, curves.mean(axis=0), color=BLUE, marker="o" if length == 1 else None)
    top = float(max(*high[length // 2 :], axes.get_ylim()[0]))  # an error of 0 is below the axis
    style: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "fontsize": 8}
    if published is not None:
        axes.axhline(published, color=VERMILION, linestyle=DASHED, linewidth=1.2)
        text, style["color"] = f"published {published:.2f} %", VERMILION
        if published > _FAR * top:  # where the curve is far below
            axes.annotate(text, (0.98, published * _ROOM), ha="right", va="bottom", **style)
        else:  # a curve comes from above
            axes.annotate(text, (0.02, published / _ROOM), va="top", **style)
            top = max(top, published)
    style["color"] = BLUE
    axes.annotate(words[0], (0.98, top * _ROOM), ha="right", va="bottom", **style)
    note(axes, words[1], colour=GREY)


@in_house_style
def mistakes(
    *,
    data: Data | None = None,
    record: str | None = None,
    results: str | os.PathLike[str] | None = None,
) -> FigureResult:
    """The test samples that a record's networks get wrong, first those that are wrong with every seed.

    Args:
        data: training and test set of the record; by default as the record says, and without one MNIST or, if that
            is not available, the built-in digits.
        record: its name, or a file with one; by default that of the lowest test error on the data.
        results: as for `records`.

    Returns:
        The figure; in the numbers, in the order of the figure, the number of each of the wrong ``samples`` in the
        test set, their ``labels``, and ``predictions``: the predicted classes, and with how many seeds.

    Raises:
        ConfigError: the file of results is damaged, or holds no mistakes of the record.
        DataError: the data are not available, or not those of the record.
        OSError: a file cannot be read.
    """
    import matplotlib

    found = _of_records("mistakes", results)
    if record is None:
        packaged = [load_record(name) for name in found if name in record_names()]
        if not packaged:
            raise ConfigError(f"record: expected the file of {listed(found)}, got none")
        test = load(data)[1]
        fitting = [each for each in packaged if each.config.dataset == test.name] or packaged
        own = min(fitting, key=lambda each: statistics.fmean(_errors(found[each.name])))
    else:
        own = load_record(record)
        if own.name not in found:
            raise ConfigError(f"record: expected one with saved mistakes, {listed(found)}, got {own.name}")
    dataset = str(own.config.dataset)
    test = data[1] if data is not None and data[1].name == dataset else load_dataset(dataset)[1]
    result = found[own.name]
    wrong, seeds, (error, number) = _wrong(result, test), len(result["mistakes"]), _words(result)
    each = unit(result)
    groups = {
        count: [sample for sample, predicted in wrong.items() if predicted.total() == count]
        for count in range(seeds, 0, -1)
    }
    groups = {count: samples for count, samples in groups.items() if samples}
    if not groups:
        raise ConfigError(f"record: expected one with mistakes, got {own.name}, which makes none")
    title = f"{own.name} gets {len(wrong):,} of {len(test):,} test samples wrong"
    if seeds > 1:
        title += f", {len(groups.get(seeds, ())):,} with every {each}"
    mosaics = [_mosaic(to_host(test.images)[samples]) for samples in groups.values()]
    heights = [len(mosaic) / mosaic.shape[1] * _SAMPLES for mosaic in mosaics]
    sheet = Sheet(
        title,
        f"Test error {error}, {number} ({own.paper}). Below each sample: its class → what "
        "is predicted most, two classes at most.",
        len(groups),
        height=sum(heights) + _HEADING * len(groups),
        height_ratios=heights,
    )
    colours = matplotlib.colormaps["gray_r"].resampled(_GREYS)
    for axes, mosaic, (count, samples) in zip(sheet.panels, mosaics, groups.items(), strict=True):
        axes.imshow(mosaic, cmap=colours, interpolation="nearest")
        axes.set(xlim=(-0.5, mosaic.shape[1] * _PANEL / _SAMPLES - 0.5), anchor="NW")
        axes.axis("off")
        _captions(axes, mosaic.shape, samples, wrong, test)
        if count == seeds > 1:
            axes.set_title(f"wrong with every {each}: {len(samples):,}", weight="bold")
        elif seeds > 1:
            axes.set_title(f"wrong with {count} of {number}: {len(samples):,}", color=GREY)
    order = [sample for samples in groups.values() for sample in samples]
    return sheet.result(
        {
            "record": own.name,
            "hardware": result["hardware"],
            "samples": order,
            "labels": test.labels[order],
            "predictions": [dict(wrong[sample]) for sample in order],
        }
    )


def _wrong(result: dict[str, Any], test: Dataset) -> dict[int, Counter[int]]:
    """The predictions of all seeds for each sample that one gets wrong, sorted by class and number.

    Raises:
        DataError: this is not the test set of the result.
    """
    found: dict[int, Counter[int]] = {}
    for pairs in result["mistakes"]:
        for sample, predicted in pairs:
            found.setdefault(sample, Counter())[predicted] += 1
    fits = len(test) == result["test_samples"] and all(
        0 <= sample < len(test) and test.labels[sample] not in own and set(own) <= set(range(test.classes))
        for sample, own in found.items()
    )
    if not fits:
        raise DataError(
            f"{test.name}: expected the {result['test_samples']:,} test samples of the results of "
            f"{result['record']}, got {len(test):,} others"
        )
    return {sample: found[sample] for sample in sorted(found, key=lambda each: (test.labels[each], each))}


def _mosaic(images: HostArray) -> HostArray:
    """Images in rows, each with room for its caption below it."""
    count, height, width = images.shape
    rows = math.ceil(count / _IN_A_ROW)
    cell = height + math.ceil(_LABEL * height), width + math.ceil(_GAP * width)
    cells: HostArray = np.zeros((rows * _IN_A_ROW, *cell), images.dtype)
    cells[:count, :height, :width] = images
    cells = cells.reshape(rows, _IN_A_ROW, *cell).transpose(0, 2, 1, 3)
    return cells.reshape(rows * cell[0], _IN_A_ROW * cell[1])


def _captions(
    axes: Axes, mosaic: tuple[int, ...], samples: Sequence[int], wrong: dict[int, Counter[int]], test: Dataset
) -> None:
    """Below each sample of a mosaic, its class and the one or two that are predicted most."""
    names = test.class_names or range(test.classes)
    rows, cell_width = math.ceil(len(samples) / _IN_A_ROW), mosaic[1] / _IN_A_ROW
    height, width = test.feature_shape
    for place, sample in enumerate(samples):
        row, column = divmod(place, _IN_A_ROW)
        predicted = ",".join(str(names[each]) for each, _ in wrong[sample].most_common(2))
        axes.text(
            column * cell_width + width / 2 - 0.5,
            row * mosaic[0] / rows + 1.06 * height - 0.5,
            f"{names[test.labels[sample]]}→{predicted}",
            fontsize=7,
            ha="center",
            va="top",
        )


def _errors(result: dict[str, Any]) -> list[float]:
    """The test error of each seed, in percent."""
    return [100 * wrong / result["test_samples"] for wrong in result["wrong"]]


def _words(result: dict[str, Any]) -> tuple[str, str]:
    """The result as the table of records has it, and of how many seeds or committees it is."""
    number = counted(len(result["wrong"]), unit(result))
    return error_words(result["wrong"], result["test_samples"]), number


def _of_records(what: str, results: str | os.PathLike[str] | None) -> dict[str, dict[str, Any]]:
    """The result of each record that has curves or mistakes; of several, the one of the most seeds."""
    path = RESULTS if results is None else user_path(results)
    having = [result for result in read_results(path) if result.get(what)]
    if not having:
        raise ConfigError(
            f"{path}: expected results with {what}, got none; python -m gpumlp.reproduce NAME --save FILE.json "
            "writes them"
        )
    return {result["record"]: result for result in sorted(having, key=lambda each: len(each["wrong"]))}
