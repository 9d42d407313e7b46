"""Helpers for tests of gpumlp.data: IDX files, a small MNIST, a local mirror, the order of batches."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from gpumlp import Dataset
from gpumlp.data.dataset import ArrayBatches

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)


IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    kind = array.dtype.str[1:]
    header = struct.pack(f">HBB{array.ndim}I", 0, IDX_TYPES[kind], array.ndim, *array.shape)
    return header + array.astype(f">{kind}").tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def small_mnist(train: int = 30, test: int = 20, side: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays under the names of MNIST's files."""
    rng = np.random.default_rng(seed)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (train, side, side), dtype=np.uint8),
        TRAIN_LABELS: (np.arange(train) % 10).astype(np.uint8),
        TEST_IMAGES: rng.integers(0, 256, (test, side, side), dtype=np.uint8),
        TEST_LABELS: (np.arange(test) % 10).astype(np.uint8),
    }


def blobs() -> Dataset:
    """300 samples of 20 pixels in 4 classes that a small network can learn."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    centres = rng.integers(0, 256, (4, 20))
    images = np.clip(centres[labels] + rng.normal(0, 25, (300, 20)), 0, 255).astype(np.uint8)
    return Dataset(images, labels, classes=4, name="blobs")


def write_files(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write ``arrays`` as IDX files, gzipped if the name ends in .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return folder


class Mirror:
    """A local HTTP server; ``requests`` lists its requests as "GET name"."""

    def __init__(self, port: int, requests: list[str]) -> None:
        self.address = f"http://127.0.0.1:{port}/"
        self.host = f"127.0.0.1:{port}"
        self.requests = requests

    def downloads(self) -> list[str]:
        return [line.removeprefix("GET ") for line in self.requests if line.startswith("GET ")]


@contextlib.contextmanager
def mirror(answer: Callable[[str], tuple[int, bytes]], *, cut_to: int | None = None) -> Iterator[Mirror]:
    """Serve ``answer(name) -> (status, content)``; transfers end after ``cut_to`` bytes."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_content=False)

        def do_GET(self) -> None:
            self.answer(with_content=True)

        def answer(self, *, with_content: bool) -> None:
            name = self.path.lstrip("/")
            asked.append(f"{self.command} {name}")
            status, content = answer(name)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_content:
                self.wfile.write(content[:cut_to])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Mirror(server.server_address[1], asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve_folder(folder: Path) -> contextlib.AbstractContextManager[Mirror]:
    def answer(name: str) -> tuple[int, bytes]:
        file = folder / name
        return (200, file.read_bytes()) if file.is_file() else (404, b"not found")

    return mirror(answer)


def reorder(batches: ArrayBatches, rows: np.ndarray) -> None:
    """Begin an epoch in this order, as training does."""
    batches._backend.copy(batches.reordering(rows))
