"""From runs to pages: a report, and a page to draw on."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

import gpumlp

from ..backends import HostArray, to_host
from ..data import Dataset
from ..extras import require
from ..files import make_folder, user_path, utf8, write_atomically
from ..nn.committee import Committee, members_of
from ..nn.metrics import METRIC_WORDS, METRICS, Task
from ..nn.model_file import class_names
from ..nn.network import MLP
from ..nn.samples import check_data
from ..training.config import ConfigError
from ..training.history import monitor_words
from ..training.progress import drawn, dropout_words, metric, percent
from ..training.run import REPORT
from ..words import as_product
from .charts import MOST, Chart, Line, Scatter, chart, scatter
from .embedding import Field, embed, embedded_size, grey, mosaic
from .runs import Counts, Measures, Run, measure, read_runs

if TYPE_CHECKING:
    from jinja2 import Environment

FILE = REPORT  # in the folder of a run, by default
LIMIT = 3_000_000  # bytes of a report, or of a page with a committee
_PAGE = 20_000  # of them for what is there beside networks and results
_LIBRARIES = ("matplotlib", "PIL", "jinja2")
MISTAKES, MISTAKES_OF_SEVERAL, UNITS = 40, 15, 64  # shown of each run
_FACTS = ("Network", "Data", "Training")  # in the first line of the page on one run
_POINTS, _OUTPUTS = 2000, 4  # that the scatter plots of a run show
_FULL_RUNS = 6  # with more runs than this, each shows fewer images
_LOG_FACTOR = 20  # losses that differ by this factor have a logarithmic axis
_LAYER_VALUES = (
    ("gradient_norm", "Gradient norm", "", True),
    ("update_ratio", "Update-to-weight ratio", "", True),
    ("weight_norm", "Weight norm", "", False),
    ("mean", "Mean output", "", False),
    ("deviation", "Standard deviation of the outputs", "", False),
    ("dead", "Dead units", "%", False),
    ("saturated", "Saturated units", "%", False),
)


def require_libraries() -> None:
    """Raise MissingExtraError if a library for reports is not installed."""
    for library in _LIBRARIES:
        require("reports", library, "report")


def report_page(paths: Sequence[str], *, device: str = "cpu", data_dir: str | None = None) -> str:
    """A report on runs as one self-contained HTML page of at most 3 MB, which makes no requests.

    The networks are tested in this call and embedded in the page, to draw samples for, as far as they fit.

    Args:
        paths: folders of the runs, finished or not.
        device: for the tests.
        data_dir: folder with the MNIST files, for the runs on MNIST.

    Raises:
        MissingExtraError: a library of ``.[report]`` is not installed.
        PathError: a run is named twice.
        ConfigError: there are too many runs for one page.
        CheckpointError, DataError, DeviceError: a run or its data cannot be read.
    """
    require_libraries()
    return render_report(read_runs(paths, device, data_dir))


def render_report(runs: Sequence[Run]) -> str:
    """`report_page` of runs that were read."""
    shown = [show(run, colour, len(runs)) for colour, run in enumerate(runs)]
    values: dict[str, Any] = {
        "title": f"{runs[0].name}: gpumlp report" if len(runs) == 1 else f"{len(runs)} runs: gpumlp report",
        "runs": shown,
        "comparison": comparison(shown),
        "results": [label for item in shown for label, _ in item.results],
        "facts": list(_FACTS),
        "configuration": configuration(runs),
        "curves": curves(runs),
        "statistics": statistics(runs),
        "versions": _versions(),
    }
    template = _environment().get_template("report.html.j2")
    bare = template.render(**values, networks=[], left_out=[])
    networks, left_out = _networks(runs, LIMIT - len(utf8(bare)) - _PAGE)
    page = template.render(**values, networks=networks, left_out=left_out)
    size = len(utf8(page))
    if size > LIMIT:
        raise ConfigError(
            f"{len(runs)} runs make a page of {size / 1e6:.1f} MB, expected {LIMIT / 1e6:g} MB at most; "
            "give fewer runs"
        )
    return page


def drawing_page(
    model: MLP | Committee,
    image_shape: tuple[int, int],
    *,
    title: str = "Draw for the network",
    data: Dataset | None = None,
) -> str:
    """A self-contained HTML page with a drawing pad and a network that classifies the drawing; makes no requests.

    The page computes in float32 from weights of 3 bytes: its probabilities are those of ``model.predict_proba``
    to 1e-4. Its size depends on the network: 0.4 MB for 784-128-10.

    Args:
        model: a classifier with gpumlp's own activations and layers, or a committee of such networks.
        image_shape: height and width of the network's images.
        title: of the page, as text.
        data: images like those the network was trained on, to measure background, ink and the size of a drawing;
            without it, drawings are placed as in MNIST: ink 1 on background 0, fitted into 20/28 of the image.

    Raises:
        MissingExtraError: jinja2 is not installed.
        ValueError: shape, data and network do not match, an activation or a layer is not one of gpumlp's, or the
            networks of a committee take more than 3 MB.
    """
    members, size = members_of(model), embedded_size(model)
    if len(members) > 1 and size > LIMIT - _PAGE:
        raise ValueError(
            f"its {len(members)} networks take {size / 1e6:.1f} MB, and a page with a committee has at most "
            f"{LIMIT / 1e6:g} MB"
        )
    require("pages to draw on", "jinja2", "report")
    height, width = image_shape
    if data is None:
        field: Field | None = Field.like_mnist(height, width)
    else:
        field = Field.of(data, pixels=check_data(members[0], members[0].inputs, data, None))
    if field is None or (field.height, field.width) != (height, width):
        raise ValueError(f"expected data with images of {height} x {width}, got {data}")
    network = embed(model, field, title)
    return _environment().get_template("drawing.html.j2").render(title=title, networks=[network], left_out=[])


def write_page(path: str | os.PathLike[str], page: str) -> int:
    """Write a page whole or not at all; returns its size in bytes.

    Raises:
        OSError: the page cannot be written; an existing file is unchanged.
        PathError: the path cannot be used.
    """
    path = user_path(path)
    make_folder(path.parent)
    content = utf8(page)
    write_atomically(path, content)
    return len(content)


def _networks(runs: Sequence[Run], room: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The networks that fit into the page, in the order of the runs, and why the others are left out."""
    networks: list[dict[str, Any]] = []
    left_out: list[str] = []
    for run in runs:
        field = Field.of(run.test)
        if field is None:
            sample = as_product(run.test.feature_shape)
            left_out.append(f"{run.name} is not included: its samples ({sample}) are not single-channel images.")
            continue
        size = embedded_size(run.model) + 2000
        if size > room:
            left_out.append(
                f"{run.name} is not included: its {run.model.parameters.count:,} parameters take "
                f"{size / 1e6:.1f} MB, and a page has at most {LIMIT / 1e6:g} MB."
            )
            continue
        try:
            networks.append(embed(run.model, field, run.name))
        except ValueError as error:
            left_out.append(f"{run.name} is not included: {error}.")
            continue
        room -= size
    return networks, left_out


def _versions() -> list[tuple[str, str]]:
    return [("gpumlp", gpumlp.__version__), ("Python", platform.python_version()), ("NumPy", np.__version__)]


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("gpumlp.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )

    def verbatim(name: str) -> Markup:
        text = resources.files(__package__).joinpath("templates").joinpath(name).read_text(encoding="utf-8")
        return Markup(text)  # a file of the package, not of the user

    environment.globals["verbatim"] = verbatim
    environment.filters["chart_data"] = lambda chart: chart.data()
    environment.filters["percent"] = lambda value, digits=2: percent(value, digits, "–")
    environment.filters["metric"] = lambda value, name: metric(name, value, missing="–")
    environment.filters["monitor"] = monitor_words
    environment.filters["number"] = lambda value, digits=4: "–" if value is None else f"{value:.{digits}g}"
    return environment


# -- The sections of a report ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A run with the values that its part of the page shows.

    Attributes:
        run, measures: the run, and its test.
        colour: of its lines.
        names: of the classes, labels or outputs.
        counts: of each class or label; none for numbers.
        confusions: ``(truth, prediction, count)`` of the most frequent ones, for classes.
        mistakes: as the measures have them, with the sample as an ``image``, or None.
        weights: of the first layer, as images.
        seen: distorted training images, as an image; None without.
        scatters: predictions and residuals of the first outputs, for numbers.
    """

    run: Run
    colour: int
    measures: Measures
    names: list[str]
    counts: list[Counts]
    confusions: list[tuple[int, int, int]]
    mistakes: list[dict[str, Any]]
    weights: dict[str, Any] | None
    seen: str | None
    scatters: list[Scatter]

    @property
    def task(self) -> Task:
        return self.measures.task

    @property
    def network(self) -> str:
        return "-".join(map(str, self.run.model.sizes))

    @property
    def about(self) -> str:
        """Activations, dropout and dtype, in words."""
        words = self.run.model.activation_names.replace("_", " ")
        return f"{words}, {dropout_words(self.run.model)}{self.run.model.dtype.name}"

    @property
    def results(self) -> list[tuple[str, str]]:
        """What is at the top of the page."""
        result, wrong = self.measures.result, self.measures.wrong
        rows = [(f"Test {METRIC_WORDS[name]}", metric(name, getattr(result, name))) for name in METRICS[self.task]]
        if wrong is not None:
            rows.append(("Mistakes", f"{wrong:,} of {result.samples:,}"))
        return [
            *rows,
            ("Test loss", metric("loss", result.loss)),
            ("Epochs", _epochs(self.run)),
            ("Parameters", f"{self.run.model.parameters.count:,}"),
        ]

    @property
    def step(self) -> int:
        """Between the epochs in the table, the last one among them."""
        return -(-len(self.run.epochs) // MOST) or 1

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """Those in the table."""
        return self.run.epochs[(len(self.run.epochs) - 1) % self.step :: self.step]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Key and heading of each column of that table that holds a loss or a metric."""
        names = ("loss", *METRICS[self.run.task])
        parts = (("train", "Training"), ("validation", "Validation"))
        return [
            (f"{part}_{name}", f"{words} loss" if name == "loss" else METRIC_WORDS[name])
            for part, words in parts
            for name in names
        ]


def show(run: Run, colour: int, runs: int = 1) -> Shown:
    """Test the network of a run and prepare its images."""
    fewer = max(1, -(-runs // _FULL_RUNS))
    model = run.model
    measures = measure(model, run.test, MISTAKES_OF_SEVERAL // fewer if runs > 1 else MISTAKES)
    field = Field.of(run.test)  # None unless the samples are images
    mistakes = []
    for mistake in measures.mistakes:
        entry: dict[str, Any] = {**mistake._asdict(), "image": None}
        if field is not None:
            image = to_host(run.test.images[mistake.sample]).reshape(field.height, field.width)
            scale = 255 if image.dtype == np.uint8 else 1
            entry["image"] = grey(image, field.background * scale, field.ink * scale)
        mistakes.append(entry)
    weights = None
    if field is not None:
        weight = to_host(model.dense_layers[0].weight)
        uri, chosen, limit = mosaic(weight, (field.height, field.width), UNITS // fewer)
        weights = {"image": uri, "units": chosen, "all": weight.shape[1], "limit": limit}
        weights["hidden"] = len(model.sizes) > 2
    confusions = []
    if measures.task == "classes":
        off = measures.confusion - np.diag(np.diag(measures.confusion))
        order = np.argsort(-off, axis=None, kind="stable")[:10]
        confusions = [(int(k // len(off)), int(k % len(off)), int(off.flat[k])) for k in order if off.flat[k] > 0]
    return Shown(
        run=run,
        colour=colour,
        measures=measures,
        names=list(map(str, class_names(model))),
        counts=measures.counts() if measures.classes else [],
        confusions=confusions,
        mistakes=mistakes,
        weights=weights,
        seen=None if run.seen is None or field is None else _strip(run.seen, field),
        scatters=[] if measures.classes else scatters(measures, fewer),
    )


def _strip(seen: HostArray, field: Field) -> str:
    """Images ``(rows, columns, height, width)`` beside each other, as a data URI."""
    scale = 255 if seen.dtype == np.uint8 else 1
    background, ink = field.background * scale, field.ink * scale
    line = background + 0.4 * (ink - background)
    apart = np.pad(seen.astype(np.float64), [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=line)
    rows, columns, height, width = apart.shape
    return grey(apart.transpose(0, 2, 1, 3).reshape(rows * height, columns * width), background, ink)


def scatters(measures: Measures, fewer: int = 1) -> list[Scatter]:
    """For each of the first outputs, predictions by true values and residuals by predictions, of some samples."""
    outputs = measures.truth.shape[1]
    shown = min(outputs, _OUTPUTS)
    step = -(-measures.samples * shown * fewer // _POINTS)
    plots = []
    for output in range(shown):
        truth, found = measures.truth[::step, output], measures.predictions[::step, output]
        which = f", output {output}" if outputs > 1 else ""
        error = found - truth
        spread = f"mean {error.mean():.3g}, standard deviation {error.std():.3g}"
        plots += [
            scatter(
                f"Predicted and true values{which}",
                ("true value", "predicted value"),
                list(zip(truth.tolist(), found.tolist(), strict=True)),
                diagonal=True,
                summary=f"Predictions by true values{which}, of {len(truth):,} samples; on the line both agree.",
            ),
            scatter(
                f"Residuals{which}",
                ("predicted value", "predicted - true value"),
                list(zip(found.tolist(), error.tolist(), strict=True)),
                diagonal=False,
                summary=f"Residuals by predictions{which}: {spread}.",
            ),
        ]
    return plots


def comparison(shown: Sequence[Shown]) -> list[tuple[str, list[str]]]:
    """The rows of the table of results, with a value for each run; training values are of the network's epoch."""
    runs = [item.run for item in shown]
    results = [dict(item.results) for item in shown]
    every = list(dict.fromkeys(label for item in results for label in item))
    every.sort(key=lambda label: label in ("Test loss", "Epochs", "Parameters"))  # after all metrics

    def recorded(run: Run, name: str, form: str) -> str:
        value = (run.metrics or {}).get(name)
        return "not recorded" if value is None else format(value, form)

    def then(run: Run, name: str) -> str:
        return metric(name, run.epochs[run.network_epoch - 1].get(name) if run.epochs else None, missing="–")

    metrics = [*dict.fromkeys(name for run in runs for name in METRICS[run.task]), "loss"]
    return [
        *((label, [item.get(label, "–") for item in results]) for label in every),
        *(
            (f"{words} {METRIC_WORDS[name]}", [then(run, f"{part}_{name}") for run in runs])
            for part, words in (("train", "Training"), ("validation", "Validation"))
            for name in metrics
        ),
        ("Network", [item.network for item in shown]),
        ("Data", [run.test.name for run in runs]),
        ("Training", [run.state for run in runs]),
        ("Execution", [recorded(run, "execution", "") for run in runs]),
        ("Seconds of training", [f"{sum(epoch['seconds'] for epoch in run.epochs):.1f}" for run in runs]),
        ("Samples per second", [recorded(run, "samples_per_second", ",.0f") for run in runs]),
        ("Trained on", [recorded(run, "device_name", "") for run in runs]),
    ]


def _epochs(run: Run) -> str:
    epochs, planned = len(run.epochs), run.config.epochs
    words = str(epochs) if epochs == planned else f"{epochs} of {planned}"
    return f"{words}, network of epoch {run.network_epoch}" if run.keeps_best else words


def configuration(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of the table of settings, with a value for each run, and whether the values differ."""
    settings = [run.settings() for run in runs]
    rows = []
    for name in settings[0]:
        values = [_setting(values.get(name)) for values in settings]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return rows


def curves(runs: Sequence[Run]) -> dict[str, Any]:
    """Charts of the loss and of the main metric by epoch, of all runs together."""
    several = len(runs) > 1

    def lines(what: str) -> list[Line]:
        result = []
        for colour, run in enumerate(runs):
            parts = (("train", "training"), ("validation", "validation"), ("test", "test"))
            for dash, (part, words) in enumerate(parts):
                values = drawn(what, [epoch.get(f"{part}_{what}") for epoch in run.epochs])
                # One run: a colour for each line. Several: a colour for each run.
                shade = colour if several else dash
                mark = run.network_epoch if run.keeps_best and run.monitor.startswith(part) else None
                result.append(Line(f"{run.name}, {words}" if several else words, values, shade, dash, mark))
        return result

    losses = [value for line in lines("loss") for value in line.values if value is not None and value > 0]
    wide = bool(losses) and max(losses) > _LOG_FACTOR * min(losses)
    loss = chart("Loss, on a logarithmic scale" if wide else "Loss", lines("loss"), log=wide)
    main = dict.fromkeys(METRICS[run.task][0] for run in runs)
    charts = [loss]
    for name in main:
        words, unit = METRIC_WORDS[name], "%" if name.endswith("accuracy") else ""
        title = f"{words[0].upper()}{words[1:]}"
        if any(value is not None and math.isnan(value) for line in lines(name) for value in line.values):
            title += ", from -1 on"
        charts.append(chart(title, lines(name), unit=unit))
    return {
        "charts": [item for item in charts if item is not None],
        "unvalidated": [run.name for run in runs if run.config.validation == 0],
    }


def statistics(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run, charts of its layers by epoch; none if the run has not recorded them."""
    result = []
    for run in runs:
        recorded = [epoch.get("layers") for epoch in run.epochs]
        depth = max((len(layers or ()) for layers in recorded), default=0)
        charts: list[Chart | None] = []
        for key, title, unit, log in _LAYER_VALUES:
            lines = []
            for layer in range(depth):
                values = [_layer_value(layers, layer, key) for layers in recorded]
                lines.append(Line(f"layer {layer + 1}", values, layer, layer // 6 if depth > 6 else layer % 4))
            charts.append(chart(title, lines, unit=unit, log=log, from_zero=unit == "%"))
        result.append({"charts": [item for item in charts if item is not None], "depth": depth})
    return result


def _layer_value(layers: Any, index: int, key: str) -> float | None:
    """A statistic of a layer: None if none was taken after the epoch, NaN if it is missing or not finite."""
    if not layers:
        return None
    value = layers[index].get(key)
    return math.nan if value is None else float(value)


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
