"""The benchmark of the estimators runs, records every fit, and does not change scikit-learn's settings."""

from __future__ import annotations

import json
import statistics
import subprocess
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("sklearn", reason='scikit-learn is not installed: pip install ".[sklearn]"')

from benchmarks import estimators, markdown
from gpumlp.backends import blas_kernel


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    assert estimators.main(["--quick", "--out", str(folder)]) == 0
    found: dict[str, Any] = json.loads((folder / "estimators-cpu.json").read_text())
    return found


def test_every_fit_and_their_summary(report: dict[str, Any]) -> None:
    assert report["quick"] is True
    assert report["versions"]["scikit-learn"]
    rows = report["results"]
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    assert libraries[:2] == ["gpumlp", "scikit-learn"]
    assert [(row["dtype"], row["library"]) for row in rows] == [
        (dtype, library) for dtype in ("float64", "float32") for library in libraries
    ]
    for row in rows:
        assert row["samples"] == 133
        assert row["epochs"] == [3, 3]
        assert row["median"] == statistics.median(row["seconds"]) > 0
        assert row["accuracy"] == rows[0]["accuracy"]  # equal random_state, equal run
        assert row["loss"] == pytest.approx(rows[0]["loss"], abs=1e-5)
        mine = next(r for r in rows if (r["dtype"], r["library"]) == (row["dtype"], "gpumlp"))
        ratios = [other / ours for other, ours in zip(row["seconds"], mine["seconds"], strict=True)]
        assert row["gpumlp_is"]["median"] == statistics.median(ratios)


def test_the_readmes_table(report: dict[str, Any]) -> None:
    lines = [*markdown.estimators(report)]
    assert len(lines) == 4
    assert lines[0].startswith("| data | X | accuracy, %: gpumlp | scikit-learn |")
    assert lines[2].startswith("| wine, 133 | float64 |")
    assert f"{report['results'][1]['gpumlp_is']['median']:.2f}x" in lines[2]


def test_scikit_learn_uses_its_default_blas_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env))
    monkeypatch.setattr(blas_kernel, "CHOICE", blas_kernel.Choice("SkylakeX", "for this test"))
    monkeypatch.setenv(blas_kernel.VARIABLE, "SkylakeX")
    names = [estimators.OURS, estimators.THEIRS, estimators.SAME_KERNEL]
    for name in names:
        estimators.Worker(name)
    assert [environment.get(blas_kernel.VARIABLE) for environment in started] == ["SkylakeX", None, "SkylakeX"]


@pytest.mark.parametrize(("kernel", "more"), [("SkylakeX", []), ("Zen", [estimators.SAME_KERNEL])])
def test_it_is_also_measured_on_the_same_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: str, more: list[str]
) -> None:
    class Told(estimators.Worker):
        def __init__(self, name: str) -> None:
            self.name = name

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"blas": [{"kernel": kernel if self.name == estimators.THEIRS else "SkylakeX"}]}

    monkeypatch.setattr(estimators, "Worker", Told)
    with ExitStack() as stack:
        assert [*estimators.start(stack)] == [estimators.OURS, estimators.THEIRS, *more]


def test_wrong_options_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert estimators.main(["--datasets", "iris", "--dtypes", "float16", "--seeds", "0"]) == 2
    message = capsys.readouterr().err
    for words in (
        "datasets: expected some of digits",
        "dtypes: expected some of",
        "seeds: expected 1 or more, got 0",
    ):
        assert words in message
