"""Mini-batches: where the training loop gets its samples from."""

from __future__ import annotations

import numpy as np

from ..backends import Array, Backend, HostArray


class ArrayBatches:
    """Mini-batches of arrays that lie whole on the device; ``Dataset.batches`` makes them.

    Pixels stay uint8 there, a quarter of the memory and of the traffic, and are scaled as a batch is
    gathered. Loops know only `slices`, `reorder` and `gather`, so that batches may come from elsewhere.

    Args:
        images: ``(n, features)`` on the device, uint8 or the network's dtype.
        labels: ``(n,)`` int64 class numbers, or other targets ``(n, outputs)``, on the device.
        rows: ``(samples,)`` int64, which of the n samples to use.
        batch_size: samples in a batch; the last batch holds what is left.
        backend: of the device.
        weights: ``(n,)`` on the host, of the network's dtype, 0 or more: how much each of the n samples counts;
            None for all alike.

    Attributes:
        rows: ``(samples,)`` int64, on the host, as they were given.
        images: ``(n, features)``, as they were given.
        order: ``(samples,)`` int64 on the device, this epoch's order of the rows.
        targets: ``(samples, ...)`` on the device, the labels or other targets in this epoch's order.
        samples: how many samples an epoch has.
        slices: the batches, as parts of an epoch's order.
        pixels: are the images uint8?
        weights: ``(samples,)`` on the device, in this epoch's order, with a mean of 1 in each batch (or all 0 in
            one whose samples have no weight), so that the mean loss is the weighted mean; None without weights.
        batch_weights: the sum of the weights of each batch as they were given; the number of its samples without.
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        rows: HostArray,
        batch_size: int,
        backend: Backend,
        weights: HostArray | None = None,
    ) -> None:
        self.samples = len(rows)
        self.batch_size = min(batch_size, self.samples)
        self.slices = [
            slice(start, min(start + self.batch_size, self.samples))
            for start in range(0, self.samples, self.batch_size)
        ]
        self.pixels = bool(images.dtype == np.uint8)
        self.images, self._labels, self._backend = images, labels, backend
        self.rows = rows
        # Overwritten with each epoch's order, never exchanged: a captured graph knows them by their addresses.
        self.order: Array = backend.asarray(rows.copy())
        self.targets: Array = backend.xp.take(labels, self.order, axis=0)
        self.weights: Array | None = None
        self.batch_weights = [float(batch.stop - batch.start) for batch in self.slices]
        self._weights = weights
        if weights is not None:
            self.weights = backend.asarray(self._weights_of(rows))

    def select(self, rows: HostArray, batch_size: int) -> ArrayBatches:
        """Batches of other rows of the same arrays, which are shared."""
        return ArrayBatches(self.images, self._labels, rows, batch_size, self._backend, self._weights)

    def draw(self, samples: int, rng: np.random.Generator) -> ArrayBatches:
        """One batch of some of these samples, on the same arrays."""
        return self.select(np.sort(rng.permutation(self.rows)[:samples]), samples)

    def reorder(self, rows: HostArray) -> None:
        """Take the samples in this order: ``(samples,)`` int64, some permutation of the rows there are."""
        xp, backend = self._backend.xp, self._backend
        xp.copyto(self.order, backend.asarray(rows))
        xp.take(self._labels, self.order, axis=0, out=self.targets)
        if self.weights is not None:
            xp.copyto(self.weights, backend.asarray(self._weights_of(rows)))

    def _weights_of(self, rows: HostArray) -> HostArray:
        """The weights of an order, scaled in each batch; notes the sums of the batches."""
        assert self._weights is not None
        ordered = self._weights[rows].astype(np.float64)
        for index, batch in enumerate(self.slices):
            total = float(ordered[batch].sum())
            self.batch_weights[index] = total
            if total > 0:
                ordered[batch] *= (batch.stop - batch.start) / total
        return ordered.astype(self._weights.dtype)

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        """Write the samples of a batch into ``out``.

        Args:
            batch: one of `slices`.
            staging: ``(batch, features)`` uint8, overwritten; None where the images are not pixels.
            out: ``(batch, features)``, overwritten.

        Returns:
            The labels or other targets of the batch.
        """
        self._backend.gather(self.images, self.order[batch], staging, out)
        return self.targets[batch]
