"""Shards: a batch in fixed parts, whose gradients are summed in a fixed order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import MLP, SGD, Dataset, DivergenceError, Trainer, fit
from gpumlp.backends import ExecutionError
from gpumlp.data.blocks import part_of
from gpumlp.training.shards import PairwiseSum
from tests.command_helpers import DIGITS, assert_same_run, run
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend
from tests.test_resume import EVERY, SETTINGS


def pairwise(terms: list[np.ndarray], first: int, stop: int) -> list[tuple[int, int, np.ndarray]]:
    """The pieces of some of the terms: the first term, the one after the last, and the sum."""
    sums = PairwiseSum(np, len(terms))
    for number in range(first, stop):
        sums.add(terms[number].copy(), number, number + 1)
    starts = [start for start, _ in sums.pieces]
    return [(start, end, piece) for (start, piece), end in zip(sums.pieces, [*starts[1:], stop], strict=True)]


@pytest.mark.parametrize("count", range(1, 25))
def test_the_sum_has_the_same_bits_however_many_processes_share_the_terms(count: int) -> None:
    terms = list(np.random.default_rng(count).normal(size=(count, 50)).astype(np.float32))
    ((_, _, alone),) = pairwise(terms, 0, count)
    np.testing.assert_allclose(alone, np.sum(terms, axis=0), rtol=1e-4, atol=1e-5)
    for processes in (n for n in range(1, count + 1) if count % n == 0):
        each, sums = count // processes, PairwiseSum(np, count)
        for process in range(processes):
            for start, stop, piece in pairwise(terms, process * each, (process + 1) * each):
                sums.add(piece, start, stop)
        ((start, shared),) = sums.pieces
        assert (start, shared.tobytes()) == (0, alone.tobytes())


def test_the_order_is_that_of_a_tree() -> None:
    a, b, c, d, e = terms = list(np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32))
    ((_, _, found),) = pairwise(terms, 0, 5)
    assert found.tobytes() == (((a + b) + (c + d)) + e).tobytes()


@pytest.mark.parametrize("samples", [1, 3, 7, 8, 100])
def test_shards_have_every_row_once_and_equally_many(samples: int) -> None:
    parts = [part_of(slice(5, 5 + samples), shard, 7) for shard in range(7)]
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(5, 5 + samples)]
    assert {part.stop - part.start for part in parts} <= {samples // 7, samples // 7 + 1}


@EVERY
def test_a_sharded_run_is_the_run_except_for_rounding(
    setting: tuple[dict[str, Any], dict[str, Any]], blobs: Dataset
) -> None:
    assert_only_rounding_differs(setting, "cpu", blobs)


@pytest.mark.parametrize("device", [StrictBackend(), host_cuda_backend()], ids=["strict", "cuda"])
def test_array_code_shards_on_other_devices(device: Any, blobs: Dataset) -> None:
    assert_only_rounding_differs(SETTINGS["all of it"], device, blobs)


def assert_only_rounding_differs(
    setting: tuple[dict[str, Any], dict[str, Any]], device: Any, blobs: Dataset
) -> None:
    network, options = setting
    histories, weights = [], []
    for shards in (1, 5):  # the last batch has 4 samples, or 12: fewer than shards, or not a multiple
        model = MLP([20, 16, 12, 4], seed=7, device=device, dtype="float64", **network)
        histories.append(fit(model, blobs, epochs=3, batch_size=32, seed=7, **{**options, "shards": shards}))
        weights.append(np.concatenate([tensor.ravel() for tensor in model.state_dict().values()]))
    np.testing.assert_allclose(*weights, rtol=1e-9, atol=1e-12)
    for name in ("train_loss", "train_accuracy"):
        np.testing.assert_allclose(*(history[name] for history in histories), rtol=1e-9)


def test_shards_larger_than_the_workspace_are_processed_in_parts() -> None:
    rng = np.random.default_rng(0)
    data = Dataset(rng.random((5000, 12)), rng.integers(0, 3, 5000), classes=3)
    weights = []
    for shards in (1, 2):
        model = MLP([12, 8, 3], seed=0, device="cpu", dtype="float64", dropout=0.25)
        model.backend.rows_at_a_time = 1024  # also without OpenBLAS
        trainer = Trainer(model, data, batch_size=4000, shards=shards)
        assert trainer.workspace.batch_size < 4000 / shards
        trainer.run(2)
        weights.append(model.parameters.data.copy())
    np.testing.assert_allclose(*weights, rtol=1e-10)


def test_the_gradient_of_the_whole_batch_can_be_read(blobs: Dataset) -> None:
    model = MLP([20, 8, 4], seed=0, device="cpu", dtype="float64")
    before, seen = model.parameters.data.copy(), []
    fit(model, blobs, epochs=1, batch_size="full", shards=3, optimizer=SGD(0.5), callbacks=seen.append)
    np.testing.assert_allclose(before - 0.5 * model.parameters.gradient, model.parameters.data, rtol=1e-12)


def test_a_sharded_run_that_diverges_is_explained(blobs: Dataset) -> None:
    with pytest.raises(DivergenceError, match="in epoch 1, at step 2 of 10, where the loss became"):
        fit(MLP([20, 8, 4], seed=0, device="cpu"), blobs, optimizer=SGD(1e30), batch_size=32, shards=4)


@pytest.mark.parametrize("shards", [0, 33, 2.0, True])
def test_other_numbers_are_refused(shards: Any, blobs: Dataset) -> None:
    with pytest.raises(ValueError, match="shards is expected to be"):
        Trainer(MLP([20, 8, 4], device="cpu"), blobs, batch_size=32, shards=shards)


def test_the_persistent_kernel_computes_a_batch_as_a_whole(blobs: Dataset) -> None:
    model = MLP([20, 8, 4], device=host_cuda_backend(execution="persistent", cublaslt=True))
    with pytest.raises(
        ExecutionError, match="it computes a batch as a whole, not in shards, as several processes"
    ):
        _ = Trainer(model, blobs, batch_size=32, shards=2).execution


@pytest.mark.parametrize("shards", [2, 3, 7, 12])
def test_shards_have_the_same_bits_in_graphs(shards: int, blobs: Dataset) -> None:
    found = []
    for execution in ("graphs", "eager"):
        backend = host_cuda_backend(execution=execution, cublaslt=True)
        model = MLP([20, 16, 4], seed=7, device=backend, dropout=0.2)
        trainer = Trainer(model, blobs, optimizer=SGD(0.1, momentum=0.9), batch_size=12, seed=7, shards=shards)
        losses = trainer.run(3)["train_loss"]
        assert ("graph" in backend.xp.launches) == (execution == "graphs")
        found.append((losses, [tensor.tobytes() for tensor in model.state_dict().values()]))
    assert found[0] == found[1]


def test_a_run_keeps_its_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, resumed, plain = tmp_path / "whole", tmp_path / "resumed", tmp_path / "plain"
    options = (*DIGITS, "--quiet", "--optimizer", "adam", "--shards", 4)
    assert run("train", *options, "--epochs", 3, "--out", whole) == 0
    assert run("train", *options, "--epochs", 1, "--out", resumed) == 0
    assert run("train", "--resume", resumed, "--epochs", 3) == 0
    assert_same_run(whole, resumed)
    assert json.loads((whole / "config.json").read_text())["shards"] == 4
    assert run("train", *DIGITS, "--quiet", "--epochs", 1, "--out", plain) == 0
    assert json.loads((plain / "config.json").read_text())["shards"] == 1
    capsys.readouterr()
    assert run("train", "--resume", resumed, "--shards", 2, "--epochs", 4) == 2
    assert "shards: a run is resumed with its own configuration" in capsys.readouterr().err
    assert run("train", *DIGITS, "--shards", 33, "--out", tmp_path / "other") == 2
    assert "shards is expected to be at most the 32 samples of a batch" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
