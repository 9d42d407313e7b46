"""What a network trains and is validated on: batches on its device, held-out samples, weights, and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import numpy as np

from ..backends import HostArray
from ..data import DataError, Dataset, Distortion
from ..data.blocks import BlockOrder, Blocks, ShardedOrder
from ..data.dataset import ArrayBatches, relative_weights
from ..data.labels import class_weights, stratified_split
from ..data.stream import StreamedBatches
from ..nn.hyperparameters import whole
from ..nn.network import CHUNK, MLP
from ..nn.preprocessing import Preprocessing
from ..nn.samples import Inputs, check_data, learned_names, training_targets
from ..words import shown

Validation: TypeAlias = Dataset | tuple[Any, Any] | HostArray | Sequence[int] | float | None
Order: TypeAlias = Literal["shuffle", "blocks"] | Blocks | None
ClassWeight: TypeAlias = Literal["balanced"] | Mapping[Any, float] | None

# Independent random streams of one seed; the network's own initial weights use the seed as it is.
ORDER_STREAM, SPLIT_STREAM, WATCH_STREAM = 1, 2, 3


# For the orders of a GPU's epochs: NumPy shuffles without the interpreter's lock.
_THREADS = ThreadPoolExecutor(thread_name_prefix="gpumlp-order")


class EpochOrders:
    """Random orders of the samples, one an epoch, drawn on the host, so that they are the same on every device.

    The next one can be drawn by a thread while a GPU trains, which would otherwise wait for it.

    Args:
        rows: ``(samples,)``, the rows to order.
        rng: used for nothing else.
    """

    def __init__(self, rows: HostArray, rng: np.random.Generator) -> None:
        self._rows, self._rng = rows, rng
        self._streams = 1  # of blocks, of which the orders are made
        self._ahead: Future[Any] | None = None
        self._state_before: dict[str, Any] = {}

    def _next(self) -> Any:
        return self._rng.permutation(self._rows)

    def draw(self) -> Any:
        """The next epoch's order, for `reordering` of the batches: ``(samples,)`` rows, or an order by blocks."""
        ahead, self._ahead = self._ahead, None
        return self._next() if ahead is None else ahead.result()

    def draw_ahead(self) -> None:
        """Let a thread draw the next order; it is the same one, and `state` stays the same."""
        if self._ahead is None:
            self._state_before = self.state
            self._ahead = _THREADS.submit(self._next)

    @property
    def state(self) -> dict[str, Any]:
        """State of the generator before the next `draw`, as JSON can hold it; set it to continue from there.

        Setting it raises ValueError if it is that of orders of another number of streams.
        """
        streams = {"streams": self._streams} if self._streams > 1 else {}
        return self._state_before if self._ahead is not None else {**self._rng.bit_generator.state, **streams}

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        found = value.get("streams", 1)
        if found != self._streams:
            raise ValueError(
                f"expected an order of the samples in {self._streams} streams, got {found}, perhaps of an earlier "
                "version; train again from the start"
            )
        if self._ahead is not None:
            self._ahead.result()  # the thread changes the state until then
            self._ahead = None
        self._rng.bit_generator.state = value


class BlockOrders(EpochOrders):
    """Orders by blocks, see `Blocks`.

    Args:
        rows, rng: as for `EpochOrders`.
        blocks: of the order.
        batch_size, shards: of the batches, see `ShardedOrder`.
        streamed: whether the batches read a window of an order at a time; otherwise orders are arrays of rows.
    """

    def __init__(
        self,
        rows: HostArray,
        rng: np.random.Generator,
        blocks: Blocks,
        *,
        batch_size: int,
        shards: int,
        streamed: bool,
    ) -> None:
        super().__init__(rows, rng)
        self._blocks, self._batch_size, self._streams, self._streamed = blocks, batch_size, shards, streamed

    def _next(self) -> Any:
        order: BlockOrder | ShardedOrder
        if self._streams == 1:
            order = BlockOrder(self._rows, self._blocks, self._rng)
        else:
            order = ShardedOrder(self._rows, self._blocks, self._rng, self._batch_size, self._streams)
        return order if self._streamed else order.rows()


def checked_order(order: Order, *, streamed: bool) -> Blocks | None:
    """The blocks of an order; None for a full shuffle, the default for samples in memory.

    Raises:
        ValueError: `order` is something else, or a full shuffle of samples that are streamed.
    """
    if isinstance(order, Blocks):
        return order
    if order not in (None, "shuffle", "blocks"):
        raise ValueError(
            f"order is expected to be 'shuffle', 'blocks' or Blocks(rows, window), got {shown(order)}"
        )
    if order == "shuffle" and streamed:
        raise ValueError("order is expected to be 'blocks' for samples that are streamed, got 'shuffle'")
    return Blocks() if order == "blocks" or streamed else None


def make_batches(
    model: MLP,
    train: Dataset,
    validation: Validation,
    batch_size: int | Literal["full"],
    seed: int,
    pixels: bool | None,
    class_weight: ClassWeight,
    rows: HostArray | None = None,
    blocks: Blocks | None = None,
    shards: int = 1,
    augment: Distortion | None = None,
    preprocess: Preprocessing | None = None,
) -> tuple[Inputs, ArrayBatches, ArrayBatches | None]:
    """The network's new `inputs`, and the batches to train on and those to validate on, on its device.

    Arguments are those of `Trainer`, and the blocks of the order.

    Raises:
        ValueError: the data does not fit the network, a value is out of range, or samples cannot be streamed to
            the device, see `StreamedBatches.in_windows`.
        TypeError: `validation` is something else.
    """
    names, backend = learned_names(model, train), model.backend
    used = np.arange(len(train)) if rows is None else checked_rows("rows", rows, len(train))
    train_rows, held_out = used, None
    if isinstance(validation, list | range) or getattr(validation, "ndim", None):
        held_out = checked_rows("validation", validation, len(train))
        train_rows = used[~np.isin(used, held_out)]
        if not len(train_rows):
            raise ValueError("validation is expected to leave some training samples, but all rows are among it")
        used = np.concatenate((train_rows, held_out))
    elif validation is not None and not isinstance(validation, Dataset):
        train_rows, held_out = (used[part] for part in _split(train, used, validation, seed))
    own_weights = _of_rows(train.weights, None if rows is None else used)
    full = isinstance(batch_size, str) and batch_size == "full"
    size = len(train_rows) if full else whole("batch_size (if not 'full')", batch_size, 1)
    weights = own_weights
    if class_weight is not None:
        weights = _class_weighted(train, train_rows, class_weight)
        weights = _of_rows(weights, None if rows is None else used)
    _require_weight("training", weights, train_rows, model.dtype)

    if preprocess is None and model.inputs is not None:
        preprocess = model.inputs.preprocessing

    def on_device(
        data: Dataset, inputs: Inputs | None, size: int, weights: HostArray | None, rows: HostArray | None = None
    ) -> ArrayBatches:
        divided, targets = check_data(model, inputs, data, pixels), training_targets(model, data, names)
        if preprocess is not None:
            preprocess.check(data.feature_shape, data)
        return data.batches(
            size,
            backend,
            model.dtype,
            rows,
            targets=targets,
            weights=weights,
            pixels=divided,
            preprocessing=preprocess,
        )

    with backend.activate():
        batches = on_device(train, model.inputs, size, weights, train_rows)
        if isinstance(batches, StreamedBatches) and blocks is not None:
            batches = batches.in_windows(blocks, shards)
        if augment is not None:
            batches.distort(augment.warp(train.feature_shape, seed, backend))
        inputs = _inputs_after(model, train, preprocess, divided=batches.pixels)
        if isinstance(validation, Dataset):
            return inputs, batches, on_device(validation, inputs, CHUNK, validation.weights)
        if held_out is None or not len(held_out):
            return inputs, batches, None
        _require_weight("held-out", own_weights, held_out, model.dtype)
        held_out_batches = batches.select(held_out, CHUNK)
        if class_weight is not None:
            own = None if own_weights is None else relative_weights(own_weights, model.dtype)
            held_out_batches.use_weights(own)
        return inputs, batches, held_out_batches


def as_validation(train: Dataset, validation: Any) -> Any:
    """`validation` of `fit`; a pair of samples and targets as a data set.

    Raises:
        DataError: a pair is something else.
    """
    if not isinstance(validation, tuple) or len(validation) != 2:
        return validation
    try:
        return train.part(*validation)
    except DataError as error:
        raise DataError(
            f"validation: a pair is expected to be (samples, targets), and row numbers one array: {error}"
        ) from error


def checked_rows(name: str, rows: Any, samples: int) -> HostArray:
    """Row numbers of a data set of this many samples, as int64.

    Raises:
        ValueError: they are not one or more whole numbers from 0 to ``samples - 1``.
    """
    try:
        found = np.asarray(rows)
    except ValueError as error:  # a list with arrays of different shapes
        raise ValueError(f"{name} is expected to be one array of row numbers, got {shown(rows)}") from error
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        hint = "; numpy.flatnonzero makes them from True and False" if found.dtype.kind == "b" else ""
        raise ValueError(
            f"{name} is expected to be an array of one or more row numbers, got shape {found.shape} of "
            f"{found.dtype}{hint}"
        )
    if not 0 <= found.min() <= found.max() < samples:
        raise ValueError(
            f"{name} is expected to hold row numbers from 0 to {samples - 1:,}, got {found.min()} to {found.max()}"
        )
    return found.astype(np.int64)


def trained_rows(train: Dataset, validation: float, seed: int) -> HostArray:
    """The rows of the samples that a network is trained on, where a number or a fraction is held out."""
    return _split(train, np.arange(len(train)), validation, seed)[0]


def _of_rows(weights: HostArray | None, rows: HostArray | None) -> HostArray | None:
    """The weights, 0 outside of these rows, so that the largest is one of theirs; None for all rows."""
    if weights is None or rows is None:
        return weights
    result = np.zeros_like(weights)
    result[rows] = weights[rows]
    return result


def _split(train: Dataset, rows: HostArray, validation: object, seed: int) -> tuple[HostArray, HostArray]:
    """Which of these rows to train on, and which to validate on, as places in `rows`.

    Args:
        train: the training samples.
        rows: which of them to split.
        validation: how many to hold out, or which fraction of them, which is stratified for classes.
        seed: of the draw.

    Raises:
        ValueError: it is out of range.
        TypeError: it is neither a number nor a data set.
    """
    rng = np.random.default_rng([seed, SPLIT_STREAM])
    if not isinstance(validation, int | float | np.number) or isinstance(validation, bool):
        raise TypeError(
            "validation is expected to be a Dataset, (samples, targets), or the number, the fraction or the row "
            f"numbers of training samples to hold out, got {shown(validation)}"
        )
    samples, held_out = len(rows), held_out_samples(validation, len(rows))
    if 0 < validation < 1 and train.task == "classes":
        return stratified_split(train.targets[rows], held_out, rng)
    order = rng.permutation(samples)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def held_out_samples(validation: Any, samples: int) -> int:
    """How many of the training samples are held out.

    Args:
        validation: their number, or their fraction.
        samples: number of training samples.

    Raises:
        ValueError: it is out of range.
    """
    fraction = 0 < validation < 1
    name = "validation (if not a fraction below 1)"
    held_out: int = round(validation * samples) if fraction else whole(name, validation, 0)
    if not int(fraction) <= held_out < samples:
        words = f"{validation:g} of them, which is {held_out:,}" if fraction else f"{held_out:,}"
        raise ValueError(
            f"validation is expected to leave some of the {samples:,} training samples on each side: a number "
            f"from 0 to {samples - 1:,}, or a fraction; got {words}"
        )
    return held_out


def _class_weighted(train: Dataset, rows: HostArray, class_weight: str | Mapping[Any, float]) -> HostArray:
    """The weights of the training samples, with those of their classes, ``(n,)``.

    Raises:
        ValueError: the targets are not classes, or the weights are not as `class_weights` expects.
    """
    if train.task != "classes":
        raise ValueError(
            f"class_weight is expected only with classes, but {train!r} has {train.task}; use weights"
        )
    factors = class_weights(train.targets[rows], train.classes, class_weight, train.class_names)
    weights: HostArray = factors[train.targets]
    if train.weights is not None:
        weights = weights * train.weights
    return weights


def _require_weight(what: str, weights: HostArray | None, rows: HostArray, dtype: np.dtype[Any]) -> None:
    """Raise ValueError if all of these rows, which `what` names, have the weight 0 beside the largest of all."""
    if weights is not None and not (weights[rows].any() and relative_weights(weights, dtype)[rows].any()):
        tiny = f" in {dtype.name} beside the largest weight" if weights[rows].any() else ""
        raise ValueError(
            f"class_weight and the sample weights are expected to leave some weight, but all {len(rows):,} {what} "
            f"samples have 0{tiny}; give larger weights, or hold out others"
        )


def _inputs_after(model: MLP, train: Dataset, preprocess: Preprocessing | None, *, divided: bool) -> Inputs:
    """The description of what a network is trained on."""
    before, dtype = model.inputs, train.images.dtype.name
    if divided or (before is not None and before.pixels):
        dtype = "uint8"  # other numbers from 0 to 1 have the same scale
    elif dtype == "uint8" or (before is not None and before.dtype == "any"):
        dtype = "any"  # uint8 that is used as it is
    return Inputs(train.feature_shape, dtype, train.name, preprocess)
