"""The benchmark of several processes: it runs, its report has every run, and the documentation shows its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import markdown, parallel
from tests.command_helpers import ROOT
from tests.mpi_helpers import require_mpi


def test_the_documentation_shows_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert parallel.main(["--model"]) == 0
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / "docs/parallel.md").read_text(encoding="utf-8")


def test_the_model_is_the_step_of_a_part_and_a_ring() -> None:
    rows = json.loads(parallel.THROUGHPUT.read_text())["results"]
    rate = {(row["network"], row["batch_size"]): row["median"] for row in rows}
    bandwidth, latency = parallel.LINKS["Ethernet"]
    step = 256 / rate["784-128-10", 256] + 6 * (101_770 * 4 / 4 / bandwidth + latency)
    (row,) = (line for line in parallel.model_table() if line.startswith("| 784-128-10 | 1,024 |"))
    assert row.split(" | ")[4] == f"{1024 / rate['784-128-10', 1024] / step:.2f}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0"], "ranks: expected 1 or more, got 0"),
        (["--batch-sizes", "2", "--ranks", "4"], "batch_sizes: expected 4 or more, got 2"),
        (["--networks", "784-10-5"], "networks: expected units of each layer from 784 to 10"),
        (["--repeats", "1"], "repeats: expected 5 or more"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parallel.main(words) == 2
    assert message in capsys.readouterr().err


class TestOfProcesses:
    pytestmark = require_mpi()

    def test_a_trial_has_a_row_for_each_setting(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert parallel.main(["--quick", "--out", str(tmp_path)]) == 0
        report = json.loads((tmp_path / "parallel-cpu.json").read_text())
        kinds = [(row["scaling"], row["processes"], row["batch_size"]) for row in report["results"]]
        assert kinds == [("one process", 1, 32), ("strong", 2, 32), ("weak", 2, 64)]
        for row in report["results"]:
            assert row["median"] > row["exchange"] >= 0
            assert (row["exchange"] > 0) == (row["processes"] > 1)
        capsys.readouterr()
        assert markdown.main([str(tmp_path / "parallel-cpu.json")]) == 0
        assert "| 784-8-10 | weak | 2 | 64 |" in capsys.readouterr().out
