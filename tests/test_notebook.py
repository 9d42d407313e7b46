"""Output in notebooks: networks, histories, and training in one output that is updated."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import xml.etree.ElementTree as ElementTree

import pytest

from gpumlp import MLP, Dataset, History, Progress, Tanh, fit, fit_many, notebook
from gpumlp.html import curves, table
from gpumlp.training import EpochRecord
from tests.command_helpers import DIGITS, finish, spawn


def parse(html: str) -> ElementTree.Element:
    """Parse HTML as XML; an unescaped quote or bracket is an error."""
    return ElementTree.fromstring(html)


def texts(html: str, path: str) -> list[str]:
    return ["".join(element.itertext()) for element in parse(html).findall(path)]


def history(epochs: int, validation: bool = True) -> History:
    return History(
        [
            EpochRecord(
                n, 1 / n, 0.5, abs(n - 4) / 10 if validation else None, 0.25 if validation else None, 0.1, 2, 9
            )
            for n in range(1, epochs + 1)
        ]
    )


def test_a_network_is_a_table_of_its_layers() -> None:
    html = MLP([784, 128, 64, 10], "tanh", device="cpu")._repr_html_()
    rows = [[cell.text or "" for cell in row] for row in parse(html).findall(".//tr")]
    assert rows == [
        ["layer", "activation", "inputs", "outputs", "parameters"],
        ["layers.0", "tanh", "784", "128", "100,480"],
        ["layers.1", "tanh", "128", "64", "8,256"],
        ["layers.2", "softmax", "64", "10", "650"],
        ["total", "", "", "", "109,386"],
    ]
    assert texts(html, "p") == ["MLP 784-128-64-10, float32, on cpu"]


def test_dropout_is_a_row_without_parameters() -> None:
    html = MLP([8, 6, 5, 2], ["relu", "gelu"], dropout=[0.5, 0], input_dropout=0.2, device="cpu")._repr_html_()
    rows = [[cell.text or "" for cell in row] for row in parse(html).findall(".//tbody/tr")]
    assert [row[:2] for row in rows] == [
        ["", "dropout 0.2"],
        ["layers.0", "relu"],
        ["", "dropout 0.5"],
        ["layers.1", "gelu"],
        ["layers.2", "softmax"],
    ]
    assert rows[0][2:] == ["8", "8", "0"]


def test_a_history_of_numbers_shows_their_metrics() -> None:
    record = EpochRecord(1, 1.5, None, 2.5, None, 0.1, 2, 9, train_r2=-3.0, train_mae=1.25, validation_r2=0.5)
    html = History([record, dataclasses.replace(record, epoch=2, train_r2=0.75)])._repr_html_()
    header = texts(html, "table/thead/tr/th")
    assert header == ["", "epoch", "train loss", "R²", "MAE", "valid. loss", "R²", "MAE", "rate"]
    (last, _) = parse(html).findall("table/tbody/tr")
    assert [cell.text for cell in last] == [
        "last",
        "2",
        "1.5000",
        "0.7500",
        "1.2500",
        "2.5000",
        "0.5000",
        "-",
        "0.1",
    ]
    assert {"training R²", "validation R²"} <= set(texts(html, ".//{*}text"))
    assert ">-3" not in html.partition("details")[0].partition("validation loss")[2].partition("table")[0]


def test_names_are_escaped() -> None:
    class Odd(Tanh):
        name = "<script>&\"'"

    html = MLP([4, 3, 2], Odd(), device="cpu")._repr_html_()
    assert "<script" not in html
    assert texts(html, ".//td")[1] == Odd.name
    assert texts(table(["<a>"], [["&amp;"]], foot=["</table>"]), ".//th") == ["<a>", "</table>"]
    assert texts(curves({"<loss>": [1.0]}, "a & b"), ".//{*}text")[-1] == "<loss>"


def test_a_history_shows_its_last_and_its_best_epoch_and_all_of_them() -> None:
    html = history(6)._repr_html_()
    assert texts(html, "p") == ["History: 6 epochs, 12 s of training, 9 samples/s"]
    rows = [[cell.text for cell in row] for row in parse(html).findall("table/tbody/tr")]
    assert rows == [
        ["last", "6", "0.1667", "50.00 %", "0.2000", "25.00 %", "0.1", "9"],
        ["best", "4", "0.2500", "50.00 %", "0.0000", "25.00 %", "0.1", "9"],
    ]
    assert [row[0].text for row in parse(html).findall("details/table/tbody/tr")] == list("123456")
    assert texts(html, "details/summary") == ["all epochs"]


def test_a_history_without_validation_and_one_without_epochs() -> None:
    html = history(3, validation=False)._repr_html_()
    assert len(parse(html).findall("table/tbody/tr")) == 1
    assert {"training loss", "training accuracy"} <= set(texts(html, ".//{*}text"))
    assert "validation" not in html
    assert parse(History()._repr_html_()).text == "History: no epochs"


def test_a_long_history_stays_small() -> None:
    html = history(5000)._repr_html_()
    assert len(html) < 60_000
    assert texts(html, "details/summary") == ["every 50 epochs"]
    assert len(parse(html).findall("details/table/tbody/tr")) == 100


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = parse(svg).findall(".//{*}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in lines]


def test_curves_lie_where_their_values_are() -> None:
    svg = curves({"a": [4.0, 2.0, 1.0], "b": [0.0, 2.0, 4.0]}, "epoch")
    (one, other) = points(svg)
    assert [x for x, _ in one] == [x for x, _ in other] == sorted(x for x, _ in one)
    assert one[1][0] - one[0][0] == pytest.approx(one[2][0] - one[1][0])
    bottom, top = other[0][1], one[0][1]
    assert bottom > top  # SVG counts downwards
    assert one[1][1] == pytest.approx((top + bottom) / 2, abs=0.1)
    assert one[2][1] == pytest.approx(bottom - (bottom - top) / 4, abs=0.1)
    assert other[2][1] == top


def test_values_that_are_not_finite_leave_a_gap() -> None:
    svg = curves({"a": [1.0, 2.0, math.nan, 3.0, math.inf, 1.0]}, "epoch")
    assert [len(run) for run in points(svg)] == [2, 1, 1]
    assert "nan" not in svg
    assert curves({"a": [math.nan]}, "epoch") == curves({}, "epoch") == ""
    assert "<circle" in curves({"a": [1.0]}, "epoch")
    assert points(curves({"a": [0.0, 0.0]}, "epoch"))[0][0][1] > 100  # on the axis, and no division by 0


# -- Training -----------------------------------------------------------------------------------------------


class Display:
    """A fake of IPython's `display`: the outputs, and their updates."""

    def __init__(self) -> None:
        self.outputs: list[list[object]] = []

    def __call__(self, output: object, *, display_id: bool) -> Display:
        assert display_id
        self.outputs.append([output])
        return self

    def update(self, output: object) -> None:
        self.outputs[-1].append(output)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    """A fake of IPython in a notebook."""
    shown = Display()
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=shown))
    return shown


def test_training_in_a_notebook_is_one_output(display: Display, blobs: Dataset, capsys) -> None:
    fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=200, validation=50, callbacks=[Progress()])
    (output,) = display.outputs
    assert len(output) < 100  # not with every epoch, let alone every batch
    assert "epoch 0/200" in repr(output[0])
    assert repr(output[-1]).startswith("epoch 200/200, ")
    html = output[-1]._repr_html_().replace("<br>", "<br/>")
    assert parse(html).find("progress").get("value") == "1.0000"
    assert len(points(html)) == 4  # loss and accuracy, in training and validation
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("progress_of_short_epochs")
def test_the_output_changes_within_an_epoch(display: Display, blobs: Dataset, monkeypatch) -> None:
    monkeypatch.setattr(notebook, "_PAUSE", 0)
    monkeypatch.setattr(notebook, "_SHARE", 0)
    fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=2, batch_size=150, callbacks=[Progress()])
    shown = [output._repr_html_().replace("<br>", "<br/>") for output in display.outputs[0]]
    done = [float(parse(html).find("progress").get("value")) for html in shown]
    assert done == sorted(done)
    assert {0.25, 0.5, 0.75, 1.0} <= set(done)


def test_quiet_shows_nothing_in_a_notebook_either(display: Display, blobs: Dataset) -> None:
    fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=2, callbacks=[Progress(quiet=True)])
    assert display.outputs == []


def test_many_networks_are_one_output(display: Display, blobs: Dataset, capsys, monkeypatch) -> None:
    monkeypatch.setattr(notebook, "_PAUSE", 0)
    monkeypatch.setattr(notebook, "_SHARE", 0)
    networks = [MLP([20, 8, 4], seed=seed, device="cpu") for seed in range(3)]
    fit_many(networks, blobs, epochs=20, n_jobs=1, progress=True)
    (output,) = display.outputs
    assert len(output) > 20
    assert repr(output[0]).startswith("epochs 1/60, networks 0/3, ")
    assert repr(output[-1]).startswith("epochs 60/60, networks 3/3, ")
    assert capsys.readouterr().out == ""


def test_outside_a_notebook_there_are_lines(blobs: Dataset, monkeypatch, capsys) -> None:
    in_a_terminal = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=None))
    for module in (None, in_a_terminal):
        monkeypatch.setitem(sys.modules, "IPython", module)
        fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=2, callbacks=[Progress()])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["epoch", "1/2", "2/2"]


def test_fit_alone_is_silent(blobs: Dataset, display: Display, capsys) -> None:
    fit(MLP([20, 8, 4], device="cpu"), blobs, epochs=2)
    assert display.outputs == []
    assert capsys.readouterr() == ("", "")


def test_a_command_in_a_notebook_leaves_no_trace_of_a_bar(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's terminal has it
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    words = (*DIGITS, "--hidden", 16, "--epochs", 3, "--out", tmp_path / "run")
    code, out, _ = finish(spawn("train", *words))
    assert code == 0
    assert "\r" not in out
    assert len(out.splitlines()) == 11
