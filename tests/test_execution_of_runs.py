"""The execution of a run's steps: selected, shown, recorded, and used again on resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp.backends import Execution, ExecutionError
from gpumlp.backends.numpy import NumpyBackend
from gpumlp.backends.openblas import numpy_openblas
from gpumlp.training.config import Config, ConfigError
from gpumlp.training.run import Run
from gpumlp.training.session import resume_config, train
from tests.command_helpers import assert_same_run, run
from tests.file_helpers import as_version_0_2, change_file


class FakeGPU(NumpyBackend):
    """A fake GPU with executions that compute with NumPy."""

    def __init__(self, execution: str, possible: tuple[str, ...], multiprocessors: int) -> None:
        super().__init__()
        self.name = "cuda:0"
        self.asked, self.possible = execution, possible
        self.multiprocessors = multiprocessors

    def execution(self, step: Any) -> Execution:
        if self.asked not in ("auto", *self.possible):
            raise ExecutionError(f"{self.asked} needs what is missing", "take another way")
        name = self.possible[0] if self.asked == "auto" else self.asked
        return Execution(name, "as tested", multiprocessors=self.multiprocessors if name == "persistent" else None)


Devices = Callable[..., None]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Simulate a GPU that supports only some executions."""

    def make(*possible: str, multiprocessors: int = 8) -> None:
        planned = multiprocessors

        def get_backend(device: str, *, execution: str, multiprocessors: int | None, **_: str) -> NumpyBackend:
            return NumpyBackend() if device == "cpu" else FakeGPU(execution, possible, multiprocessors or planned)

        monkeypatch.setattr("gpumlp.training.session.get_backend", get_backend)

    return make


def start(out: Path, **options: object) -> None:
    fixed = {"dataset": "digits", "device": "cuda", "quiet": True, "hidden": (8,), "epochs": 1}
    train(Config(**{**fixed, "out": str(out), **options}))


def resume(out: Path, **options: object) -> None:
    train(Config(**{**vars(resume_config(str(out))), "epochs": 2, **options}))


def executions(out: Path) -> tuple[str, str]:
    """The execution in the metrics and in the checkpoint."""
    saved = Run(out)
    assert saved.metrics is not None
    return saved.metrics["execution"], saved.checkpoint.execution["name"]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("execution: ")]


def test_the_execution_is_shown_and_recorded(tmp_path: Path, devices: Devices, capsys) -> None:
    devices("graphs", "eager")
    start(tmp_path / "run", quiet=False)
    assert said(capsys) == [f"execution: {Execution('graphs', 'as tested')}"]
    assert executions(tmp_path / "run") == ("graphs", "graphs")
    metrics = Run(tmp_path / "run").metrics
    assert metrics is not None
    assert (metrics["execution_reason"], metrics["threads"]) == ("as tested", None)


def test_on_the_cpu_the_option_has_no_effect_and_threads_are_recorded(tmp_path: Path, devices: Devices) -> None:
    devices()
    for execution in ("auto", "persistent"):
        start(tmp_path / execution, device="cpu", execution=execution)
        assert executions(tmp_path / execution) == ("eager", "eager")
        threads = Run(tmp_path / execution).checkpoint.execution["threads"]
        assert threads is None if numpy_openblas() is None else threads >= 1
    assert_same_run(tmp_path / "auto", tmp_path / "persistent")


def test_an_unsupported_execution_is_an_error_before_a_folder_is_created(
    tmp_path: Path, devices: Devices, capsys
) -> None:
    devices("eager")
    words = ("--dataset", "digits", "--device", "cuda", "--execution", "graphs", "--out", tmp_path / "run")
    assert run("train", *words) == 2
    assert "graphs needs what is missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_execution(tmp_path: Path, devices: Devices, capsys) -> None:
    devices("graphs", "eager")
    start(tmp_path / "run")
    devices("persistent", "graphs", "eager")  # the selection of "auto" now
    resume(tmp_path / "run")
    assert executions(tmp_path / "run") == ("graphs", "graphs")
    assert said(capsys) == [f"execution: {Execution('graphs', 'as tested')}"]


def test_a_resumed_run_whose_execution_is_unsupported_uses_the_next_one_and_reports_it(
    tmp_path: Path, devices: Devices, capsys
) -> None:
    devices("persistent")
    start(tmp_path / "run")
    devices("graphs", "eager")
    resume(tmp_path / "run")
    assert executions(tmp_path / "run") == ("graphs", "graphs")
    assert said(capsys)[0] == (
        "execution: graphs instead of persistent (persistent needs what is missing): results differ by rounding"
    )


@pytest.mark.parametrize(
    ("was", "now", "bits"),
    [
        ("graphs", "eager", "the results are the same"),
        ("graphs", "persistent", "results differ by rounding"),
        ("persistent", "eager", "results differ by rounding"),
    ],
)
def test_the_execution_can_be_changed_on_resume(
    tmp_path: Path, devices: Devices, capsys, was: str, now: str, bits: str
) -> None:
    devices("persistent", "graphs", "eager")
    start(tmp_path / "run", execution=was)
    resume(tmp_path / "run", execution=now)
    assert executions(tmp_path / "run") == (now, now)
    assert said(capsys)[0] == f"execution: {now} instead of {was}: {bits}"
    devices("eager")
    with pytest.raises(ExecutionError):
        resume(tmp_path / "run", epochs=3, execution="graphs")


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("cuda", "cpu", "execution: eager on cpu instead of graphs on cuda:0: results differ by rounding"),
        ("cpu", "cuda", "execution: graphs on cuda:0 instead of eager on cpu: results differ by rounding"),
    ],
)
def test_a_run_resumed_on_another_device_uses_that_devices_execution(
    tmp_path: Path, devices: Devices, capsys, first: str, second: str, text: str
) -> None:
    devices("graphs", "eager")
    start(tmp_path / "run", device=first)
    resume(tmp_path / "run", device=second)
    assert said(capsys)[0] == text


def test_a_resumed_run_keeps_its_multiprocessors(tmp_path: Path, devices: Devices, capsys) -> None:
    devices("persistent")
    start(tmp_path / "run", execution="persistent", multiprocessors=5)
    start(tmp_path / "other", execution="persistent")
    assert [Run(tmp_path / name).metrics["multiprocessors"] for name in ("run", "other")] == [5, 8]
    devices("graphs", "persistent", multiprocessors=3)  # the selection of "auto" and the number by the plan now
    for name, count in (("run", 5), ("other", 8)):
        resume(tmp_path / name)
        assert executions(tmp_path / name) == ("persistent", "persistent")
        assert Run(tmp_path / name).checkpoint.execution["multiprocessors"] == count
    assert said(capsys) == [f"execution: {Execution('persistent', 'as tested')}"] * 2
    resume(tmp_path / "run", epochs=3, multiprocessors=4)
    assert "multiprocessors: 4 instead of 5: results differ by rounding" in capsys.readouterr().out
    resume(tmp_path / "run", epochs=4, execution="graphs", multiprocessors=4)
    assert Run(tmp_path / "run").checkpoint.execution["multiprocessors"] is None


@pytest.mark.parametrize(
    ("possible", "now", "line"),
    [
        (("persistent", "graphs"), "persistent", ", by a newer kernel than before"),
        (("graphs", "persistent"), "persistent", ", by a newer kernel than before"),
        (("graphs", "eager"), "graphs", " instead of persistent (persistent needs what is missing)"),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "persistent"])
def test_a_run_by_an_earlier_versions_persistent_kernel_goes_on(
    tmp_path: Path, devices: Devices, capsys, asked: str, possible: tuple[str, ...], now: str, line: str
) -> None:
    devices("persistent")
    start(tmp_path / "run", execution=asked)
    as_version_0_2(tmp_path / "run")
    devices(*possible)
    resume(tmp_path / "run")
    assert executions(tmp_path / "run") == (now, now)
    shown = said(capsys)
    assert shown[0].startswith(f"execution: {now}{line}: results differ by rounding")
    assert shown[1:] == [f"execution: {Execution(now, 'as tested')}"]
    resume(tmp_path / "run", epochs=3)
    assert said(capsys) == [f"execution: {Execution(now, 'as tested')}"]


def test_multiprocessors_are_only_those_of_persistent(tmp_path: Path, devices: Devices, capsys) -> None:
    devices("persistent", "graphs")
    words = ("--dataset", "digits", "--device", "cuda", "--multiprocessors", "4", "--out", tmp_path / "new")
    assert run("train", *words) == 2
    text = "multiprocessors: expected only with execution persistent, got execution"
    assert f"{text} auto" in capsys.readouterr().err
    start(tmp_path / "run", execution="graphs")
    with pytest.raises(ConfigError, match=f"{text} graphs"):
        resume(tmp_path / "run", multiprocessors=4)
    with pytest.raises(ConfigError, match="multiprocessors: expected a whole number of 1 or more, got 0"):
        Config(execution="persistent", multiprocessors=0).check()


@pytest.mark.parametrize(
    ("old", "execution"),
    [
        ({"cuda_graphs": "auto", "persistent_kernel": "on"}, "persistent"),
        ({"cuda_graphs": "off", "persistent_kernel": "on"}, "persistent"),
        ({"cuda_graphs": "auto", "persistent_kernel": "off"}, "graphs"),
        ({"cuda_graphs": "off", "persistent_kernel": "off"}, "eager"),
        ({"cuda_graphs": "off"}, "eager"),
        ({}, "auto"),
    ],
)
def test_an_old_configuration_loads(old: dict[str, str], execution: str) -> None:
    values = json.loads(Config().to_json())
    del values["execution"]
    assert Config.from_dict({**values, **old}).execution == execution


def as_before(folder: Path, **old: str) -> None:
    """Rewrite a run's files as written by versions before --execution."""

    def change(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        config, state = json.loads(metadata["config"]), json.loads(metadata["state"])
        del config["execution"], state["execution"]
        metadata.update(config=json.dumps(config | old), state=json.dumps(state))
        (folder / "config.json").write_text(metadata["config"])

    as_version_0_2(folder)
    change_file(folder / "checkpoint.safetensors", change, checked=False)


def test_an_old_run_whose_execution_is_unsupported_uses_the_next_one_and_reports_it(
    tmp_path: Path, devices: Devices, capsys
) -> None:
    devices("eager")
    start(tmp_path / "run")
    as_before(tmp_path / "run", cuda_graphs="auto", persistent_kernel="on")
    resume(tmp_path / "run")
    assert executions(tmp_path / "run") == ("eager", "eager")
    assert said(capsys)[0].startswith(
        "execution: eager instead of persistent (persistent needs what is missing; graphs"
    )
    assert Run(tmp_path / "run").options["execution"] == "persistent"


def test_an_old_run_on_the_cpu_is_resumed_without_a_message(tmp_path: Path, capsys) -> None:
    start(tmp_path / "run", device="cpu")
    as_before(tmp_path / "run", cuda_graphs="auto", persistent_kernel="off")
    resume(tmp_path / "run")
    assert len(said(capsys)) == 1
    start(tmp_path / "whole", device="cpu", epochs=2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_unknown_execution_is_refused() -> None:
    with pytest.raises(ConfigError, match="execution: expected one of auto, persistent, graphs, eager"):
        Config(execution="fast").check()
