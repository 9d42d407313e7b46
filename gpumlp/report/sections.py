"""What the sections of a report show, as plain values for the templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import to_host
from ..diagnostics import Finding
from ..nn.model_file import describe as facts
from ..training.progress import percent
from .charts import Chart, Line, chart
from .embedding import Field, image_shape
from .images import grey, mosaic
from .measures import Measures, measure
from .runs import Run

MISTAKES, UNITS = 40, 64  # shown of a run
MATRIX_CLASSES = 20  # up to which the whole confusion matrix is shown
_RUNS_IN_FULL = 6  # with more runs than this, each shows fewer pictures
_WIDE = 20  # losses that differ by this factor are drawn on a logarithmic scale
_LAYER_VALUES = (
    ("gradient_norm", "Gradient norm", "", True),
    ("update_ratio", "Update-to-weight ratio", "", True),
    ("weight_norm", "Weight norm", "", False),
    ("mean", "Mean output", "", False),
    ("deviation", "Standard deviation of the outputs", "", False),
    ("dead", "Dead units", "%", False),
    ("saturated", "Saturated units", "%", False),
)


@dataclass(frozen=True)
class Shown:
    """A run with everything that its part of the page needs."""

    run: Run
    colour: int
    measures: Measures
    names: list[str]
    classes: list[dict[str, Any]]
    confusions: list[tuple[int, int, int]]
    mistakes: list[dict[str, Any]]
    weights: dict[str, Any] | None
    findings: list[Finding]
    trend: str | None

    @property
    def network(self) -> str:
        return "-".join(map(str, self.run.model.sizes))


def describe(run: Run, colour: int, runs: int = 1) -> Shown:
    """Test a run's network and prepare its pictures."""
    fewer = max(1, -(-runs // _RUNS_IN_FULL))
    measures = measure(run.model, run.test, MISTAKES // fewer)
    field, shape = Field.of(run.test), image_shape(run.test)
    mistakes = []
    for mistake in measures.mistakes:
        entry: dict[str, Any] = {**mistake._asdict(), "image": None}
        if field is not None and shape is not None:
            image = to_host(run.test.images[mistake.sample]).reshape(shape)
            scale = 255 if image.dtype == np.uint8 else 1
            entry["image"] = grey(image, field.background * scale, field.ink * scale)
        mistakes.append(entry)
    weights = None
    if shape is not None:
        weight = to_host(run.model.state_dict()["layers.0.weight"])
        uri, chosen, limit = mosaic(weight, shape, UNITS // fewer)
        weights = {"image": uri, "units": chosen, "all": weight.shape[1], "limit": limit}
        weights["columns"] = min(8, len(chosen))
        weights["hidden"] = len(run.model.sizes) > 2
    recall, precision = measures.recall(), measures.precision()
    matrix = measures.confusion
    names = [str(name) for name in facts(run.model)["class_names"] or range(len(matrix))]
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    confusions = [(int(k // len(off)), int(k % len(off)), int(off.flat[k])) for k in order if off.flat[k] > 0]
    return Shown(
        run=run,
        colour=colour,
        measures=measures,
        names=names,
        classes=[
            {
                "label": names[k],
                "samples": int(matrix[k].sum()),
                "missed": int(matrix[k].sum() - matrix[k, k]),
                "recall": recall[k],
                "precision": precision[k],
            }
            for k in range(len(matrix))
        ],
        confusions=confusions,
        mistakes=mistakes,
        weights=weights,
        findings=run.diagnosis.findings,
        trend=run.diagnosis.trend,
    )


def comparison(runs: Sequence[Run], shown: Sequence[Shown]) -> list[tuple[str, list[str]]]:
    """Results of the runs by row, a column for each run."""

    def metric(run: Run, name: str, form: str) -> str:
        value = (run.metrics or {}).get(name)
        return "not recorded" if value is None else format(value, form)

    def last(run: Run, name: str, share: bool) -> str:
        value = run.epochs[-1].get(name) if run.epochs else None
        if share:
            return percent(value, missing="–")
        return "–" if value is None else f"{value:.4f}"

    return [
        ("Network", [item.network for item in shown]),
        ("Data", [run.test.name for run in runs]),
        ("Training", [run.state for run in runs]),
        ("Test accuracy", [percent(item.measures.accuracy) for item in shown]),
        ("Mistakes", [f"{item.measures.wrong:,} of {item.measures.samples:,}" for item in shown]),
        ("Test loss", [f"{item.measures.loss:.4f}" for item in shown]),
        ("Training accuracy", [last(run, "train_accuracy", True) for run in runs]),
        ("Training loss", [last(run, "train_loss", False) for run in runs]),
        ("Validation accuracy", [last(run, "validation_accuracy", True) for run in runs]),
        ("Validation loss", [last(run, "validation_loss", False) for run in runs]),
        ("Parameters", [f"{run.model.parameters.count:,}" for run in runs]),
        ("Epochs", [f"{len(run.epochs)}" for run in runs]),
        ("Seconds of training", [f"{sum(epoch['seconds'] for epoch in run.epochs):.1f}" for run in runs]),
        ("Samples per second", [metric(run, "samples_per_second", ",.0f") for run in runs]),
        ("Trained on", [metric(run, "device_name", "") for run in runs]),
    ]


def configuration(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings by row, each with a value for each run, and whether these differ."""
    settings = [run.settings() for run in runs]
    rows = []
    for name in settings[0]:
        values = [_in_words(values.get(name)) for values in settings]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return rows


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """Loss and accuracy by epoch, of all runs in the same charts."""
    several = len(runs) > 1

    def lines(what: str) -> list[Line]:
        result = []
        for colour, run in enumerate(runs):
            for dash, (part, words) in enumerate((("train", "training"), ("validation", "validation"))):
                values = [epoch.get(f"{part}_{what}") for epoch in run.epochs]
                # A run alone has a colour for each of its lines; of several, each run has one.
                shade = colour if several else dash
                result.append(Line(f"{run.name}, {words}" if several else words, values, shade, dash))
        return result

    losses = [value for line in lines("loss") for value in line.values if value is not None and value > 0]
    wide = bool(losses) and max(losses) > _WIDE * min(losses)
    loss = chart("Loss, on a logarithmic scale" if wide else "Loss", lines("loss"), log=wide)
    charts = [loss, chart("Accuracy", lines("accuracy"), unit="%")]
    return {
        "charts": [item for item in charts if item is not None],
        "unvalidated": [run.name for run in runs if run.config.validation == 0],
    }


def statistics(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, charts of its layers by epoch; none where the run has not recorded them."""
    result = []
    for run in runs:
        recorded = [epoch.get("layers") for epoch in run.epochs]
        depth = max((len(layers) for layers in recorded if isinstance(layers, list | tuple)), default=0)
        charts: list[Chart] = []
        for key, title, unit, log in _LAYER_VALUES:
            lines = []
            for layer in range(depth):
                values = [_layer_value(layers, layer, key) for layers in recorded]
                lines.append(Line(f"layer {layer + 1}", values, layer, layer // 6 if depth > 6 else layer % 4))
            drawn = chart(title, lines, unit=unit, log=log, from_zero=unit == "%")
            if drawn is not None:
                charts.append(drawn)
        result.append({"charts": charts, "depth": depth})
    return result


def _layer_value(layers: Any, index: int, key: str) -> float | None:
    """A statistic of a layer: None where nobody looked after the epoch, NaN where there is none or none finite."""
    if not layers:
        return None
    if not isinstance(layers, list | tuple) or index >= len(layers) or not isinstance(layers[index], dict):
        return math.nan
    value = layers[index].get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _in_words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
