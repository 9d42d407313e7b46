"""What all figures have in common: numbers, titles and captions, texts that can be read, seeds and devices."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from gpumlp import MLP, Dataset, figures, load_digits
from gpumlp.figures.backward import backward_pass
from gpumlp.figures.files import plain
from gpumlp.figures.samples import draw
from gpumlp.figures.style import in_house_style
from tests.figures_helpers import FROM_DATA, numbers, result
from tests.strict_device import StrictBackend

matplotlib_figure = pytest.importorskip("matplotlib.figure")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_comes_with_its_numbers_title_and_caption(name: str) -> None:
    figure, values = result(name)
    assert isinstance(figure, matplotlib_figure.Figure)
    assert values["title"] in " ".join(figure.texts[0].get_text().split())
    assert values["caption"].endswith(".")
    json.dumps(plain(values), allow_nan=False)


@pytest.mark.parametrize("name", sorted(FROM_DATA))
def test_a_figure_says_when_the_digits_stand_in_for_mnist(name: str) -> None:
    assert "the built-in digits (in place of MNIST)" in numbers(name)["title"]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_nothing_runs_over_the_edge_and_no_text_over_another(name: str) -> None:
    figure = result(name).figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches()
    around = figure.get_tightbbox(renderer)
    assert around.x0 >= 0
    assert around.y0 >= 0
    assert around.x1 <= width
    assert around.y1 <= height
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_visible()]
        boxes += [axes.get_legend().get_window_extent(renderer)] if axes.get_legend() else []
        for one, other in itertools.combinations(boxes, 2):
            assert not one.padded(-1).overlaps(other.padded(-1))


@pytest.mark.parametrize("name", ["backpropagation", "trajectories", "initial_weights", "first_layer_weights"])
def test_a_seed_gives_the_same_numbers_and_another_seed_others(name: str) -> None:
    data = {"data": load_digits()} if name in FROM_DATA else {}
    again, other = (figures.FIGURES[name](**data, seed=seed).numbers for seed in (0, 1))
    assert json.dumps(plain(again)) == json.dumps(plain(numbers(name)))
    assert json.dumps(plain(other)) != json.dumps(plain(numbers(name)))


# -- What they share ---------------------------------------------------------------------------------------


def test_a_backward_pass_is_the_same_on_every_device(backend: Any, blobs: Dataset) -> None:
    expected = backward_pass(MLP([20, 6, 5, 4], seed=2, device="cpu"), blobs)
    found = backward_pass(MLP([20, 6, 5, 4], seed=2, device=backend), blobs)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for one, other in zip([*expected.deltas, *expected.gradients], [*found.deltas, *found.gradients], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


def test_the_figures_train_on_any_device() -> None:
    backend = StrictBackend()
    shown = figures.first_layer_weights(load_digits(), epochs=1, device=backend).numbers
    assert shown["trained"].shape == (16, 8, 8)
    assert len(figures.backpropagation(device=backend).numbers["delta_norms"]) == 3


def test_figures_compute_with_one_thread_and_leave_the_number_as_it_was() -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert in_house_style(threads)() == {1}
        assert threads() == before


def test_parts_of_a_data_set_do_not_overlap_and_shrink_together(blobs: Dataset) -> None:
    first, second = draw(blobs, (400, 200), seed=1)
    assert (len(first), len(second)) == (200, 100)
    rows = {row.tobytes() for row in np.asarray(first.images)} | {
        row.tobytes() for row in np.asarray(second.images)
    }
    assert len(rows) == len({row.tobytes() for row in np.asarray(blobs.images)})
