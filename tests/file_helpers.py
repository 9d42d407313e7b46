"""Helpers for tests of files: change networks and checkpoints, with a checksum that fits again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from gpumlp.nn.model_file import checksum

Change = Callable[[dict[str, np.ndarray], dict[str, str]], object]


def change_file(path: Path, change: Change, *, checked: bool = True) -> None:
    """Change tensors and metadata of a safetensors file; `checked` writes a checksum of the new content."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = safetensors.numpy.load_file(path)
    change(tensors, metadata)
    if checked and "format" in metadata:
        metadata["checksum"] = checksum(metadata, tensors)
    safetensors.numpy.save_file(tensors, path, metadata)


def change_group(group: str, **values: object) -> Change:
    """Set values in a group of state."""

    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        metadata[group] = json.dumps(json.loads(metadata[group]) | values)

    return change


def set_group(name: str, text: str) -> Change:
    """Replace the text of a group of state."""
    return lambda tensors, metadata: metadata.update({name: text})


def set_tensor(name: str, tensor: np.ndarray) -> Change:
    return lambda tensors, metadata: tensors.update({name: tensor})


def set_value(name: str, value: float) -> Change:
    """Set the first value of a tensor."""
    return lambda tensors, metadata: tensors[name].put(0, value)


def change_header(path: Path, change: Callable[[dict], object]) -> None:
    """Change the header of a safetensors file as it stands, without a new checksum."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def set_history(folder: Path, lines: list[dict]) -> None:
    """Give a run other epochs, in its history and in its checkpoint."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (folder / "history.jsonl").write_bytes(content)
    part = {"epochs": len(lines), "length": len(content), "checksum": hashlib.sha256(content).hexdigest()}
    change_file(folder / "checkpoint.safetensors", change_group("history", **part))


# Options that gpumlp 0.2 lacks.
NEW_OPTIONS = (
    *(
        "task",
        "dropout",
        "input_dropout",
        "weight_decay",
        "clip_norm",
        "max_norm",
        "label_smoothing",
        "class_weight",
    ),
    *("schedule_steps", "warmup", "monitor", "ema"),
)


def as_version_0_2(folder: Path) -> None:
    """Give the checkpoints of a run the format of gpumlp 0.2, whose header holds the history."""
    lines = (folder / "history.jsonl").read_text().splitlines()

    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        groups = {name: json.loads(text) for name, text in metadata.items() if name not in ("format", "checksum")}
        for name in NEW_OPTIONS:
            del groups["config"][name]
        del groups["data"]["task"], groups["model"]["layers"], groups["execution"]["multiprocessors"]
        state = {
            "sizes": groups["model"]["sizes"],
            "dataset": groups["data"],
            "steps": groups["optimizer"]["steps"],
            "random_state": groups["random"],
            "execution": groups["execution"],
            "history": [json.loads(line) for line in lines[: groups["history"]["epochs"]]],
        }
        metadata.clear()
        metadata["format"], metadata["state"] = "gpumlp-checkpoint-1", json.dumps(state)
        metadata["model"], metadata["config"] = json.dumps(groups["model"]), json.dumps(groups["config"])

    for file in (folder / "checkpoint.safetensors", folder / "best" / "checkpoint.safetensors"):
        if file.exists():
            change_file(file, change, checked=False)
