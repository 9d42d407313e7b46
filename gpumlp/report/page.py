"""From runs to a page, and a page to a file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import gpumlp

from ..data import Dataset
from ..extras import require
from ..files import write_atomically
from ..nn.network import MLP
from ..training.config import ConfigError
from ..training.progress import percent
from ..training.run import REPORT
from .embedding import Field, embed, embedded_size, image_shape
from .runs import Run, read_runs
from .sections import comparison, configuration, curves, describe, statistics

if TYPE_CHECKING:
    from jinja2 import Environment

FILE = REPORT  # in the folder of a run, by default
LIMIT = 3_000_000  # bytes of a report
_LIBRARIES = ("matplotlib", "PIL", "jinja2")


def require_libraries() -> None:
    """Raises MissingExtraError where a library that reports need is not installed."""
    for library in _LIBRARIES:
        require("reports", library, "report")


def report_page(paths: Sequence[str], *, device: str = "cpu", data_dir: str | None = None) -> str:
    """A report on runs as one HTML page, which needs nothing else and asks for nothing, below 3 MB.

    The networks are tested in this call. They become part of the page, to draw for, as far as there is room.

    Args:
        paths: folders of the runs, finished or not.
        device: on which to test.
        data_dir: folder with MNIST's files, for the runs on MNIST.

    Raises:
        MissingExtraError: a library of ``.[report]`` is not installed.
        ConfigError: a run is named twice, or they are too many for one page.
        CheckpointError, DataError, DeviceError: a run or its data cannot be read.
    """
    require_libraries()
    runs = read_runs(paths, device, data_dir)
    shown = [describe(run, colour, len(runs)) for colour, run in enumerate(runs)]
    values: dict[str, Any] = {
        "title": f"{runs[0].name}: gpumlp report" if len(runs) == 1 else f"{len(runs)} runs: gpumlp report",
        "runs": shown,
        "comparison": comparison(runs, shown),
        "configuration": configuration(runs),
        "curves": curves(runs),
        "statistics": statistics(runs),
        "versions": _versions(),
    }
    template = _environment().get_template("report.html.j2")
    bare = template.render(**values, networks=[], left_out=[])
    networks, left_out = _networks(runs, LIMIT - len(bare.encode()) - 20_000)
    page = template.render(**values, networks=networks, left_out=left_out)
    size = len(page.encode())
    if size > LIMIT:
        raise ConfigError(
            f"{len(runs)} runs make a page of {size / 1e6:.1f} MB, expected {LIMIT / 1e6:g} MB at most; "
            "give fewer runs"
        )
    return page


def drawing_page(
    model: MLP,
    image_shape: tuple[int, int],
    *,
    title: str = "Draw for the network",
    data: Dataset | None = None,
) -> str:
    """A page with a pad to draw on and a network that answers, which needs nothing else and asks for nothing.

    The page computes in float32, from weights of 3 bytes; its probabilities are those of
    ``model.predict_proba`` to 1e-4. It is as large as the network needs, 0.4 MB for 784-128-10.

    Args:
        model: with one of gpumlp's own activations.
        image_shape: height and width of the images it takes.
        title: of the page, as text.
        data: images as the network knows them, from which blank paper, ink and the size of a drawing are measured;
            without it, drawings look as MNIST's: ink 1 on 0, fitted into 20/28 of the image.

    Raises:
        MissingExtraError: jinja2 is not installed.
        ValueError: shape, data and network do not fit together, or the activation is no one of gpumlp's.
    """
    require("pages to draw on", "jinja2", "report")
    height, width = image_shape
    field = Field.like_mnist(height, width) if data is None else Field.of(data)
    if field is None or (field.height, field.width) != (height, width):
        raise ValueError(f"expected data of images of {height} x {width}, got {data}")
    network = embed(model, field, title)
    return _environment().get_template("drawing.html.j2").render(title=title, networks=[network], left_out=[])


def write_page(path: Path, page: str) -> int:
    """Write a page whole or not at all; returns its size in bytes.

    Raises:
        OSError: it cannot be written; the previous file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = page.encode()
    write_atomically(path, content)
    return len(content)


def _networks(runs: Sequence[Run], room: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The networks that fit, in the order of the runs, and why others are not there."""
    networks: list[dict[str, Any]] = []
    left_out: list[str] = []
    for run in runs:
        shape = image_shape(run.test)
        field = Field.of(run.test)
        if shape is None or field is None:
            sample = " x ".join(map(str, run.test.feature_shape))
            left_out.append(
                f"{run.name} knows no images of one channel that one could draw: its samples are {sample}."
            )
            continue
        size = embedded_size(run.model) + 2000
        if size > room:
            left_out.append(
                f"{run.name} is not here to draw for: its {run.model.parameters.count:,} parameters take "
                f"{size / 1e6:.1f} MB, more than there is room for in a page of {LIMIT / 1e6:g} MB."
            )
            continue
        room -= size
        networks.append(embed(run.model, field, run.name))
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
        return Markup(text)  # our own file, not the user's

    environment.globals["verbatim"] = verbatim
    environment.filters["chart_data"] = lambda chart: chart.data()
    environment.filters["percent"] = lambda value, digits=2: percent(value, digits, "–")
    environment.filters["number"] = lambda value, digits=4: "–" if value is None else f"{value:.{digits}g}"
    return environment
