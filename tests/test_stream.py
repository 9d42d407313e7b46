"""Orders by blocks, and samples that stay in their files: the bits of samples in memory, one line for errors."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import shlex
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Adam,
    Blocks,
    Callback,
    DataError,
    Dataset,
    DivergenceError,
    Group,
    History,
    StreamedDataset,
    Trainer,
    evaluate,
    fit,
    fit_many,
    predict,
    shuffle,
    sweep,
    train,
)
from gpumlp.data import shuffling, stream, tables
from gpumlp.data.blocks import BlockOrder, ShardedOrder, part_of, sorted_note
from gpumlp.data.rows import FileRows, read_targets
from gpumlp.training.batches import ORDER_STREAM
from tests.command_helpers import SAVE_EACH, kill_at, lines, spawn
from tests.data_helpers import idx_bytes

SAMPLES, FEATURES = 1_003, 12


def samples(dtype: Any = np.uint8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples of 4 classes that a small network can learn, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, SAMPLES)
    centres = np.random.default_rng(9).integers(0, 256, (4, FEATURES))
    values = np.clip(centres[labels] + rng.normal(0, 40, (SAMPLES, FEATURES)), 0, 255)
    return (values if dtype == np.uint8 else values / 255).astype(dtype), labels


def saved(folder: Path, images: np.ndarray, targets: np.ndarray, name: str = "") -> list[str]:
    """The paths of both, as .npy files."""
    paths = [str(folder / f"{name}images.npy"), str(folder / f"{name}labels.npy")]
    np.save(paths[0], images)
    np.save(paths[1], targets)
    return paths


def idx(values: np.ndarray, kind: int) -> bytes:
    stored = values.astype(values.dtype.newbyteorder(">"))
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + stored.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return saved(tmp_path, *samples())


def numbers(history: History) -> list[tuple[Any, ...]]:
    """What a history says, without times."""
    return [
        (each.train_loss, each.train_accuracy, each.validation_loss, each.validation_accuracy, each.layers)
        for each in history
    ]


def hand_over(first: Trainer, second: Trainer) -> None:
    """Give a trainer the state of another, as a checkpoint does."""
    second.model.load_state_dict(first.model.state_dict())
    buffers = {name: first.model.backend.to_numpy(buffer) for name, buffer in first.state_buffers.items()}
    second.restore(buffers, first.optimizer_state.steps, first.random_state(), first.history)


def trained(data: Dataset, outputs: int = 4, **options: Any) -> tuple[MLP, History]:
    model = MLP([FEATURES, 16, outputs], device="cpu")
    history = fit(model, data, epochs=3, **{"batch_size": 32, "optimizer": SGD(0.1, momentum=0.9), **options})
    return model, history


# -- The order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "block", "window"), [(100, 10, 3), (103, 10, 4), (7, 10, 3), (10, 1, 1), (9, 10**30, 10**30)]
)
def test_a_window_holds_whole_blocks_in_random_order(rows: int, block: int, window: int) -> None:
    used = np.arange(rows) * 2
    order = BlockOrder(used, Blocks(block, window), np.random.default_rng(0))
    seen = []
    for index in range(len(order)):
        found, places = order.window(index)
        blocks = {int(row) // 2 // block for row in found}
        assert len(blocks) <= window
        assert {number * 2 for number in range(rows) if number // block in blocks} == set(found.tolist())
        seen += found[places].tolist()
    assert sorted(seen) == used.tolist()
    assert seen == order.rows().tolist()


def test_the_order_of_one_shard_is_that_of_earlier_versions() -> None:
    order = BlockOrder(np.arange(14) * 2, Blocks(3, 2), np.random.default_rng(0))
    assert order.rows().tolist() == [24, 16, 12, 14, 26, 22, 18, 2, 4, 20, 0, 8, 10, 6]


@pytest.mark.parametrize("shards", [2, 3, 4, 7])
@pytest.mark.parametrize(
    ("rows", "block", "window", "batch"),
    [(100, 10, 6, 20), (103, 10, 4, 32), (103, 1, 100, 50), (64, 200, 2, 8), (97, 13, 9, 97), (30, 10**30, 2, 7)],
)
def test_each_shard_of_a_batch_has_the_next_rows_of_a_stream_of_blocks(
    rows: int, block: int, window: int, batch: int, shards: int
) -> None:
    used, blocks = np.arange(rows) * 2, Blocks(block, window)
    order = ShardedOrder(used, blocks, np.random.default_rng(0), batch, shards)
    whole, streams = order.rows(), [stream.rows() for stream in order.streams]
    assert sorted(whole.tolist()) == used.tolist()
    taken = [0] * shards
    for start in range(0, rows, batch):
        for shard in range(shards):
            part = part_of(slice(start, min(start + batch, rows)), shard, shards)
            count = part.stop - part.start
            own = slice(taken[shard], taken[shard] + count)
            assert (whole[part] == streams[shard][own]).all()
            assert count == 0 or order.place(part) == (shard, own)
            taken[shard] += count
    assert taken == [len(stream) for stream in streams]
    found = [{row // 2 // block for row in stream.tolist()} for stream in streams]
    assert sum(map(len, found)) <= -(-rows // block) + shards - 1  # only blocks at borders are in two of them
    for each in order.streams:
        for index in range(len(each)):
            held = {row // 2 // block for row in each.window(index)[0].tolist()}
            assert len(held) <= max(1, window // shards)


def test_the_order_depends_on_seed_and_epoch_and_shuffles_within_a_window() -> None:
    images, labels = samples()
    data, orders = Dataset(images, labels), []
    for seed in (0, 0, 1):
        trainer = Trainer(MLP([FEATURES, 4]), data, order=Blocks(10, 5), seed=seed, diagnostics=False)
        seen: list[list[int]] = []
        trainer.run(2, [lambda trainer, seen=seen: seen.append(trainer.batches.order.tolist())])
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert np.count_nonzero(np.diff(orders[0][0][:50]) == 1) < 10


def test_a_window_of_all_samples_trains_as_well_as_a_full_shuffle() -> None:
    data = Dataset(*samples())
    accuracies = [trained(data, order=order)[1].records[-1].train_accuracy for order in ("shuffle", "blocks")]
    assert min(accuracies) > 0.9


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_goes_on_with_the_same_blocks(files: list[str], streamed: bool, shards: int) -> None:
    data = StreamedDataset(*files) if streamed else Dataset(*samples())

    def new(shards: int = shards) -> Trainer:
        model = MLP([FEATURES, 16, 4], device="cpu")
        options: dict[str, Any] = {"optimizer": Adam(), "order": Blocks(20, 3), "validation": 0.1}
        return Trainer(model, data, batch_size=32, shards=shards, **options)

    whole, first, second = new(), new(), new()
    whole.run(4)
    first.run(2)
    hand_over(first, second)
    second.run(4)
    assert numbers(second.history) == numbers(whole.history)
    assert (second.model.parameters.data == whole.model.parameters.data).all()
    with pytest.raises(ValueError, match=f"expected an order of the samples in 2 streams, got {shards}"):
        hand_over(first, new(shards=2))


@pytest.mark.parametrize("order", ["random", 3, ("blocks",)])
def test_an_unknown_order_is_refused(order: Any) -> None:
    with pytest.raises(ValueError, match="order is expected to be 'shuffle', 'blocks' or Blocks"):
        trained(Dataset(*samples()), order=order)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (1.5, 1), (True, 1)])
def test_sizes_of_blocks_are_checked(sizes: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number of 1 or more"):
        Blocks(*sizes)


def test_sizes_of_blocks_may_be_integers_of_numpy() -> None:
    blocks = Blocks(np.int16(1024), np.uint8(64))
    assert repr(blocks) == repr(Blocks(1024, 64))
    assert blocks.samples == 65_536


def test_a_full_shuffle_of_streamed_samples_is_refused(files: list[str]) -> None:
    with pytest.raises(ValueError, match="order is expected to be 'blocks' for samples that are streamed"):
        trained(StreamedDataset(*files), order="shuffle")


# -- The same bits as in memory -----------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "windows that divide nothing": {"order": Blocks(13, 3)},
    "one block a window": {"order": Blocks(17, 1)},
    "adam": {"order": Blocks(16, 4), "optimizer": Adam(0.01)},
    "batches larger than a window": {"order": Blocks(5, 2), "batch_size": 100},
    "full batches": {"order": Blocks(50, 2), "batch_size": "full"},
    "a held-out fraction": {"order": Blocks(13, 3), "validation": 0.3},
    "many held out": {"order": Blocks(13, 3), "validation": 900},
    "class weights": {"order": Blocks(13, 3), "class_weight": "balanced", "validation": 0.1},
    "averages, clipping": {"order": Blocks(13, 3), "ema": 0.9, "clip_norm": 0.5},
    "numbers, not pixels": {"order": Blocks(13, 3), "pixels": False, "optimizer": SGD(1e-4)},
    "shards": {"order": Blocks(13, 12), "shards": 4},
    "shards that divide nothing": {"order": Blocks(13, 7), "shards": 3, "batch_size": 50, "optimizer": Adam(0.01)},
    "more shards than blocks": {"order": Blocks(400, 2), "shards": 5, "class_weight": "balanced"},
    "one shard a sample": {"order": Blocks(10, 3), "shards": 16, "batch_size": 16, "validation": 0.3},
    "shards of full batches": {"order": Blocks(50, 2), "shards": 2, "batch_size": "full"},
    "shards, averages": {"order": Blocks(13, 3), "shards": 2, "ema": 0.9, "clip_norm": 0.5, "validation": 900},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_streamed_samples_give_the_bits_of_samples_in_memory(tmp_path: Path, name: str, dtype: Any) -> None:
    images, labels = samples(dtype)
    memory, streamed = Dataset(images, labels), StreamedDataset(*saved(tmp_path, images, labels))
    options = {"order": "blocks", **CASES[name]}
    first, history = trained(memory, **options)
    second, other = trained(streamed, **options)
    assert numbers(other) == numbers(history)
    assert other.classes == history.classes
    assert (second.parameters.data == first.parameters.data).all()
    if "pixels" not in options:
        assert second.evaluate(streamed) == first.evaluate(memory)


@pytest.mark.parametrize("task", ["labels", "numbers"])
def test_targets_of_every_kind_are_streamed(tmp_path: Path, task: str) -> None:
    images, labels = samples()
    targets = np.stack([labels > 1, labels % 2 == 0], axis=1)
    targets = targets if task == "labels" else targets + np.random.default_rng(0).normal(size=targets.shape)
    streamed = StreamedDataset(*saved(tmp_path, images, targets))
    options = {"order": Blocks(13, 3), "validation": 0.1, "optimizer": SGD(0.01), "outputs": 2}
    first, history = trained(Dataset(images, targets), **options)
    second, other = trained(streamed, **options)
    assert streamed.task == task
    assert numbers(other) == numbers(history)
    assert second.evaluate(streamed) == first.evaluate(Dataset(images, targets))


def test_names_and_weights_are_those_of_the_labels(tmp_path: Path) -> None:
    images, labels = samples()
    names, weights = np.array(["a", "b", "c", "d"])[labels], np.random.default_rng(0).random(SAMPLES)
    streamed = StreamedDataset(*saved(tmp_path, images, names), weights=weights)
    memory = Dataset(images, names, weights=weights)
    options = {"order": Blocks(13, 6), "validation": 100, "shards": 2}
    _, history = trained(memory, **options)
    second, other = trained(streamed, **options)
    assert second.class_names == ("a", "b", "c", "d")
    assert numbers(other) == numbers(history)
    assert streamed.label_entropy == memory.label_entropy


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_idx_files_and_folders_of_parts_are_the_same_samples(tmp_path: Path, dtype: Any) -> None:
    images, labels = samples(dtype)
    images = images.reshape(SAMPLES, 3, 4)
    kind = 0x08 if dtype == np.uint8 else 0x0D
    for name, start, stop in (("9", 0, 400), ("10", 400, 401), ("11", 401, SAMPLES)):
        for what, values in (("x", images), ("y", labels.astype(np.uint8))):
            (tmp_path / what).mkdir(exist_ok=True)
            np.save(tmp_path / what / f"part-{name}.npy", values[start:stop])
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(images, kind))
    (tmp_path / "labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8), 0x08))
    whole = StreamedDataset(*saved(tmp_path, images, labels))
    for paths in (("x", "y"), ("images-idx3-ubyte", "labels-idx1-ubyte")):
        other = StreamedDataset(tmp_path / paths[0], tmp_path / paths[1])
        assert other.feature_shape == (3, 4)
        assert (np.asarray(other.images) == images).all()
        assert other.fingerprint() == whole.fingerprint()
        model, _ = trained(other, order=Blocks(13, 3))
        assert (model.parameters.data == trained(whole, order=Blocks(13, 3))[0].parameters.data).all()


def test_any_rows_can_be_read(files: list[str]) -> None:
    images, rows = samples()[0], FileRows(files[0])
    for wanted in ([5], [7, 3, 3, 1_002], range(40, 300), range(0, 400, 2), range(50, 20, -1), range(0, 900, 9)):
        for dtype in (np.uint8, np.float32):
            out = np.empty((len(wanted), FEATURES), dtype)
            rows.read(np.array(wanted), out)
            assert (out == images[list(wanted)]).all()
    out = np.empty((2, FEATURES), np.uint8)
    rows.read(np.array([255, 0], np.uint8), out)  # whose difference is 1 in uint8
    assert (out == images[[255, 0]]).all()
    chosen = pickle.loads(pickle.dumps(rows.select(np.arange(1, 1_000, 3))))
    assert (np.asarray(chosen) == images[1:1_000:3]).all()
    assert (chosen[5] == images[16]).all()
    assert (chosen[2:4] == images[[7, 10]]).all()


def test_a_held_out_test_set_is_the_same_for_each_seed_and_shares_no_sample(files: list[str]) -> None:
    training, test = StreamedDataset(*files).held_out()
    again = StreamedDataset(*files).held_out()[1]
    assert (len(training), len(test)) == (903, 100)
    assert test.fingerprint() == again.fingerprint() != training.fingerprint()
    found = {bytes(row) for row in np.asarray(training.images)} | {bytes(row) for row in np.asarray(test.images)}
    assert found == {bytes(row) for row in samples()[0]}
    shares = [np.bincount(data.targets) / len(data) for data in (training, test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.01


def test_a_held_out_test_set_has_10_000_samples_at_most(tmp_path: Path) -> None:
    data = StreamedDataset(*saved(tmp_path, np.zeros((110_000, 1), np.uint8), np.arange(110_000) % 4))
    assert [len(part) for part in data.held_out()] == [100_000, 10_000]


def test_networks_of_fit_many_stream_the_same_bits(files: list[str]) -> None:
    data = StreamedDataset(*files)
    models = [MLP([FEATURES, 16, 4], seed=seed, device="cpu") for seed in range(2)]
    alone = [MLP([FEATURES, 16, 4], seed=seed, device="cpu") for seed in range(2)]
    fit_many(models, data, epochs=2, order=Blocks(13, 3), n_jobs=2)
    for one, other in zip(models, alone, strict=True):
        fit(other, data, epochs=2, order=Blocks(13, 3))
        assert (one.parameters.data == other.parameters.data).all()


class Rank(Group):
    """One of two processes; nobody else takes part in its sums."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_a_process_reads_the_blocks_of_its_own_shards(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[int]] = []
    read = FileRows.read

    def noting(self: FileRows, rows: Any, out: Any) -> None:
        found[-1] += rows.tolist()
        read(self, rows, out)

    monkeypatch.setattr(FileRows, "read", noting)
    data, epochs = StreamedDataset(*files), 2
    for rank in range(2):
        model, found = MLP([FEATURES, 4], device="cpu"), [*found, []]
        trainer = Trainer(
            model, data, order=Blocks(13, 8), batch_size=50, shards=4, group=Rank(rank), diagnostics=False
        )
        data.fingerprint()
        found[-1].clear()
        trainer.run(epochs)
        rng, own = np.random.default_rng([0, ORDER_STREAM]), []
        for _ in range(epochs):
            order = ShardedOrder(np.arange(SAMPLES), Blocks(13, 8), rng, 50, 4)
            own += [row for each in order.streams[2 * rank : 2 * rank + 2] for row in each.rows().tolist()]
        assert sorted(found[-1]) == sorted(own)
    assert sorted(found[0] + found[1]) == sorted([*range(SAMPLES)] * epochs)


# -- Epochs that are broken off -----------------------------------------------------------------------------------


class Interrupt(Callback):
    """Raise KeyboardInterrupt once, in the middle of an epoch."""

    def __init__(self) -> None:
        self.calls = 0

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        self.calls += 1
        if self.calls == 30:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("progress_of_short_epochs")
@pytest.mark.parametrize("shards", [1, 3])
def test_an_interrupted_epoch_is_repeated_from_its_beginning(files: list[str], shards: int) -> None:
    def new() -> Trainer:
        model, data = MLP([FEATURES, 16, 4], device="cpu"), StreamedDataset(*files)
        return Trainer(model, data, order=Blocks(13, 3), batch_size=32, shards=shards)

    whole, broken = new(), new()
    whole.run(3)
    broken.run(3, Interrupt())
    assert broken.history.interrupted
    assert broken.epoch == 1
    broken.run(3)
    assert (broken.model.parameters.data == whole.model.parameters.data).all()


@pytest.mark.parametrize("shards", [1, 3])
def test_divergence_is_explained_as_in_memory(files: list[str], shards: int) -> None:
    messages = []
    for data in (StreamedDataset(*files), Dataset(*samples())):
        with pytest.raises(DivergenceError) as caught:
            trained(data, order=Blocks(13, 3), optimizer=SGD(1e30), l2=1.0, shards=shards)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


# -- What cannot be used ------------------------------------------------------------------------------------------


def cut(path: str, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


DAMAGE: dict[str, tuple[Callable[[Path, list[str]], object], str]] = {
    "cut short": (lambda folder, files: cut(files[0], 5_000), "images.npy: expected 12,164 bytes .*, found 5,000"),
    "cut in the header": (lambda folder, files: cut(files[0], 20), "images.npy: .*damaged"),
    "empty": (lambda folder, files: cut(files[0], 0), "images.npy: .*an empty file"),
    "missing": (lambda folder, files: os.remove(files[0]), "images.npy: .*no such file"),
    "labels cut": (lambda folder, files: cut(files[1], 200), "labels.npy: .*damaged"),
    "too few labels": (
        lambda folder, files: np.save(files[1], samples()[1][:50]),
        "labels.npy: targets must be one for each of 1,003 images, got 50",
    ),
    "other dtype": (
        lambda folder, files: np.save(files[0], samples()[0] * 1.0),
        "found float64 .*convert it once",
    ),
    "one dimension": (
        lambda folder, files: np.save(files[0], samples()[0][:, 0]),
        r"found uint8 of shape \(1003,\); give samples first and labels second; save .* array.reshape\(-1, 1\)",
    ),
    "no samples": (
        lambda folder, files: np.save(files[0], samples()[0][:0]),
        r"at least 1 each, found uint8 of shape \(0, 12\); check how the array was made",
    ),
    "by columns": (
        lambda folder, files: np.save(files[0], np.asfortranarray(samples()[0])),
        "numpy.ascontiguousarray",
    ),
    "gzip": (lambda folder, files: Path(files[0]).write_bytes(b"\x1f\x8b" + bytes(99)), "unpack it first"),
    "other": (
        lambda folder, files: Path(files[0]).write_bytes(b"\x89PNG\r\n"),
        "found one that begins with 89 50",
    ),
    "text": (
        lambda folder, files: Path(files[0]).write_text("a,b\n1,2"),
        r"text that begins with 'a,b\\n1,'; save .* CSV",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, files: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[name]
    damage(tmp_path, files)
    assert train.main(["--stream", "--dataset", *files, "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a-1.npy", "a-3.npy"], "is a part missing"),
        (["a-1.npy", "b-1.npy"], "is a part missing, or there twice"),
        (["a-1.npy", "other.npy"], "other.npy without a number"),
        ([], "an empty folder"),
    ],
)
def test_a_folder_without_all_parts_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "parts").mkdir()
    for name in names:
        np.save(tmp_path / "parts" / name, samples()[0])
    with pytest.raises(DataError, match=message):
        FileRows(tmp_path / "parts")


def test_parts_may_have_the_names_of_idx_files(tmp_path: Path) -> None:
    values = samples()[0].reshape(-1, 4, 3)
    for name, part in (("train-images-1-idx3-ubyte", values[500:]), ("train-images-0-idx3-ubyte", values[:500])):
        (tmp_path / name).write_bytes(idx_bytes(part))
    np.testing.assert_array_equal(np.asarray(FileRows(tmp_path)), values)


def test_parts_of_different_samples_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", samples()[0])
    np.save(tmp_path / "1.npy", samples()[0][:, :5])
    with pytest.raises(DataError, match=re.escape("expected samples of (12,) of uint8 as in the first part")):
        FileRows(tmp_path)


def test_a_value_that_is_not_finite_is_found_when_it_is_read(tmp_path: Path) -> None:
    images, labels = samples(np.float32)
    images[700, 3] = np.nan
    data = StreamedDataset(*saved(tmp_path, images, labels))
    with pytest.raises(DataError, match=r"images.npy: images must be finite, but sample 700 holds NaN"):
        trained(data)


def test_a_file_that_shrinks_while_it_is_read_ends_the_run_which_can_be_resumed(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, read, calls = Path(files[0]).read_bytes(), FileRows.read, []

    def shrinking(self: FileRows, rows: Any, out: Any) -> None:
        calls.append(1)
        if len(calls) == 60:  # in the third epoch
            cut(files[0], 2_000)
        read(self, rows, out)

    options = [
        "--dataset",
        *files,
        "--stream",
        "--device",
        "cpu",
        "--block",
        "13",
        "--window",
        "3",
        "--epochs",
        "4",
    ]
    monkeypatch.setattr(FileRows, "read", shrinking)
    assert train.main([*options, "--quiet", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "images.npy: expected 12,164 bytes as at the start, found 2,000" in error
    assert error.count("\n") == 1
    monkeypatch.undo()
    Path(files[0]).write_bytes(content)
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert train.main([*options, "--quiet", "--out", str(tmp_path / "whole")]) == 0
    assert same_network(tmp_path / "run", tmp_path / "whole")


def test_an_error_of_the_disk_is_one_line(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(io.BytesIO):
        def readinto(self, _: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FileRows, "_opened", lambda *_: Broken())
    assert train.main(["--stream", "--dataset", *files, "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "images.npy: expected a readable file, found Input/output error; the disk failed" in error
    assert error.count("\n") == 1


def test_a_changed_file_has_another_fingerprint(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_FINGERPRINT_BYTES", 10)  # a sample in each place
    images, labels = samples()
    found = {StreamedDataset(*files).fingerprint()}
    for row in (0, 15, -1):
        images[row, 0] += 1
        found.add(StreamedDataset(*saved(tmp_path, images, labels)).fingerprint())
    labels[500] = (labels[500] + 1) % 4
    found.add(StreamedDataset(*saved(tmp_path, images, labels)).fingerprint())
    found.add(StreamedDataset(*saved(tmp_path, images[:-1], labels[:-1])).fingerprint())
    assert len(found) == 6


def test_the_fingerprint_reads_64_kb_in_each_of_64_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = StreamedDataset(*saved(tmp_path, np.zeros((5_000, 1024), np.uint8), np.arange(5_000) % 4))
    places, read = [], FileRows.__getitem__
    monkeypatch.setattr(FileRows, "__getitem__", lambda rows, key: places.append(key) or read(rows, key))
    data.fingerprint()
    assert {place.stop - place.start for place in places} == {64}
    assert (len(places), places[0].start, places[-1].stop) == (64, 0, 5_000)


@pytest.mark.parametrize("streamed", [False, True])
def test_samples_sorted_by_class_are_noticed(tmp_path: Path, streamed: bool) -> None:
    images, labels = samples()
    order = np.argsort(labels, kind="stable")
    paths = saved(tmp_path, images[order], labels[order])
    data = StreamedDataset(*paths) if streamed else Dataset(images[order], labels[order])
    advice = f"python -m gpumlp.shuffle {shlex.join(paths)} OUT" if streamed else "choose the order shuffle"
    with pytest.warns(UserWarning, match=f"seem to be sorted by class.*; .*{re.escape(advice)}$"):
        trained(data, order=Blocks(20, 5))
    trained(data, order=Blocks(20, 60))  # one window: a full shuffle
    trained(Dataset(images, labels), order=Blocks(20, 5))


@pytest.mark.parametrize(("classes", "rows"), [(2, 5000), (10, 1500), (10, 60_000), (100, 20_000)])
@pytest.mark.parametrize("blocks", [Blocks(10, 2), Blocks(50, 1), Blocks(100, 5)])
def test_sorted_samples_are_told_from_random_ones_at_any_size(classes: int, rows: int, blocks: Blocks) -> None:
    labels, order = np.random.default_rng(0).integers(0, classes, rows), np.arange(rows)
    assert sorted_note(labels, order, blocks) is None
    assert sorted_note(np.sort(labels), order, blocks) is not None


def test_a_short_last_block_does_not_look_sorted() -> None:
    for samples in range(2_000, 2_500, 5):
        labels = np.random.default_rng(samples).integers(0, 10, samples)
        assert sorted_note(labels, np.arange(samples), Blocks(500, 1)) is None
        assert sorted_note(np.sort(labels), np.arange(samples), Blocks(500, 1)) is not None


# -- The command --------------------------------------------------------------------------------------------------


def same_network(*folders: Path) -> bool:
    first, second = (MLP.load(folder).parameters.data for folder in folders)
    return bool((first == second).all())


OPTIONS = ["--device", "cpu", "--hidden", "16", "--epochs", "3", "--block", "13", "--window", "3"]


def test_the_command_trains_alike_from_files_and_from_memory(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = saved(tmp_path, *samples(seed=1), name="test-")
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", *map(os.path.basename, files), "--test", *map(os.path.basename, test)]
    assert train.main([*data, *OPTIONS, "--stream", "--out", "streamed"]) == 0
    shown = capsys.readouterr().out
    assert "in memory are at most two windows of 3 blocks of 13 samples" in shown
    assert "903 samples to train, 100 to validate, 1,003 to test" in shown
    assert train.main([*data, *OPTIONS, "--order", "blocks", "--quiet", "--out", "memory"]) == 0
    assert same_network(Path("streamed"), Path("memory"))
    monkeypatch.chdir("/")  # a run knows where its data are
    assert "\ndata: images.npy, 12 features" in shown
    tested = shown[shown.index("test-images.npy test accuracy") :].splitlines()[0]
    assert evaluate.main([str(tmp_path / "streamed")]) == 0
    assert tested in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    from gpumlp.report.__main__ import main

    assert main([str(tmp_path / "streamed"), "--out", str(tmp_path / "report.html")]) == 0


def test_a_warning_of_the_command_says_so_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = samples()
    order = np.argsort(labels, kind="stable")
    files = saved(tmp_path, images[order], labels[order], "sorted ")
    assert train.main(["--dataset", *files, "--stream", *OPTIONS, "--out", str(tmp_path / "run")]) == 0
    words = re.search(r"warning: .* sorted by class: .*; .*: (python -m .*) OUT\n", capsys.readouterr().out)
    assert words is not None
    assert shlex.split(words[1]) == ["python", "-m", "gpumlp.shuffle", *files]


def test_a_table_that_is_sorted_is_shuffled_by_its_column(tmp_path: Path) -> None:
    images, labels = samples()
    data = StreamedDataset(table(tmp_path / "data.arrow", images, np.sort(labels)), label_column="label")
    path = shlex.quote(str(tmp_path / "data.arrow"))
    with pytest.warns(UserWarning, match=rf"gpumlp\.shuffle {path} {path} OUT --label-column label$"):
        trained(data, order=Blocks(20, 5))


CHANGES: dict[str, Callable[[list[str]], object]] = {
    "features": lambda files: np.save(files[0], samples()[0][:, :5]),
    "dtype": lambda files: np.save(files[0], samples(np.float32)[0]),
    "fewer": lambda files: [np.save(file, values[:500]) for file, values in zip(files, samples(), strict=True)],
    "fewer classes": lambda files: np.save(files[1], np.minimum(samples()[1], 2)),
    "more classes": lambda files: np.save(files[1], samples()[1] * 2),
    "names": lambda files: np.save(files[1], np.array(list("abcd"))[samples()[1]]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("stream", [True, False])
def test_training_files_that_were_changed_are_named_and_not_those_of_the_test(
    name: str, stream: bool, tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    test, out = saved(tmp_path, *samples(seed=1), name="test-"), str(tmp_path / "run")
    options = [*(["--stream"] if stream else []), "--device", "cpu", "--epochs", "1", "--quiet", "--out", out]
    assert train.main(["--dataset", *files, "--test", *test, *options]) == 0
    CHANGES[name](files)
    for command in (lambda: train.main(["--resume", out, "--epochs", "2"]), lambda: evaluate.main([out])):
        capsys.readouterr()
        assert command() == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "the run was trained on images.npy" in error
        assert f"put back what {files[0]}, {files[1]} was then" in error
        assert "/test-" not in error


@pytest.mark.parametrize("name", CHANGES)
def test_the_training_files_of_a_sweep_that_were_changed_are_named(
    name: str, tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    test, out = saved(tmp_path, *samples(seed=1), name="test-"), str(tmp_path / "sweep")
    options = ["--device", "cpu", "--epochs", "1", "--jobs", "1", "--quiet", "--out", out]
    assert sweep.main(["--dataset", *files, "--test", *test, "--grid", "hidden=4", *options]) == 0
    CHANGES[name](files)
    capsys.readouterr()
    assert sweep.main(["--resume", out]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{out}: the sweep was made with other data: expected a training set " in error
    assert ", but images.npy has " in error
    assert not re.search("test-(images|labels)", error)


def test_a_resumed_run_streams_as_it_did_at_its_start(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for start, other in (("--stream", "--no-stream"), ("--order=blocks", "--stream")):
        out = str(tmp_path / start)
        assert train.main(["--dataset", *files, start, *OPTIONS, "--quiet", "--out", out]) == 0
        again = ["--resume", out, "--epochs", "4", "--quiet"]
        assert train.main([*again, other]) == 2
        assert "stream: a run is resumed with its own configuration" in capsys.readouterr().err
        assert train.main([*again, "--stream" if start == "--stream" else "--no-stream"]) == 0


def test_without_test_files_some_samples_are_held_out(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for way in (["--stream"], ["--order", "blocks"]):
        assert train.main(["--dataset", *files, *way, *OPTIONS, "--out", str(tmp_path / way[0])]) == 0
        assert "no --test: 100 of the 1,003 samples are held out as the test set" in capsys.readouterr().out
    assert same_network(tmp_path / "--stream", tmp_path / "--order")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stream"], "stream: expected only with dataset IMAGES LABELS, got dataset auto"),
        (["--stream", "--dataset", "mnist"], "got dataset mnist"),
        (["--dataset", "a.npy"], "or a file of samples and one of their targets"),
        (["--dataset", "a.npy", "b.npy", "c.npy"], "or a file of samples and one of their targets"),
        (["--test", "a.npy", "b.npy"], "test: expected only with dataset IMAGES LABELS"),
        (["--dataset", "a.npy", "b.npy", "--stream", "--order", "shuffle"], "order: expected blocks with stream"),
        (["--window", "3"], "window: expected only with order blocks"),
        (["--dataset", "a.npy", "b.npy", "--stream", "--data-dir", "x"], "data_dir: expected only with data sets"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*options, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_a_test_set_of_other_samples_is_refused(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    test = saved(tmp_path, samples()[0][:, :5], samples()[1], name="test-")
    assert train.main(["--stream", "--dataset", *files, "--test", *test, "--device", "cpu"]) == 2
    assert "test-images.npy: expected samples of shape (12,) as in" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_a_killed_run_is_resumed_with_the_same_results(tmp_path: Path, files: list[str]) -> None:
    options = ["--stream", "--dataset", *files, *OPTIONS, "--epochs", "40", "--quiet", "--validation", "0.1"]
    process = spawn("train", *options, "--out", tmp_path / "killed", env=SAVE_EACH)
    kill_at(process, lambda: lines(tmp_path / "killed") >= 3)
    assert train.main(["--resume", str(tmp_path / "killed"), "--quiet"]) == 0
    assert train.main([*options, "--out", str(tmp_path / "whole")]) == 0
    assert same_network(tmp_path / "killed", tmp_path / "whole")


# -- Memory -------------------------------------------------------------------------------------------------------

# Run in a small process of its own: a child's peak memory is not below that of the process that starts it.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (1024 if sys.platform == "linux" else 2**20))
"""


def generate(folder: Path, count: int) -> list[str]:
    """Samples of 784 pixels and 10 classes, written a part at a time."""
    paths, rng = [str(folder / "images.npy"), str(folder / "labels.npy")], np.random.default_rng(0)
    labels, centres = rng.integers(0, 10, count), rng.integers(90, 166, (10, 784))
    with open(paths[0], "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, 784)})
        for start in range(0, count, 10_000):
            part = centres[labels[start : start + 10_000]]
            file.write((part + rng.integers(-90, 90, part.shape)).astype(np.uint8).tobytes())
    np.save(paths[1], labels)
    return paths


def peak(*command: str) -> int:
    """Peak memory of a command in MB."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, sys.executable, *command], stdout=subprocess.PIPE, check=True, text=True
    )
    code, megabytes = map(int, measured.stdout.split()[-2:])
    assert code == 0
    return megabytes


@pytest.mark.large
def test_a_gigabyte_is_trained_on_in_400_megabytes(tmp_path: Path) -> None:
    files = generate(tmp_path, 1_300_000)
    assert Path(files[0]).stat().st_size > 1e9
    options = ["--stream", "--dataset", *files, "--epochs", "2", "--hidden", "32", "--device", "cpu"]
    assert peak("-m", "gpumlp.train", *options, "--out", str(tmp_path / "run")) < 400
    assert peak("-m", "gpumlp.evaluate", str(tmp_path / "run")) < 400
    assert peak("-m", "gpumlp.shuffle", *files, str(tmp_path / "shuffled")) < 400


def test_memory_depends_on_the_window_and_not_on_the_samples(tmp_path: Path) -> None:
    files = generate(tmp_path, 150_000)  # 118 MB
    options = ["--epochs", "1", "--hidden", "8", "--device", "cpu", "--quiet", "--block", "512", "--window", "4"]
    small = peak("-c", "import gpumlp.train")
    streamed = peak(
        "-m", "gpumlp.train", "--stream", "--dataset", *files, *options, "--out", str(tmp_path / "run")
    )
    assert streamed - small < 60


@pytest.mark.parametrize(("shards", "processes"), [(1, 1), (4, 1), (4, 2), (4, 4)])
def test_the_memory_that_is_told_is_that_of_a_process(tmp_path: Path, shards: int, processes: int) -> None:
    data = StreamedDataset(*generate(tmp_path, 20_000))
    group = Rank(processes - 1)
    group.size = processes
    model = MLP([784, 4, 10], device="cpu")
    trainer = Trainer(
        model, data, order=Blocks(100, 40), batch_size=32, shards=shards, group=group, diagnostics=False
    )
    assert isinstance(trainer.batches, stream.StreamedBatches)
    expected, _ = trainer.batches.memory(Blocks(100, 40), shards, processes)
    data.fingerprint()
    tracemalloc.start()
    try:
        trainer.run(1)
        found = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert expected == pytest.approx(2 * 40 * 100 * 784 / processes, rel=0.1)
    assert 0.9 * expected < found < 1.1 * expected + 500_000


# -- Shuffling files once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shuffle_writes_every_sample_with_its_label(
    tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shuffling, "_BUCKET", 1_000)  # 13 buckets or more
    images, labels = samples(dtype)
    images = np.sort(images, axis=0).reshape(SAMPLES, 3, 4)
    labels = np.arange(SAMPLES)
    files = saved(tmp_path, images, labels)
    assert shuffle.main([*files, str(tmp_path / "out")]) == 0
    assert f"--dataset {tmp_path / 'out' / 'images.npy'}" in capsys.readouterr().out
    shuffled, order = np.load(tmp_path / "out" / "images.npy"), np.load(tmp_path / "out" / "labels.npy")
    assert sorted(order.tolist()) == labels.tolist()
    assert (shuffled == images[order]).all()
    assert shuffled.dtype == dtype
    assert abs(np.corrcoef(order, labels)[0, 1]) < 0.1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images.npy", "labels.npy"]
    assert shuffle.main([*files, str(tmp_path / "again"), "--quiet"]) == 0
    assert (np.load(tmp_path / "again" / "labels.npy") == order).all()


def test_shuffle_leaves_nothing_half_written(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").touch()
    assert shuffle.main([*files, str(tmp_path / "used")]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    np.save(tmp_path / "few.npy", np.zeros(5, int))
    assert shuffle.main([files[0], str(tmp_path / "few.npy"), str(tmp_path / "out")]) == 2
    assert "few.npy: expected 1,003 targets, one for each sample, got 5" in capsys.readouterr().err

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    assert shuffle.main([*files, str(tmp_path / "out"), "--quiet"]) == 1
    assert f"{tmp_path / 'out'}: No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals")
def test_after_a_killed_shuffle_the_next_one_says_what_to_delete(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os, sys\nfrom gpumlp import shuffle\nfrom gpumlp.data import shuffling\n"
        "shuffling._Buckets.write = lambda *_: os.kill(os.getpid(), 9)\nshuffle.main(sys.argv[1:])"
    )
    words = [*files, str(tmp_path / "out"), "--quiet"]
    assert subprocess.run([sys.executable, "-c", code, *words]).returncode == -signal.SIGKILL
    assert shuffle.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected a new or an empty folder, found .gpumlp-" in error
    subprocess.run(shlex.split(error[error.index("rm -r") :]), check=True)
    assert shuffle.main(words) == 0


def test_a_shuffled_file_is_no_longer_noticed(tmp_path: Path) -> None:
    images, labels = samples()
    order = np.argsort(labels, kind="stable")
    files = saved(tmp_path, images[order], labels[order])
    shuffling.shuffle_files(*files, tmp_path / "out")
    trained(StreamedDataset(tmp_path / "out" / "images.npy", tmp_path / "out" / "labels.npy"), order=Blocks(20, 5))


# -- Tables and Zarr arrays ---------------------------------------------------------------------------------------


def table(path: Path, images: np.ndarray, labels: np.ndarray, rows: int = 300) -> str:
    """Samples and labels as an Arrow or Parquet file with groups of so many rows."""
    pa = pytest.importorskip("pyarrow")
    columns = {f"x{place}": images[:, place] for place in range(images.shape[1])}
    made = pa.table({"label": labels, **columns})
    if path.suffix == ".parquet":
        from pyarrow.parquet import write_table

        write_table(made, path, row_group_size=rows)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made, max_chunksize=rows)
    return str(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_tables_are_the_same_samples(tmp_path: Path, ending: str, dtype: Any) -> None:
    images, labels = samples(dtype)
    streamed = StreamedDataset(table(tmp_path / f"data{ending}", images, labels), label_column="label")
    assert streamed.images.columns[:2] == ("x0", "x1")
    assert (pickle.loads(pickle.dumps(streamed.images))[290:310] == images[290:310]).all()
    options = {"order": Blocks(13, 3), "validation": 0.1}
    first, history = trained(Dataset(images, labels), **options)
    second, other = trained(streamed, **options)
    assert numbers(other) == numbers(history)
    assert second.evaluate(streamed) == first.evaluate(Dataset(images, labels))


@pytest.mark.parametrize("chunks", [(100, FEATURES), (64, 5)])
def test_zarr_arrays_are_the_same_samples(tmp_path: Path, chunks: tuple[int, int]) -> None:
    zarr = pytest.importorskip("zarr")
    images, labels = samples()
    for name, values, size in (("x.zarr", images, chunks), ("y.zarr", labels, (100,))):
        zarr.create_array(tmp_path / name, shape=values.shape, dtype=values.dtype, chunks=size)[...] = values
    streamed = StreamedDataset(tmp_path / "x.zarr", tmp_path / "y.zarr")
    assert (pickle.loads(pickle.dumps(streamed.images))[290:310] == images[290:310]).all()
    first, second = (trained(data, order=Blocks(13, 3))[0] for data in (Dataset(images, labels), streamed))
    assert (first.parameters.data == second.parameters.data).all()


def test_the_command_takes_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(Path("train.parquet"), *samples())
    table(Path("test.parquet"), *samples(seed=1))
    data = ["--dataset", "train.parquet", "--test", "test.parquet", "--label-column", "label"]
    assert train.main([*data, *OPTIONS, "--stream", "--out", "streamed"]) == 0
    assert "903 samples to train, 100 to validate, 1,003 to test" in capsys.readouterr().out
    assert train.main([*data, *OPTIONS, "--order", "blocks", "--quiet", "--out", "memory"]) == 0
    assert same_network(Path("streamed"), Path("memory"))
    assert evaluate.main(["streamed"]) == 0
    assert train.main(["--resume", "streamed", "--epochs", "4", "--quiet"]) == 0
    assert shuffle.main(["train.parquet", "train.parquet", "out", "--label-column", "label", "--quiet"]) == 0
    assert sorted(np.load("out/labels.npy").tolist()) == sorted(samples()[1].tolist())


TABLES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no such column": (
        lambda: {"x": [1, 2], "y": [0, 1]},
        "expected a column label with the labels, found x, y",
    ),
    "text": (
        lambda: {"x": ["a", "b"], "label": [0, 1]},
        "expected feature columns with numbers, found other values in x",
    ),
    "no features": (lambda: {"label": [0, 1]}, "expected feature columns with numbers, found none"),
    "missing values": (lambda: {"x": [1.0, None], "label": [0, 1]}, "found 1 missing ones in x"),
    "missing labels": (lambda: {"x": [1.0, 2.0], "label": [0, None]}, "found 1 missing ones in label"),
    "labels that are decimals": (
        lambda: {"x": [1.0, 2.0], "label": [Decimal("0.50"), Decimal("1.25")]},
        r"text, found decimal128\(3, 2\) in label; convert that column",
    ),
    "labels that are bytes": (lambda: {"x": [1.0, 2.0], "label": [b"\xff", b"a"]}, "found binary in label"),
    "labels that are lists": (lambda: {"x": [1.0, 2.0], "label": [[0], [1]]}, r"found list<.*> in label"),
    "no rows": (lambda: {"x": np.empty(0), "label": np.empty(0, int)}, "expected at least one row, found none"),
}


@pytest.mark.parametrize("name", ["data.npy", "data.parquet", "data.arrow", "data.zarr", "old.zarr"])
def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    images, labels = samples(np.float32)

    def write(images: np.ndarray) -> None:
        if name == "data.npy":
            np.save(tmp_path / name, images)
        elif name.endswith(".zarr"):
            zarr, form = pytest.importorskip("zarr"), 2 if name == "old.zarr" else 3
            zarr.save_array(tmp_path / name, images, zarr_format=form, overwrite=True)
        else:
            table(tmp_path / name, images, labels)

    write(images)
    options = {"label_column": "label"} if name in ("data.parquet", "data.arrow") else {"targets": labels}
    data = StreamedDataset(tmp_path / name, **options)
    assert (data.images[:10] == images[:10]).all()
    write(images + 1)
    with pytest.raises(DataError, match=rf"{name}\S*: expected .* the file was changed while it was read"):
        np.asarray(data.images)


@pytest.mark.parametrize("piece", [1, 5])
@pytest.mark.parametrize("run", range(5))
def test_a_file_is_refused_wherever_in_a_call_it_is_written_to(
    tmp_path: Path, run: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.zeros((10, 4), np.uint8))
    images, places = FileRows(tmp_path), np.array([0, 5, 2, 18, 13])
    monkeypatch.setattr("gpumlp.data.rows._PIECE", 4 * piece)
    images.read(places, found := np.empty((5, 4), np.uint8))
    read, runs = FileRows._read_part, []

    def written(self: FileRows, number: int, first: int, out: np.ndarray) -> None:
        if len(runs) == run:
            os.utime(tmp_path / f"{number}.npy", ns=(1, 1))
        runs.append(number)
        read(self, number, first, out)

    monkeypatch.setattr(FileRows, "_read_part", written)
    with pytest.raises(DataError, match=f"{int(run > 2)}.npy: expected .* the file was changed while it was read"):
        images.read(places, found)


@pytest.mark.parametrize(
    ("words", "places", "message"),
    [
        (["cat", "eel", "dog"], [0, 1, 2, 1], None),
        (["cat", None, "dog"], [0, 1, 2, 1], "found 2 missing ones in label"),
        (["cat", "eel", "dog"], [0, 1, 2, 3], r"found a damaged one \(.*out of bounds"),
    ],
)
def test_labels_of_a_dictionary_are_its_values(
    tmp_path: Path, words: list[Any], places: list[int], message: str | None
) -> None:
    pa = pytest.importorskip("pyarrow")
    labels = pa.DictionaryArray.from_arrays(pa.array(places), pa.array(words), safe=False)
    made = pa.table({"x": [1.0, 2.0, 3.0, 4.0], "label": labels})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
        writer.write_table(made)
    if message:
        with pytest.raises(DataError, match=message):
            StreamedDataset(tmp_path / "data.arrow", label_column="label")
    else:
        data = StreamedDataset(tmp_path / "data.arrow", label_column="label")
        assert (data.class_names, data.labels.tolist()) == (("cat", "dog", "eel"), [0, 2, 1, 2])


def test_damaged_words_of_a_table_are_a_message(tmp_path: Path) -> None:
    images = samples(np.float32)[0]
    path = Path(table(tmp_path / "data.arrow", images[:4], np.array(["a", "bb", "ccc", "d"])))
    places, far = (np.array(of, np.int32).tobytes() for of in ([0, 1, 3, 6, 7], [0, 1, 3, 2**30, 2**31 - 1]))
    assert path.read_bytes().count(places) == 1
    path.write_bytes(path.read_bytes().replace(places, far))  # reading there would end the process
    with pytest.raises(DataError, match="found a damaged one"):
        StreamedDataset(path, label_column="label")


@pytest.mark.parametrize("name", [None, "id"])
def test_the_index_of_a_data_frame_is_no_feature(tmp_path: Path, name: str | None) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    index = pandas.Index([7, 3, 5], name=name)  # as it is after a frame is shuffled
    pandas.DataFrame({"a": [1.0, 2.0, 3.0], "label": ["x", "y", "x"]}, index).to_parquet(tmp_path / "d.parquet")
    assert StreamedDataset(tmp_path / "d.parquet", label_column="label").images.columns == ("a",)


def test_parts_of_a_table_have_the_same_columns(tmp_path: Path) -> None:
    images, labels = samples(np.float32)
    (tmp_path / "parts.arrow").mkdir()
    table(tmp_path / "parts.arrow" / "0.arrow", images[:, :2], labels)
    made = table(tmp_path / "1.arrow", images[:, :3], labels)
    Path(made).rename(tmp_path / "parts.arrow" / "1.arrow")
    with pytest.raises(
        DataError, match=r"1\.arrow: expected the columns x0, x1 as in the first part, found x0, x1, x2"
    ):
        StreamedDataset(tmp_path / "parts.arrow", label_column="label")


@pytest.mark.parametrize("other", [["1", "0"], [1.0, 0.0], [True, False], np.array([1, 0], np.uint64)])
def test_parts_of_labels_are_of_one_kind(tmp_path: Path, other: Any) -> None:
    parts, other = tmp_path / "labels", np.array(other)
    parts.mkdir()
    for number, values in enumerate([np.array([0, 1]), np.array([1, 0], np.uint8)]):
        np.save(parts / f"{number}.npy", values)
    assert read_targets(parts).tolist() == [0, 1, 1, 0]
    np.save(parts / "2.npy", other)
    with pytest.raises(
        DataError,
        match=f"labels of one kind in all parts, found .*{'text' if other.dtype.kind == 'U' else other.dtype}",
    ):
        read_targets(parts)


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.feather import write_feather

    columns = [pa.array([1.0, 2.0])] * 2 + [pa.array([0, 1])]
    write_feather(pa.Table.from_arrays(columns, names=["x", "x", "label"]), tmp_path / "data.arrow")
    with pytest.raises(DataError, match=r"data.arrow: expected columns with different names, found x twice"):
        StreamedDataset(tmp_path / "data.arrow", label_column="label")


def test_a_folder_named_like_a_known_data_set_is_not_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).normal(0, 5, (100, 64)).astype(np.float32)
    Path("digits").mkdir()
    np.save("digits/0.npy", images)
    np.save("labels.npy", (images[:, 0] > 0).astype(int))
    options = ["--device", "cpu", "--epochs", "1", "--quiet", "--out", "run"]
    assert train.main(["--dataset", "digits", "labels.npy", *options]) == 0
    assert predict.main(["run", "digits/0.npy", "--out", "p.csv"]) == 0, capsys.readouterr().err
    assert MLP.load("run").inputs.data == "./digits"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path, name: str) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    columns, message = TABLES[name]
    write_table(pa.table(columns()), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=message) as caught:
        np.asarray(StreamedDataset(tmp_path / "data.parquet", label_column="label").images)
    assert "\n" not in str(caught.value)


def test_a_damaged_table_or_one_of_large_groups_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "data.parquet", *samples())
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_MAX_GROUP", 1_000)
        with pytest.raises(DataError, match="expected row groups of at most 0 MB"):
            StreamedDataset(path, label_column="label")
    with pytest.raises(DataError, match="give --label-column NAME"):
        StreamedDataset(path, tmp_path / "labels.npy")
    cut(path, 5_000)
    with pytest.raises(DataError, match="expected an Arrow or Parquet file, found a damaged one"):
        StreamedDataset(path, label_column="label")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "a.parquet"], "label_column: expected with an Arrow or Parquet file"),
        (["--dataset", "digits", "--label-column", "y"], "label_column: expected with an Arrow or Parquet file"),
        (["--dataset", "a.parquet", "--label-column", "y", "--test", "b.npy", "c.npy"], "test: expected files as"),
    ],
)
def test_options_of_tables_are_checked(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*options, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
