"""Distortions of images: what an image becomes, and that it depends on seed, epoch and image number alone."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import (
    MLP,
    SGD,
    Blocks,
    Callback,
    DataError,
    Dataset,
    Distortion,
    StreamedDataset,
    Trainer,
    fit,
    fit_many,
    get_backend,
    load_digits,
)
from gpumlp.backends import Backend, reference_backend
from gpumlp.backends.distortion import CHUNK, STEPS, places, random_words
from gpumlp.backends.numpy import NumpyBackend
from tests.command_helpers import DIGITS, assert_same_run, run
from tests.host_cuda import host_cuda_backend
from tests.strict_device import StrictBackend

CPU = get_backend("cpu")
ALL = Distortion(rotation=7.5, scaling=0.12, shear=0.12, translation=1, elastic=(34, 4))
RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (300, 8, 8), dtype=np.uint8)
DATA = Dataset(IMAGES, RNG.integers(0, 4, 300), classes=4)
EACH = {
    "rotation": Distortion(rotation=20),
    "scaling": Distortion(scaling=0.3),
    "shear": Distortion(shear=0.3),
    "translation": Distortion(translation=4),
    "elastic": Distortion(elastic=(34, 4)),
}


def grid(size: int = 28, dtype: Any = np.float64) -> np.ndarray:
    """The rows and the columns of pixels, from 1 on: distorted, they tell where each pixel comes from."""
    return np.stack(np.meshgrid(*[np.arange(1, size + 1)] * 2, indexing="ij")).astype(dtype)


def moves(distortion: Distortion, size: int = 28, count: int = 400) -> np.ndarray:
    """Where pixels of images come from, less where they are, ``(count, 2, size, size)``; NaN beyond the border."""
    where = grid(size)
    found = [distortion.apply(np.repeat(axis[None], count, 0), rows=np.arange(count)) for axis in where]
    inside = distortion.apply(np.repeat(np.ones((1, size, size)), count, 0), rows=np.arange(count))
    result = np.stack(found, axis=1) - where
    result[np.repeat(inside[:, None], 2, 1) < 1] = np.nan
    return result


# -- What an image becomes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (5, 12), (1, 1)])
def test_without_any_distortion_an_image_is_the_same(shape: tuple[int, int], dtype: Any) -> None:
    images = (RNG.normal(size=(7, *shape)) * 50 + 128).astype(dtype)
    for distortion in (Distortion(), Distortion(elastic=(0, 4))):
        changed = distortion.apply(images)
        assert changed.dtype == dtype
        np.testing.assert_array_equal(changed, images)


@pytest.mark.parametrize("name", EACH)
def test_each_distortion_changes_images(name: str) -> None:
    changed = EACH[name].apply(np.repeat(IMAGES[:1], 50, axis=0))
    assert len(np.unique(changed, axis=0)) == 50
    assert not (changed == IMAGES[:1]).all(axis=(1, 2)).any()


@pytest.mark.parametrize("size", [20, 28, 56])
def test_an_affine_map_has_the_largest_values_that_are_given(size: int) -> None:
    """From the middle rows and columns, where neither the border nor other pixels matter."""
    middle = size // 2
    for distortion, largest in (
        (Distortion(translation=4), 4 * size / 28),
        (Distortion(rotation=5), np.tan(np.radians(5)) * 4),
        (Distortion(shear=0.2), 0.2 * 4),
    ):
        found = moves(distortion, size, 2000)[:, 1, middle - 4, middle]  # to the side, 4 rows above the middle
        assert np.abs(found).max() <= largest * 1.15 + 0.01
        assert found.max() >= 0.85 * largest
        assert found.min() <= -0.85 * largest
        assert abs(found.mean()) < 0.1 * largest


def test_scaling_changes_height_and_width_by_factors_of_their_own() -> None:
    found = moves(Distortion(scaling=0.2), 28, 2000)
    rows = found[:, 0, 18, 14] - found[:, 0, 10, 14]  # 8 rows apart
    columns = found[:, 1, 14, 18] - found[:, 1, 14, 10]
    height, width = 8 / (8 + rows), 8 / (8 + columns)
    for factor in (height, width):
        assert (0.79 < factor.min() < 0.81, 1.19 < factor.max() < 1.21) == (True, True)
        assert factor.mean() == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(height, width)[0, 1]) < 0.1


@pytest.mark.parametrize("size", [14, 28, 40])
@pytest.mark.parametrize("elastic", [(34, 4), (8, 2)])
def test_displacements_are_as_large_at_the_edges_as_in_the_middle(elastic: tuple[float, float], size: int) -> None:
    """Rows and columns that move inwards from the border are seen; the others by the noise itself."""
    distortion, count = Distortion(elastic=elastic), 3000
    warp = distortion.warp((size, size), 0, CPU)
    words = random_words(np, warp, np.arange(count), np.zeros(1, np.uint64))
    field = places(np, warp, words) / STEPS - grid(size)
    deviations = field.std(axis=0) / (size / 28)
    expected = elastic[0] * 3**-0.5 / (2 * np.pi**0.5 * elastic[1])
    np.testing.assert_allclose(deviations, expected, rtol=0.1)
    assert np.abs(field.mean(axis=0)).max() < 0.1 * expected * size / 28
    fields = field[:, 0].ravel(), field[:, 1].ravel()
    assert abs(np.corrcoef(*fields)[0, 1]) < 0.01
    found = moves(distortion, size, 100)[:, 0]
    seen = ~np.isnan(found)
    assert seen.mean() > 0.7
    np.testing.assert_allclose(found[seen], field[:100, 0][seen], atol=0.02)


def test_beyond_its_border_an_image_is_0_and_an_edge_is_blurred_by_what_is_there() -> None:
    white = np.full((2000, 28, 28), 255, np.uint8)
    changed = Distortion(translation=2).apply(white)
    assert (changed[:, 4:-4, 4:-4] == 255).all()
    means = changed.mean(axis=0)
    edges = [means[0, 14], means[-1, 14], means[14, 0], means[14, -1]]
    # Half of the shifts leave an edge alone; of the others up to 2 pixels, more than 1 makes it 0.
    np.testing.assert_allclose(edges, 255 * (0.5 + 0.5 * 0.25), rtol=0.03)


def test_pixels_are_those_of_numbers_rounded() -> None:
    images = RNG.integers(0, 256, (100, 28, 28), dtype=np.uint8)
    numbers = ALL.apply(images.astype(np.float64))
    assert np.abs(ALL.apply(images) - numbers).max() <= 0.501


@pytest.mark.parametrize("shape", [(28, 28), (9, 14)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_every_device_distorts_alike(backend: Backend, dtype: Any, shape: tuple[int, int]) -> None:
    images = (RNG.normal(size=(20, *shape)) * 50 + 128).astype(dtype).reshape(20, -1)
    rows, numbers = np.array([3, 0, 19, 3]), np.array([2**40, 0, 7, 1])
    outs = []
    for device in (backend, reference_backend(np)):
        place = getattr(device, "asarray", np.asarray) if device is backend else np.asarray
        warp = ALL.warp(shape, 9, backend if device is backend else CPU)
        out = place(np.empty((4, images.shape[1]), np.float32 if dtype == np.uint8 else dtype))
        with device.activate():
            device.distort(*map(place, (images, rows, numbers, np.array([3], np.uint64))), warp, out)
        outs.append(out if device is not backend else device.to_numpy(out))
    span = 1.0 if dtype == np.uint8 else float(np.ptp(images))  # a place may differ by 1/256 of a pixel
    np.testing.assert_allclose(*outs, rtol=0, atol=1.01 * span / 255)


# -- What it depends on -----------------------------------------------------------------------------------


def test_an_image_depends_on_seed_epoch_and_number_and_on_nothing_else() -> None:
    images = np.repeat(IMAGES[:1], 2 * CHUNK + 9, axis=0)
    first = ALL.apply(images, seed=3, epoch=2)
    np.testing.assert_array_equal(ALL.apply(images, seed=3, epoch=2), first)
    order = RNG.permutation(len(images))
    np.testing.assert_array_equal(ALL.apply(images, seed=3, epoch=2, rows=order), first[order])
    np.testing.assert_array_equal(ALL.apply(images[5:7], seed=3, epoch=2, rows=np.array([5, 6])), first[5:7])
    np.testing.assert_array_equal(ALL.apply(images, seed=3 + 2**64, epoch=2), first)
    for other in (ALL.apply(images, seed=4, epoch=2), ALL.apply(images, seed=3, epoch=3), first[::-1]):
        assert (other != first).any(axis=(1, 2)).mean() > 0.95
    assert len(np.unique(first, axis=0)) == len(images)


class Seen(Callback):
    """Keeps the inputs of every step, by epoch and row."""

    def __init__(self) -> None:
        self.images: dict[tuple[int, int], np.ndarray] = {}

    def on_train_begin(self, trainer: Trainer) -> None:
        batches, gather = trainer.batches, trainer.batches.gather

        def watched(batch: slice, staging: Any, out: Any) -> Any:
            targets = gather(batch, staging, out)
            order = batches._order.rows() if trainer.train_set.streamed else batches.order
            for row, image in zip(order[batch], np.rint(out * 255).astype(np.uint8), strict=True):
                self.images[trainer.epoch, int(row)] = image.copy()
            return targets

        batches.gather = watched


def seen(data: Dataset, **options: Any) -> dict[tuple[int, int], np.ndarray]:
    watch, model = Seen(), MLP([64, 5, 4], device="cpu")
    fit(model, data, epochs=2, callbacks=[watch], **{"batch_size": 32, "augment": ALL, "seed": 6} | options)
    return watch.images


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_size": 7}, {"batch_size": "full"}, {"batch_size": 70, "shards": 8}, {"order": Blocks(9, 3)}],
)
def test_a_network_sees_the_images_of_apply(options: dict[str, Any]) -> None:
    found = seen(DATA, **options)
    assert len(found) == 600
    for epoch in range(2):
        expected = ALL.apply(IMAGES, seed=6, epoch=epoch).reshape(300, -1)
        for row in range(300):
            np.testing.assert_array_equal(found[epoch, row], expected[row])


@pytest.mark.parametrize("shards", [1, 3])
def test_streamed_images_are_distorted_by_their_place_in_the_files(tmp_path: Path, shards: int) -> None:
    paths = [str(tmp_path / "images.npy"), str(tmp_path / "labels.npy")]
    np.save(paths[0], IMAGES)
    np.save(paths[1], DATA.labels)
    models = []
    for data in (StreamedDataset(*paths), DATA):
        models.append(MLP([64, 5, 4], device="cpu"))
        options = {"order": Blocks(16, 4), "validation": 40, "batch_size": 24, "augment": ALL, "epochs": 3}
        options["shards"] = shards
        fit(models[-1], data, optimizer=SGD(0.1, momentum=0.9), **options)
    np.testing.assert_array_equal(models[0].parameters.data, models[1].parameters.data)


def parameters(trainer: Trainer) -> np.ndarray:
    backend = trainer.model.backend
    return backend.to_numpy(trainer.model.parameters.data)


def trainer_of(data: Dataset = DATA, device: Any = "cpu", **options: Any) -> Trainer:
    model = MLP([data.features, 12, 4], seed=2, device=device)
    return Trainer(
        model, data, **{"optimizer": SGD(0.1, momentum=0.9), "batch_size": 32, "augment": ALL} | options
    )


@pytest.mark.parametrize("rows_at_a_time", [50, 20])
def test_shards_and_parts_change_rounding_only(rows_at_a_time: int | None) -> None:
    device = get_backend("cpu")
    device.rows_at_a_time = rows_at_a_time
    whole, other = trainer_of(batch_size=100), trainer_of(device=device, batch_size=100, shards=3)
    for trainer in (whole, other):
        trainer.run(3)
    np.testing.assert_allclose(parameters(other), parameters(whole), atol=1e-5)


def test_graphs_single_launches_and_the_cpu_train_alike() -> None:
    trainers = [
        trainer_of(device=device)
        for device in (
            host_cuda_backend(cublaslt=True, execution="graphs"),
            host_cuda_backend(cublaslt=True, execution="eager"),
            "cpu",
            StrictBackend(),
        )
    ]
    for trainer in trainers:
        trainer.run(3)
    graphs, eager, cpu, strict = map(parameters, trainers)
    assert "graph" in trainers[0].model.backend.xp.launches
    np.testing.assert_array_equal(graphs, eager)
    np.testing.assert_allclose(graphs, cpu, atol=1e-5)
    np.testing.assert_allclose(strict, cpu, atol=1e-5)


def test_the_persistent_kernel_is_not_used() -> None:
    trainer = trainer_of(device=host_cuda_backend(cublaslt=True))
    trainer.model.backend.xp.attributes["CooperativeLaunch"] = 1
    assert trainer.execution.name == "graphs"
    assert "it does not distort images" in trainer.execution.reason


def test_noise_that_is_too_large_for_the_kernel_is_array_code() -> None:
    data = Dataset(RNG.integers(0, 256, (8, 150, 20), dtype=np.uint8), np.arange(8) % 4, classes=4)
    wide = Distortion(elastic=(34, 14))
    device = host_cuda_backend(cublaslt=True)
    trainers = [trainer_of(data, each, augment=wide, batch_size=4) for each in (device, "cpu")]
    for trainer in trainers:
        trainer.run(1)
    assert "distort_pixels" not in device.xp.launches
    assert trainers[0].execution.name == "eager"
    np.testing.assert_allclose(*map(parameters, trainers), atol=1e-5)


def test_validation_samples_and_those_of_the_diagnostics_are_as_they_are() -> None:
    def losses(augment: Distortion | None) -> list[Any]:
        # With a rate of 0 the network stays the same, so that only the samples differ.
        trainer = trainer_of(augment=augment, validation=60, schedule=lambda rate, epoch: 0.0)
        history = trainer.run(2)
        counted = history.classes.predicted if hasattr(history.classes, "predicted") else history.classes
        return [history["validation_loss"], [r.layers for r in history.records], counted, history["train_loss"]]

    *plain, loss = losses(None)
    *distorted, other = losses(ALL)
    assert plain[0] == distorted[0]
    assert plain[2] == distorted[2]
    assert loss[0] == pytest.approx(loss[1], rel=1e-6)
    assert len({*loss, *other}) == 4 - (loss[0] == loss[1])


def test_networks_of_fit_many_have_their_own_distortions() -> None:
    models = [MLP([64, 5, 4], device="cpu") for _ in range(3)]
    augments = [None, ALL, Distortion(elastic=(34, 4))]
    fit_many(models, DATA, augment=augments, epochs=2, batch_size=32, n_jobs=1)
    for model, augment in zip(models, augments, strict=True):
        alone = MLP([64, 5, 4], device="cpu")
        fit(alone, DATA, augment=augment, epochs=2, batch_size=32)
        np.testing.assert_array_equal(model.parameters.data, alone.parameters.data)


# -- Interrupts, resume, errors ---------------------------------------------------------------------------


class InterruptOnce(Callback):
    """Interrupts training within its second epoch."""

    done = False

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if trainer.epoch == 1 and samples > 100 and not self.done:
            self.done = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("streamed", [False, True])
def test_after_an_interrupt_training_ends_with_the_same_bits(streamed: bool, tmp_path: Path) -> None:
    paths = [str(tmp_path / "images.npy"), str(tmp_path / "labels.npy")]
    np.save(paths[0], IMAGES)
    np.save(paths[1], DATA.labels)
    data = StreamedDataset(*paths) if streamed else DATA
    whole, interrupted = (trainer_of(data, order=Blocks(16, 4)) for _ in range(2))
    whole.run(3)
    interrupted.run(3, [InterruptOnce()])
    assert interrupted.epoch == 1
    interrupted.run(3)
    np.testing.assert_array_equal(parameters(interrupted), parameters(whole))


def test_a_divergence_is_explained() -> None:
    with pytest.raises(Exception, match="at step"):
        trainer_of(optimizer=SGD(1e30)).run(2)


class Watched(NumpyBackend):
    """Notes which threads distort how many images at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, int]] = []

    def distort(self, source: Any, rows: Any, *arguments: Any) -> None:
        self.calls.append((threading.current_thread() is threading.main_thread(), len(rows)))
        super().distort(source, rows, *arguments)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [32] * 9 + [12]),
        ({"batch_size": 100, "shards": 3}, [33, 33, 34] * 3),
        ({"batch_size": "full"}, [100] * 3),
        ({"order": Blocks(16, 4)}, [32] * 9 + [12]),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_all_batches_but_the_first_are_prepared_by_a_thread(
    options: dict[str, Any], sizes: list[int], streamed: bool, tmp_path: Path
) -> None:
    paths = [str(tmp_path / "images.npy"), str(tmp_path / "labels.npy")]
    np.save(paths[0], IMAGES)
    np.save(paths[1], DATA.labels)
    device = Watched()
    device.rows_at_a_time = 100
    trainer = trainer_of(StreamedDataset(*paths) if streamed else DATA, device, **options)
    for epoch in range(1, 3):
        device.calls.clear()
        trainer.run(epoch)
        assert [size for _, size in device.calls] == sizes
        assert [main for main, _ in device.calls] == [True] + [False] * (len(sizes) - 1)


def test_one_thread_prepares_the_next_batch_and_ends_with_the_trainer() -> None:
    before = set(threading.enumerate())
    trainer = trainer_of()
    trainer.run(2)
    (thread,) = [each for each in set(threading.enumerate()) - before if each.name.startswith("gpumlp-ahead")]
    del trainer
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    words = [*DIGITS, "--hidden", "8", "--augment", "rotation=7.5", "elastic=34,4", "--quiet"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", *words, "--epochs", 4, "--out", whole) == 0
    assert run("train", *words, "--epochs", 2, "--out", parts) == 0
    assert run("train", "--resume", parts, "--epochs", 4, "--quiet") == 0
    assert_same_run(whole, parts)
    config = json.loads((whole / "config.json").read_text())
    assert config["augment"] == ["rotation=7.5", "elastic=34,4"]
    assert run("train", "--resume", parts, "--epochs", 5, "--augment", "rotation=1") == 2


@pytest.mark.parametrize(
    "words",
    [
        ["rotation"],
        ["rotation=far"],
        ["rotation=nan"],
        ["rotation=181"],
        ["rotation=1", "rotation=2"],
        ["scaling=1"],
        ["elastic=34"],
        ["elastic=34,4,4"],
        ["elastic=34,0.1"],
        ["twist=1"],
    ],
)
def test_a_wrong_distortion_is_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("train", *DIGITS, "--augment", *words, "--out", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "augment: expected " in line
    assert line.endswith(f"got {', '.join(map(repr, words))}")
    assert not (tmp_path / "run").exists()


def test_samples_that_are_no_images_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flat = Dataset(IMAGES.reshape(300, -1), DATA.labels)
    message = r"augment is expected with images of shape \(n, rows, columns\), got .* of 64 uint8.*reshape them"
    with pytest.raises(ValueError, match=message):
        fit(MLP([64, 4]), flat, augment=ALL)
    file = tmp_path / "flat.npz"
    np.savez(file, x_train=flat.images, y_train=flat.labels, x_test=flat.images, y_test=flat.labels)
    words = ["--dataset", file, "--device", "cpu", "--augment", "rotation=5", "--out", tmp_path / "run"]
    assert run("train", *words) == 2
    assert "augment is expected with images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distortion(rotation=-1), "rotation must be a number from 0 to 180, got -1"),
        (lambda: Distortion(scaling=True), "scaling must be a number from 0 to 0.99, got True"),
        (lambda: Distortion(shear="0.1"), "shear must be a number from 0 to 1, got '0.1'"),
        (lambda: Distortion(elastic=34), r"elastic must be two numbers, \(alpha, sigma\), got 34"),
        (lambda: Distortion(elastic=(34, 20)), "sigma of elastic must be a number from 0.5 to 14, got 20"),
        (lambda: ALL.apply(np.zeros((3, 64))), r"images must have the shape \(n, rows, columns\)"),
        (lambda: ALL.apply(IMAGES[:0]), r"with pixels, and the dtype uint8, .* got \(0, 8, 8\) of uint8"),
        (lambda: ALL.apply(IMAGES[:3], rows=[5]), r"rows must be 3 whole numbers of 0 or more, .* got \[5\]"),
        (lambda: ALL.apply(IMAGES[:1], rows=[0.5]), r"rows must be 1 whole numbers .* got \[0\.5\]"),
        (lambda: ALL.apply(IMAGES[:1], rows=[-1]), r"rows must be 1 whole numbers .* got \[-1\]"),
        (lambda: ALL.apply(IMAGES[:1], epoch=1.5), "epoch must be a whole number of 0 or more, got 1.5"),
        (lambda: ALL.apply(IMAGES[:1], seed="a"), "seed must be a whole number of 0 or more, got 'a'"),
        (lambda: ALL.apply(np.zeros((3, 8, 8), int)), "and the dtype uint8, float32 or float64, got .* of int64"),
    ],
)
def test_a_wrong_value_is_named(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize("nothing", [Distortion(), Distortion(elastic=(0, 4))])
def test_a_distortion_that_changes_nothing_is_none(nothing: Distortion) -> None:
    assert trainer_of(augment=nothing).augment is None
    assert trainer_of(augment=ALL).augment == ALL


def test_another_object_is_refused() -> None:
    with pytest.raises(TypeError, match="augment is expected to be a Distortion, such as Distortion"):
        fit(MLP([64, 4]), DATA, augment="rotation=5")


def test_digits_are_learned_with_distortions() -> None:
    train, test = load_digits()
    model = MLP([64, 64, 10], device="cpu")
    fit(model, train, augment=ALL, optimizer=SGD(0.1, momentum=0.9), epochs=15, batch_size=32)
    assert model.accuracy(test) > 0.93
