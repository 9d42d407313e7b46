"""`scripts/on_gpu.sh` continues after a failing part and writes one folder of results; it needs a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from gpumlp import train

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "scripts"
RESULTS = REPOSITORY / "benchmarks" / "results"

# The script with a part for each way to end; `differences` is the original one, on the small digits.
TRIAL = """
import os, subprocess, sys, time
sys.path.insert(0, {scripts!r})
import on_gpu

def broken(job):
    job.run("-c", "print('about to fail')")
    raise ValueError("expected | got")

def hanging(job):
    job.result = {{"runs": [{{"name": "auto", "wall_seconds": 1.0, "error": "no"}}]}}
    job.save()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)

def impossible(job):
    raise on_gpu.NotPossibleError("there is no compute-sanitizer")

def differences(job):
    import gpumlp
    gpumlp.load_dataset = lambda name: (*gpumlp.load_digits(), None)
    on_gpu.differences(job)

Part = on_gpu.Part
on_gpu.PARTS = {{
    "machine": on_gpu.PARTS["machine"],
    "tests": Part(broken, 30),
    "training": Part(hanging, 6, "training.json"),
    "compare": Part(lambda job: os._exit(3), 30, "compare.json"),
    "differences": Part(differences, 30, "differences.json"),
    "sanitizer": Part(impossible, 30),
}}
on_gpu.__file__ = __file__
sys.exit(on_gpu.main())
"""


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import on_gpu

    return on_gpu


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is Bash")
def test_without_a_usable_gpu_it_ends_in_one_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cuda:77"}
    command = ["bash", str(SCRIPTS / "on_gpu.sh"), "results"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("on_gpu: cuda:77 cannot be used: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_failing_part_stops_none_of_the_others(tmp_path: Path) -> None:
    script, folder = tmp_path / "trial.py", tmp_path / "results"
    script.write_text(TRIAL.format(scripts=str(SCRIPTS)))
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), "--device", "cpu", str(folder)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - start < 50  # child processes of the hanging part are terminated too
    parts = json.loads((folder / "results.json").read_text())["parts"]
    assert {name: (part["status"], part["reason"]) for name, part in parts.items()} == {
        "machine": ("passed", ""),
        "tests": ("failed", "ValueError: expected | got"),
        "training": ("failed", "not finished after 6 s"),
        "compare": ("failed", "ended before it was finished"),
        "differences": ("passed", ""),
        "sanitizer": ("not possible", "there is no compute-sanitizer"),
    }
    assert {"python", "gpumlp", "numpy", "torch"} <= parts["machine"]["result"]["versions"].keys()
    assert json.loads((folder / "training.json").read_text())["runs"]  # output before the timeout
    rows = json.loads((folder / "differences.json").read_text())["rows"]
    assert [(row["name"], row["steps"]) for row in rows[3:]] == [("cpu, float32", n) for n in (1, 100, 1000)]
    assert 0 < rows[3]["loss_difference"] < 1e-5
    assert rows[0]["loss_difference"] == rows[0]["predictions_that_differ"] == 0
    assert {path.name for path in folder.iterdir()} == {
        "summary.md", "results.json", "log.txt", "training.json", "differences.json"
    }  # fmt: skip
    assert "about to fail" in (folder / "log.txt").read_text()
    summary = (folder / "summary.md").read_text()
    assert summary.index("**Failed: tests, training, compare**") < summary.index("| tests | failed |")
    assert "expected / got" in summary  # a vertical bar would end a table cell
    assert "| cpu, float32 | 1,000 |" in summary


def test_training_is_timed_and_its_bits_are_compared(
    on_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: object, *words: str, **_: str) -> subprocess.CompletedProcess[str]:
        few = ["--dataset", "digits", "--epochs", "2"]
        return subprocess.CompletedProcess(words, train.main([*words[2:], *few]), stderr="")

    monkeypatch.setattr(on_gpu.Job, "run", run)
    job = on_gpu.Job("cpu", tmp_path, tmp_path / "training.json")
    on_gpu.training(job)
    runs = job.result["runs"]
    assert [row["execution"] for row in runs] == ["auto", "auto", *on_gpu.WAYS, "auto"]
    assert all(row["epochs"] == 2 and 0.9 < row["test_accuracy"] < 1 for row in runs)
    assert all(row["wall_seconds"] > row["first_epoch_seconds"] > 0 for row in runs)
    assert job.result["two_runs_have_the_same_bits"] is True
    assert " % on digits; " in job.note


def test_a_test_is_named_when_it_starts(
    on_gpu: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    file = tmp_path / "test_small.py"
    file.write_text("import pytest\n\n@pytest.mark.gpu\ndef test_that_ends():\n    pass\n")
    job = on_gpu.Job("cpu", tmp_path, tmp_path / "tests.json")
    on_gpu.gpu_tests(job, str(file))
    assert job.note == "1 of 1 passed, 0 skipped"
    assert capfd.readouterr().out.count("::test_that_ends") >= 1


def test_what_the_sanitizer_finds_is_a_failure(
    on_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        "#!/bin/sh\n"
        "[ $2 = memcheck ] && echo '========= ERROR SUMMARY: 0 errors' && exit 0\n"
        "echo '========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = on_gpu.Job("cuda", tmp_path, tmp_path / "sanitizer.json")
    with pytest.raises(RuntimeError, match="racecheck of persistent: RACECHECK SUMMARY: 2 hazards"):
        on_gpu.sanitizer(job)
    assert [row["clean"] for row in job.result["rows"]] == [True, True, True, False]
    assert job.note == "3 of 4 checks are clean"


def test_the_persistent_kernel_is_timed_beside_graphs_and_with_many_networks(
    on_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "TIMED_SAMPLES", 512)
    monkeypatch.setattr(on_gpu, "TIMED_BATCHES", (128, 256))
    monkeypatch.setattr(on_gpu, "MANY", (1, 3))
    monkeypatch.setattr(on_gpu, "OF_ONE", (((30, 100, 2), 200, 14),))
    job = on_gpu.Job("cpu", tmp_path, tmp_path / "times.json")
    on_gpu.times(job)
    settings = [(row["network"], row["batch_size"]) for row in job.result["steps"][::2]]
    assert settings == [("784-128-10", 128), ("784-128-10", 256), ("784-512-512-10", 128)]
    assert [row["execution"] for row in job.result["steps"][:2]] == ["persistent", "graphs"]
    assert [row["networks"] for row in job.result["many"]] == [1, *4 * (1, 3)]
    assert all(row["microseconds_per_step"] > 0 for row in (*job.result["steps"], *job.result["many"]))
    assert {"hardware", "versions"} <= job.result.keys()
    assert re.fullmatch(r"[13] networks: [\d,]+ samples/s together", job.note)
    job.result["steps"][0] = {**job.result["steps"][0], "error": "it does not fit"}
    job.result["many"][-1] = {**job.result["many"][-1], "error": "no memory"}
    lines = [*on_gpu._times(job.result)]
    assert any(re.fullmatch(r"\| 784-128-10 \| 128 \| - \| [\d.]+ \|", line) for line in lines)
    assert "| 30-100-2 | 200 | 3 | - | - | - | no memory |" in lines
    assert "- 784-128-10, batch 128, persistent: it does not fit" in lines


def test_the_time_limits_are_below_ten_minutes_together(on_gpu: ModuleType) -> None:
    assert sum(part.seconds for part in on_gpu.PARTS.values()) <= on_gpu.TOTAL_SECONDS < 600


def test_the_folder_has_at_most_eight_files(on_gpu: ModuleType) -> None:
    assert len({part.file for part in on_gpu.PARTS.values() if part.file}) + 3 <= 8


def test_the_summary_shows_the_tables_of_the_benchmarks(on_gpu: ModuleType) -> None:
    compared = json.loads((RESULTS / "compare-cuda-h100.json").read_text())
    lines = [*on_gpu._compare(compared)]
    assert "| 32 | 40.8 | 696 | 78.0 | 31.1 | 7.75 | 1.10 |" in lines
    lines = [*on_gpu._throughput(json.loads((RESULTS / "throughput-cpu.json").read_text()))]
    assert "| 16 | 124,016 | 20,341 | 2,706 |" in lines


def test_unknown_parts_are_refused(on_gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        on_gpu.main(["--parts", "tests nonsense"])
    assert "parts: expected some of machine tests sanitizer times training" in capsys.readouterr().err
