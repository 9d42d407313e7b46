"""The README's tables, made of the results of benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import markdown
from tests.benchmark_helpers import REPOSITORY


def test_markdown_compares_without_and_with_momentum() -> None:
    def row(peer: str, momentum: float, rate: float, ratio: float) -> dict[str, object]:
        return {
            "network": "784-10", "batch_size": 1024, "momentum": momentum, "peer": peer, "median": rate,
            "share_of_arithmetic": 0.25, "gpumlp_is": ratio,
        }  # fmt: skip

    results = [row("gpumlp", 0.0, 3000, 1), row("jax", 0.0, 2000, 1.5), row("gpumlp", 0.9, 2500, 1)]
    lines = list(markdown.comparison({"results": results, "peers": {"gpumlp": "gpumlp", "jax": "JAX"}}))
    assert "| 1,024 | 3,000 / 2,500 | 25% / 25% | 1.50x / - |" in lines

    on_gpu = {"limits": {"flops": 1e12, "bytes": 1e11}, "peers": {"gpumlp": "gpumlp", "jax": "JAX"}}
    times = {"microseconds_per_step": 41.234, "floor_microseconds": 9.876}
    lines = list(markdown.comparison({**on_gpu, "results": [{**results[0], **times}, *results[1:]]}))
    assert "| batch | gpumlp, samples/s | of the limit | us/step | floor, us | JAX |" in lines
    assert "| 1,024 | 3,000 / 2,500 | 25% / 25% | 41.2 / - | 9.88 / - | 1.50x / - |" in lines


def test_markdown_reads_the_results_that_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    folder = REPOSITORY / "benchmarks" / "results"
    assert markdown.main([str(path) for path in sorted(folder.glob("compare*.json"))]) == 0
    assert "**784-128-10, momentum 0 / 0.9**" in capsys.readouterr().out


def test_markdown_names_the_kinds_that_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growth = '{"benchmark": "growth of the cost of an epoch"}'
    for name, text in {"growth": growth, "unnamed": '{"results": []}', "list": "[1]"}.items():
        (tmp_path / name).write_text(text)
        assert markdown.main([str(tmp_path / name)]) == 0
    (tmp_path / "broken").write_text("{")
    assert markdown.main([str(tmp_path / "broken")]) == 2
    growth, unnamed, a_list, broken = capsys.readouterr().err.splitlines()
    known = ", only of comparison, training throughput, estimators"
    assert growth == f"{tmp_path}/growth: there is no table of growth of the cost of an epoch{known}"
    assert unnamed.endswith(f"there is no table of results that do not name their benchmark{known}")
    assert a_list.endswith(known)
    assert "broken is no file of results: " in broken
