"""Mini-batches: where the training loop gets its samples from."""

from __future__ import annotations

import numpy as np

from ..backends import Array, Backend, HostArray


class ArrayBatches:
    """Mini-batches of arrays that lie whole on the device; ``Dataset.batches`` makes them.

    Pixels stay uint8 there, a quarter of the memory and of the traffic, and are scaled as a batch is
    gathered. Loops know only `slices`, `shuffle` and `gather`, so that batches may come from elsewhere.

    Args:
        images: ``(n, features)`` on the device, uint8 or the network's dtype.
        labels: ``(n,)`` int64, on the device.
        rows: ``(samples,)`` int64, which of the n samples to use.
        batch_size: samples in a batch; the last batch holds what is left.
        backend: of the device.

    Attributes:
        samples: how many samples an epoch has.
        slices: the batches, as parts of an epoch's order.
        pixels: are the images uint8?
    """

    def __init__(self, images: Array, labels: Array, rows: HostArray, batch_size: int, backend: Backend) -> None:
        self.samples = len(rows)
        self.batch_size = min(batch_size, self.samples)
        self.slices = [
            slice(start, min(start + self.batch_size, self.samples))
            for start in range(0, self.samples, self.batch_size)
        ]
        self.pixels = bool(images.dtype == np.uint8)
        self._images, self._labels, self._backend = images, labels, backend
        self._rows = rows
        # Overwritten with each epoch's order, never exchanged: a captured graph knows them by their addresses.
        self._order: Array = backend.asarray(rows.copy())
        self._ordered_labels: Array = backend.xp.take(labels, self._order, axis=0)

    def select(self, rows: HostArray, batch_size: int) -> ArrayBatches:
        """Batches of other rows of the same arrays, which are shared."""
        return ArrayBatches(self._images, self._labels, rows, batch_size, self._backend)

    def draw(self, samples: int, rng: np.random.Generator) -> ArrayBatches:
        """One batch of some of these samples, on the same arrays."""
        return self.select(np.sort(rng.permutation(self._rows)[:samples]), samples)

    def shuffle(self, rng: np.random.Generator) -> None:
        """Draw the order of the next epoch, on the host, so that it is the same for every device."""
        xp = self._backend.xp
        xp.copyto(self._order, self._backend.asarray(rng.permutation(self._rows)))
        xp.take(self._labels, self._order, axis=0, out=self._ordered_labels)

    def gather(self, batch: slice, staging: Array | None, out: Array) -> Array:
        """Write the samples of a batch into ``out``.

        Args:
            batch: one of `slices`.
            staging: ``(batch, features)`` uint8, overwritten; None where the images are not pixels.
            out: ``(batch, features)``, overwritten.

        Returns:
            The labels of the batch, ``(batch,)`` int64.
        """
        self._backend.gather(self._images, self._order[batch], staging, out)
        return self._ordered_labels[batch]

    def arrays(self) -> list[Array]:
        """The arrays that `gather` reads: the same ones in every epoch."""
        return [self._images, self._order, self._ordered_labels]
