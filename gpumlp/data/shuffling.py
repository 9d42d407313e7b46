"""Shuffling files of samples once, in bounded memory."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..files import make_folder, new_folder_path, replace
from ..words import as_product, listed
from .labels import DataError
from .rows import FileRows, read_targets

_BUCKET = 2**26  # bytes of samples in a bucket
_MAX_BUCKETS = 256  # files that are open at once
_PIECE = 2**23
_TEMPORARY = ".gpumlp-"


def shuffle_files(
    images: str | os.PathLike[str],
    targets: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda line: None,
) -> tuple[Path, Path]:
    """Write samples and their targets in random order, every order with the same probability.

    Each sample is written into one of some buckets, drawn at random; then each bucket is shuffled in memory. Both
    passes read and write from the beginning to the end. Needs room for the samples twice on the disk, and memory
    for a bucket, 64 MB, or a 256th of the samples if that is more, and about 30 bytes for each sample.

    Args:
        images: of the samples, see `StreamedDataset`.
        targets: their targets; None with `label_column`.
        label_column: see `StreamedDataset`.
        out: a folder that is new or empty, for ``images.npy`` and ``labels.npy``.
        seed: of the order.
        progress: called with a line about what is done.

    Returns:
        The two paths.

    Raises:
        PathError: `out` is the name of a file.
        DataError: a file cannot be used, or `out` is not an empty folder.
        OSError: the disk is full, ...; nothing is left in `out`.
    """
    source, folder = FileRows(images, label_column), new_folder_path(out)
    labels = read_targets(images if targets is None else targets, label_column)
    if len(labels) != len(source):
        raise DataError(f"{targets}: expected {len(source):,} targets, one for each sample, got {len(labels):,}")
    _require_empty(folder)
    new = not folder.exists()
    make_folder(folder)
    results = folder / "images.npy", folder / "labels.npy"
    try:
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
            made = [Path(temporary, path.name) for path in results]
            order = _Buckets(source, Path(temporary), seed, progress).write(made[0])
            np.save(made[1], labels[order])
            for written, path in zip(made, results, strict=True):
                replace(written, path)
    except BaseException as error:
        for path in results:
            path.unlink(missing_ok=True)
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):  # a failed write does not say where
            error.filename = error.filename or str(folder)
        raise
    return results


def _require_empty(folder: Path) -> None:
    """Raise DataError if something is in a folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if not names:
        return
    found, advice = "files there", "choose another"
    if all(name.startswith(_TEMPORARY) for name in names):
        found = f"{listed(names)} there, of a shuffle that was ended, or is still running"
        advice = f"if none is, delete it: rm -r {shlex.join(str(folder / name) for name in names)}"
    raise DataError(f"{folder}: expected a new or an empty folder, found {found}; {advice}")


class _Buckets:
    """Files of random samples each."""

    def __init__(self, source: FileRows, folder: Path, seed: int, progress: Callable[[str], object]) -> None:
        self._source, self._folder, self._progress = source, folder, progress
        self._rng = np.random.default_rng(seed)
        self._count = min(_MAX_BUCKETS, -(-source.nbytes // _BUCKET))
        # Drawn for all samples at once, so that a bucket's are known: a byte each.
        self._bucket_of = self._rng.integers(self._count, size=len(source), dtype=np.uint8)

    def write(self, path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Write the samples in random order as .npy; returns the order, ``(samples,)``."""
        source = self._source
        self._progress(
            f"shuffling {len(source):,} samples of {as_product(source.shape[1:])} by way of {self._count} parts"
        )
        self._distribute()
        order = []
        with path.open("wb") as file:
            header = {"descr": source.dtype.str, "fortran_order": False, "shape": source.shape}
            np.lib.format.write_array_header_2_0(file, header)
            for number in range(self._count):
                places = self._rng.permutation(np.count_nonzero(self._bucket_of == number))
                bucket = self._folder / f"bucket-{number}"
                values = np.fromfile(bucket, source.dtype).reshape(-1, source.features)
                bucket.unlink()
                step = max(1, _PIECE // (source.features * source.dtype.itemsize))
                for start in range(0, len(values), step):
                    file.write(values[places[start : start + step]].tobytes())
                order.append(np.flatnonzero(self._bucket_of == number)[places])
                del values
        return np.concatenate(order)

    def _distribute(self) -> None:
        source = self._source
        files = [open(self._folder / f"bucket-{number}", "wb") for number in range(self._count)]  # noqa: SIM115
        try:
            step = max(1, _PIECE // (source.features * source.dtype.itemsize))
            for start in range(0, len(source), step):
                rows = np.arange(start, min(start + step, len(source)))
                values = np.empty((len(rows), source.features), source.dtype)
                source.read(rows, values)
                buckets = self._bucket_of[rows]
                for number in np.unique(buckets).tolist():
                    files[number].write(values[buckets == number].tobytes())
        finally:
            for file in files:
                file.close()
