"""Samples that are streamed to a GPU: the bits of samples in its memory, and copies that wait for steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
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
    Distortion,
    DivergenceError,
    Group,
    Preprocessing,
    StreamedDataset,
    Trainer,
    fit,
    fit_many,
)
from gpumlp.backends import Backend, ExecutionError, Memory
from gpumlp.backends.cuda.uploads import StreamUploads
from gpumlp.data.stream import DeviceBatches
from tests.gpu_helpers import gpu_backend
from tests.host_cuda import HostEvent, HostStream, Upload, host_cuda_backend
from tests.test_stream import FEATURES, hand_over, numbers, saved
from tests.test_stream import samples as all_samples

WAYS = ("eager", "graphs", "persistent")


def samples(dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """303 samples: compiled for the processor, kernels are slow."""
    images, labels = all_samples(dtype)
    return images[:303], labels[:303]


def backend_of(way: str) -> Backend:
    """A fake GPU whose steps run in this way."""
    backend = host_cuda_backend(cublaslt=True, execution=way)
    backend.xp.attributes["CooperativeLaunch"] = int(way == "persistent")
    return backend


def trainer_on(backend: Backend, data: Dataset, outputs: int = 4, **options: Any) -> Trainer:
    model = MLP([data.features, 16, outputs], device=backend)
    given = {"batch_size": 32, "optimizer": SGD(0.1, momentum=0.9), "order": Blocks(13, 3), **options}
    return Trainer(model, data, **given)


def bits(trainer: Trainer) -> tuple[bytes, list[tuple[Any, ...]]]:
    model = trainer.model
    return model.backend.to_numpy(model.parameters.data).tobytes(), numbers(trainer.history)


def pair(
    folder: Path, backend: Callable[[], Backend], images: np.ndarray, targets: np.ndarray, **options: Any
) -> tuple[Trainer, Trainer]:
    """Trainers on the same samples in memory and in files."""
    streamed = StreamedDataset(*saved(folder, images, targets))
    return trainer_on(backend(), Dataset(images, targets), **options), trainer_on(backend(), streamed, **options)


def same_bits(memory: Trainer, streamed: Trainer, epochs: int = 2) -> None:
    for trainer in (memory, streamed):
        trainer.run(epochs)
    assert bits(streamed) == bits(memory)
    assert streamed.history.classes == memory.history.classes
    assert streamed.execution.name == memory.execution.name == streamed.model.backend.options[1]
    assert streamed.model.evaluate(streamed.train_set) == memory.model.evaluate(memory.train_set)


# -- The same bits as in memory, on a fake GPU --------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "windows that divide nothing": {},
    "one block a window": {"order": Blocks(17, 1)},
    "one window": {"order": Blocks(16, 100)},
    "adam and validation": {"order": Blocks(16, 4), "optimizer": Adam(0.01), "validation": 0.3},
    "batches larger than a window": {"order": Blocks(5, 2), "batch_size": 100},
    "batches as large as a window": {"order": Blocks(8, 4)},
    "class weights": {"class_weight": "balanced", "validation": 0.1},
}
MORE_CASES: dict[str, dict[str, Any]] = {
    "full batches": {"order": Blocks(50, 2), "batch_size": "full"},
    "averages, clipping": {"ema": 0.9, "clip_norm": 0.5},
    "numbers, not pixels": {"pixels": False, "optimizer": SGD(1e-4)},
}


QUICK = {("eager", name) for name in CASES} | {("graphs", name) for name in CASES if "batches" in name}
QUICK |= {("persistent", "windows that divide nothing")}


@pytest.mark.parametrize(
    ("way", "name"),
    [
        pytest.param(way, name, marks=[] if (way, name) in QUICK else pytest.mark.emulator)
        for way in WAYS
        for name in CASES
    ],
)
def test_streamed_samples_give_the_bits_of_samples_in_memory(tmp_path: Path, way: str, name: str) -> None:
    same_bits(*pair(tmp_path, lambda: backend_of(way), *samples(), **CASES[name]))


@pytest.mark.parametrize("name", MORE_CASES)
def test_what_some_ways_do_not_support_is_streamed_in_the_next(tmp_path: Path, name: str) -> None:
    memory, streamed = pair(tmp_path, lambda: host_cuda_backend(cublaslt=True), *samples(), **MORE_CASES[name])
    for trainer in (memory, streamed):
        trainer.run(2)
    assert bits(streamed) == bits(memory)
    assert streamed.execution == memory.execution


@pytest.mark.parametrize("way", WAYS)
def test_float32_samples_are_streamed(tmp_path: Path, way: str) -> None:
    same_bits(*pair(tmp_path, lambda: backend_of(way), *samples(np.float32)))


@pytest.mark.parametrize("way", WAYS)
def test_held_out_samples_are_streamed_batch_by_batch(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpumlp.training.batches.CHUNK", 16)
    memory, streamed = pair(tmp_path, lambda: backend_of(way), *samples(np.float32), validation=0.3)
    same_bits(memory, streamed)
    step = streamed._evaluation
    assert len(step.slices) > 5
    assert len(step.images) == 16
    assert streamed.model.backend.execution(step).name == ("persistent" if way == "persistent" else "eager")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", ["labels", "numbers"])
def test_targets_of_every_kind_are_streamed(tmp_path: Path, task: str, way: str) -> None:
    images, labels = samples()
    targets = np.stack([labels > 1, labels % 2 == 0], axis=1)
    targets = targets if task == "labels" else targets + np.random.default_rng(0).normal(size=targets.shape)
    options = {"validation": 0.1, "optimizer": SGD(0.01), "outputs": 2}
    same_bits(*pair(tmp_path, lambda: backend_of(way), images, targets, **options))


@pytest.mark.parametrize("way", WAYS)
def test_many_networks_stream_the_same_bits(tmp_path: Path, way: str) -> None:
    data = StreamedDataset(*saved(tmp_path, *samples()))
    models, alone = (
        [MLP([FEATURES, 16, 4], seed=seed, device=backend) for seed in range(2)]
        for backend in (backend_of(way), backend_of(way))
    )
    fit_many(models, data, epochs=2, order=Blocks(13, 3))
    for one, other in zip(models, alone, strict=True):
        fit(other, data, epochs=2, order=Blocks(13, 3))
        assert (one.backend.to_numpy(one.parameters.data) == other.backend.to_numpy(other.parameters.data)).all()


# -- Distorted and preprocessed images ----------------------------------------------------------------------------

AUGMENT = Distortion(rotation=20, scaling=0.2, shear=0.2, translation=3, elastic=(30, 4))
PREPROCESS = Preprocessing(deskew=True, width=2)
CHANGES: dict[str, dict[str, Any]] = {
    "distorted": {"augment": AUGMENT, "validation": 0.1},
    "distorted, batches larger than a window": {"augment": AUGMENT, "order": Blocks(5, 2), "batch_size": 100},
    "preprocessed": {"preprocess": PREPROCESS, "validation": 0.1},
    "both": {"augment": AUGMENT, "preprocess": PREPROCESS, "class_weight": "balanced"},
}


def pictures(dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    images, labels = samples(dtype)
    return images.reshape(-1, 3, 4), labels


@pytest.mark.parametrize(
    ("way", "name", "dtype"),
    [
        *((way, name, np.uint8) for way in ("eager", "graphs") for name in CHANGES),
        *(("eager", "distorted", np.float32), ("graphs", "both", np.float32)),
        *(("persistent", "preprocessed", dtype) for dtype in (np.uint8, np.float32)),
    ],
)
def test_streamed_images_are_changed_as_in_memory(tmp_path: Path, way: str, name: str, dtype: Any) -> None:
    same_bits(*pair(tmp_path, lambda: backend_of(way), *pictures(dtype), **CHANGES[name]))


@pytest.mark.parametrize("way", ["eager", "graphs"])
def test_distorted_streams_are_resumed_and_repeated_alike(tmp_path: Path, way: str) -> None:
    data = StreamedDataset(*saved(tmp_path, *pictures()))
    options: dict[str, Any] = {"augment": AUGMENT, "validation": 0.1, "diagnostics": False}
    resumed_alike(*(trainer_on(backend_of(way), data, **options) for _ in range(3)))
    repeated_alike(*(trainer_on(backend_of(way), data, batch_size=4, **options) for _ in range(2)))


@pytest.mark.parametrize("batch_size", [16, 100])
def test_no_copy_overwrites_the_numbers_of_images_that_are_still_distorted(
    tmp_path: Path, batch_size: int
) -> None:
    data = StreamedDataset(*saved(tmp_path, *pictures()))
    assert mistakes(trainer_on(backend_of("eager"), data, augment=AUGMENT, batch_size=batch_size), 2) == 0


# -- Epochs that are broken off, and errors -----------------------------------------------------------------------


class Interrupt(Callback):
    """Raise KeyboardInterrupt once, in the middle of the second epoch."""

    raised = False

    def on_progress(self, trainer: Trainer, samples: int) -> None:
        if trainer.epoch == 1 and not self.raised:
            self.raised = True
            raise KeyboardInterrupt


def repeated_alike(whole: Trainer, broken: Trainer) -> None:
    whole.run(2)
    broken.run(2, Interrupt())
    assert broken.history.interrupted
    assert broken.epoch == 1
    broken.run(2)
    assert bits(broken)[0] == bits(whole)[0]


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_epoch_is_repeated_from_its_beginning(tmp_path: Path, way: str) -> None:
    data = StreamedDataset(*saved(tmp_path, *samples()))
    repeated_alike(*(trainer_on(backend_of(way), data, batch_size=4, validation=0.1) for _ in range(2)))


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_alike(tmp_path: Path, way: str) -> None:
    data = StreamedDataset(*saved(tmp_path, *samples()))
    whole, first, second = (
        trainer_on(backend_of(way), data, optimizer=Adam(), validation=0.1, diagnostics=False) for _ in range(3)
    )
    resumed_alike(whole, first, second)


def resumed_alike(whole: Trainer, first: Trainer, second: Trainer) -> None:
    whole.run(2)
    first.run(1)
    hand_over(first, second)
    second.run(2)
    assert bits(second) == bits(whole)


def test_divergence_is_explained_as_in_memory(tmp_path: Path) -> None:
    messages = []
    for trainer in pair(tmp_path, lambda: backend_of("graphs"), *samples(), optimizer=SGD(1e30)):
        with pytest.raises(DivergenceError) as caught:
            trainer.run(3)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_an_error_of_the_reading_thread_ends_training_after_the_last_whole_epoch(tmp_path: Path) -> None:
    images, labels = samples(np.float32)
    images[200, 3] = np.nan
    data = StreamedDataset(*saved(tmp_path, images, labels))
    trainer = trainer_on(backend_of("graphs"), data)
    before = bits(trainer)
    with pytest.raises(DataError, match=r"images.npy: images must be finite, but sample 200 holds NaN"):
        trainer.run(3)
    assert bits(trainer) == before


@pytest.mark.parametrize(
    ("way", "options"),
    [
        *((way, options) for way in WAYS for options in ({}, {"class_weight": "balanced"})),
        ("eager", {"augment": AUGMENT}),
    ],
)
def test_the_memory_that_is_announced_is_that_of_the_arrays(
    tmp_path: Path, way: str, options: dict[str, Any]
) -> None:
    distorts = "augment" in options
    trainer = trainer_on(backend_of(way), StreamedDataset(*saved(tmp_path, *pictures())), **options)
    trainer.run(1)
    step, batches = trainer._step, trainer.batches
    assert isinstance(batches, DeviceBatches)
    arrays = {id(array): array for array in (step.order, step.numbers, step.targets, step.losses, step.scores)}
    others = sum(array._data.nbytes for array in [*arrays.values(), step.sample_weights] if array is not None)
    assert batches.device_memory() == (batches.images._data.nbytes, others)
    assert len(batches.images) == 2 * 39 + 32
    held = trainer.model.backend.persistent._held.get(step)
    assert trainer.copied_bytes == (0 if held is None else held.values._data.nbytes)
    assert (held is None) == (way != "persistent")
    assert batches.memory()[0] == 39 * (FEATURES + 8 + 8 + 8 * distorts)


def limited_backend(room: int) -> Backend:
    """A fake GPU whose arrays of zeros and empty arrays fit in so many bytes."""
    backend, free = backend_of("eager"), [room]

    def within(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(shape: Any, dtype: Any) -> Any:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if size > free[0]:
                raise MemoryError
            free[0] -= size
            return make(shape, dtype=dtype)

        return made

    backend.xp.zeros, backend.xp.empty = within(backend.xp.zeros), within(backend.xp.empty)
    backend.memory = lambda: Memory(free[0], room)  # type: ignore[method-assign]
    return backend


@pytest.mark.parametrize(
    ("order", "room", "distorts"),
    [
        *((Blocks(*order), 100_000, distorts) for order in ((10, 30), (400, 2)) for distorts in (False, True)),
        (Blocks(10, 30), 100, False),
        (Blocks(13, 3), 91_500, True),  # room for the windows, but not for the numbers of the images
    ],
)
def test_a_device_without_room_is_one_sentence(tmp_path: Path, order: Blocks, room: int, distorts: bool) -> None:
    images = np.zeros((303, 28, 28), np.uint8)
    data = StreamedDataset(*saved(tmp_path, images, samples()[1]))

    def batches_of(order: Blocks) -> DeviceBatches:
        backend = limited_backend(room)
        batches = data.batches(32, backend, np.float32).in_windows(order)
        assert isinstance(batches, DeviceBatches)
        if distorts:
            batches.distort(AUGMENT.warp((28, 28), 0, backend))
        return batches

    with pytest.raises(DataError, match=r"two windows of .* on cuda:0, which has 0 MB free; ") as caught:
        batches_of(order)
    message = str(caught.value)
    assert "\n" not in message
    if room == 100:
        assert message.endswith("choose the device cpu")
        return
    given = dict(re.findall(r"--(block|window) (\d+)", message))
    fits = Blocks(int(given.get("block", order.rows)), int(given["window"]))
    assert room / 2 < sum(batches_of(fits).device_memory()) <= room


class Two(Group):
    size = 2


@pytest.mark.parametrize("options", [{"shards": 2}, {"group": Two()}])
def test_several_shards_are_refused_before_windows_are_made(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceBatches, "__init__", None)
    data = StreamedDataset(*saved(tmp_path, *samples()))
    with pytest.raises(DataError, match=r"of one shard, on one process, got 2 shards on cuda:0; choose the"):
        trainer_on(backend_of("eager"), data, **options)
    with pytest.raises(ValueError, match="shards is expected to be a whole number"):
        trainer_on(backend_of("eager"), data, shards=2.5)
    assert trainer_on(backend_of("eager"), data.in_memory(), shards=2).shards == 2


# -- What waits for what ------------------------------------------------------------------------------------------


def mistakes(trainer: Trainer, epochs: int) -> int:
    """Train, and count the copies that overwrite what steps read for which they have not waited."""
    backend, batches = trainer.model.backend, trainer.batches
    assert isinstance(batches, DeviceBatches)
    arrays = {
        name: getattr(batches, name)
        for name in ("images", "order", "targets", "numbers")
        if name != "numbers" or batches.warp is not None
    }
    happened, run_steps = backend.xp.order, backend.run_steps

    def recorded(step: object, numbers: range, rates: list[float]) -> None:
        for number in numbers:
            part = batches.slices[number]
            places = set(range(part.start, part.stop))
            rows = set(batches.order._data[part].tolist())
            happened.append({"images": rows, "order": places, "targets": places, "numbers": places})
        run_steps(step, numbers, rates)

    backend.run_steps = recorded
    trainer.run(epochs)
    backend.run_steps = run_steps

    def overwritten(upload: Upload) -> tuple[str, set[int]]:
        for name, array in arrays.items():
            whole = array._data
            first = (upload.target.ctypes.data - whole.ctypes.data) // whole.strides[0]
            if 0 <= first < len(whole):
                return name, set(range(first, first + len(upload.target)))
        raise AssertionError("a copy to something else")

    found = 0
    for index, upload in enumerate(happened):
        if isinstance(upload, Upload):
            name, rows = overwritten(upload)
            reads = [read for read in happened[upload.after : index] if isinstance(read, dict)]
            found += sum(bool(read[name] & rows) for read in reads)
    return found


ORDERS = [Blocks(13, 3), Blocks(5, 2), Blocks(16, 2), Blocks(101, 1), Blocks(13, 200)]


@pytest.mark.parametrize("batch_size", [16, 100])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_no_copy_overwrites_what_steps_still_read(tmp_path: Path, order: Blocks, batch_size: int) -> None:
    memory, streamed = pair(
        tmp_path, lambda: backend_of("eager"), *samples(), order=order, batch_size=batch_size, diagnostics=False
    )
    memory.run(2)
    assert mistakes(streamed, 2) == 0
    assert bits(streamed) == bits(memory)


def too_little_room(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    trainer.batches._room -= trainer.batches.batch_size + 1


def copies_that_wait_for_nothing(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HostStream, "wait_event", lambda self, event: None)


def waits_for_the_first_epoch_only(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    mark, calls = StreamUploads.mark, []

    def once(self: StreamUploads) -> None:
        if not calls:
            mark(self)
        calls.append(1)

    patch.setattr(StreamUploads, "mark", once)


def steps_that_do_not_wait(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    wait = HostEvent.synchronize
    patch.setattr(HostEvent, "synchronize", lambda self: wait(self) if self.reads else None)


def the_next_window_too_early(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    arrive = DeviceBatches._arrive

    def early(self: DeviceBatches) -> None:
        arrive(self)
        self._read_ahead()

    patch.setattr(DeviceBatches, "_arrive", early)


MISTAKES = [
    too_little_room,
    copies_that_wait_for_nothing,
    waits_for_the_first_epoch_only,
    steps_that_do_not_wait,
    the_next_window_too_early,
]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wait_that_is_missing_is_found(
    tmp_path: Path, mistake: Callable[[Trainer, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, streamed = pair(tmp_path, lambda: backend_of("eager"), *samples(), diagnostics=False)
    memory.run(2)
    with monkeypatch.context() as patch:
        mistake(streamed, patch)
        found = mistakes(streamed, 2)
    assert found or bits(streamed) != bits(memory)


# -- On a GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=WAYS)
def real(request: pytest.FixtureRequest) -> Iterator[Callable[[], Backend]]:
    """Backends of a real GPU whose steps run in one way."""
    if request.param == "graphs":
        gpu_backend()
        pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    return lambda: gpu_backend(execution=request.param)


SIZES: dict[str, dict[str, Any]] = {
    "default": {"order": Blocks(100, 7)},
    "float32": {"order": Blocks(100, 7), "dtype": np.float32},
    "large windows of float32": {"order": Blocks(1000, 4), "dtype": np.float32, "batch_size": 200},
    "small windows": {"order": Blocks(13, 3), "batch_size": 16},
    "batches larger than a window": {"order": Blocks(50, 1), "batch_size": 128},
    "large windows": {"order": Blocks(1000, 6), "optimizer": Adam(0.01)},
}


@lru_cache(2)
def many_samples(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """12,003 samples of 784 features, of which a window takes as long to copy as many steps."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 12_003)
    centres = rng.integers(90, 166, (10, 784))
    values = (centres[labels] + rng.integers(-90, 90, (12_003, 784))).astype(np.uint8)
    values = values.reshape(-1, 28, 28)
    return (values if dtype == np.uint8 else (values / 255).astype(np.float32)), labels


def on_the_card(
    folder: Path, backend: Callable[[], Backend], *, dtype: Any = np.uint8, **options: Any
) -> tuple[Trainer, Trainer]:
    try:
        trainers = pair(folder, backend, *many_samples(dtype), outputs=10, **options)
        _ = trainers[0].execution
    except ExecutionError as error:
        pytest.skip(str(error))
    return trainers


@pytest.mark.gpu
@pytest.mark.parametrize("name", SIZES)
def test_on_a_gpu_streamed_samples_give_the_bits_of_samples_in_memory(
    tmp_path: Path, name: str, real: Callable[[], Backend]
) -> None:
    same_bits(*on_the_card(tmp_path, real, validation=0.1, **SIZES[name]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("way", ["eager", "graphs"])
def test_on_a_gpu_streamed_images_are_changed_as_in_memory(tmp_path: Path, way: str, dtype: Any) -> None:
    if way == "graphs":
        gpu_backend()
        pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    options = {"order": Blocks(100, 7), "augment": AUGMENT, "preprocess": Preprocessing(width=14)}
    same_bits(*on_the_card(tmp_path, lambda: gpu_backend(execution=way), dtype=dtype, **options))


@pytest.mark.gpu
def test_on_a_gpu_a_streamed_run_is_resumed_and_repeated_alike(
    tmp_path: Path, real: Callable[[], Backend]
) -> None:
    options = {"order": Blocks(100, 7), "optimizer": Adam(), "validation": 0.1, "diagnostics": False}
    whole, first = on_the_card(tmp_path, real, **options)
    second = trainer_on(real(), first.train_set, 10, **options)
    resumed_alike(whole, first, second)
    repeated_alike(*(trainer_on(real(), data, 10, **options) for data in (whole.train_set, first.train_set)))


@pytest.mark.gpu
def test_on_a_gpu_many_networks_stream_the_same_bits(tmp_path: Path, real: Callable[[], Backend]) -> None:
    alone = on_the_card(tmp_path, real)[1]
    models = [MLP([784, 16, 10], device=real(), seed=seed) for seed in range(3)]
    options = {"epochs": 2, "order": Blocks(13, 3), "optimizer": SGD(0.1, momentum=0.9), "batch_size": 32}
    fit_many(models, alone.train_set, **options)
    alone.run(2)
    assert models[0].backend.to_numpy(models[0].parameters.data).tobytes() == bits(alone)[0]


@pytest.mark.gpu
def test_on_a_gpu_windows_without_room_are_one_sentence(tmp_path: Path) -> None:
    backend = gpu_backend()
    data = StreamedDataset(*saved(tmp_path, np.zeros((303, 2), np.uint8), np.arange(303) % 2))
    data.images.features = 2**34 // 4  # 4 GB a sample, of which none is read
    with pytest.raises(DataError, match=r"two windows of 3 blocks of 13 samples take .* on cuda:0, which has"):
        data.batches(8, backend, np.float32).in_windows(Blocks(13, 3))
