"""The examples run, print what their README says, and can fail."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_helpers import ROOT

EXAMPLES = ROOT / "examples"
# What each prints, as patterns of lines that follow each other.
PRINTED = {
    "quick_start": [r" *1/50 .*", r"the first test images are: \[4 0 6 .*", r"test accuracy: 0\.9\d+"],
    "own_data": [r"epoch 10: .*held-out.*", r"the point is blue with probability .*", r"test accuracy: 0\.9\d+"],
    "scikit_learn_pipeline": [r".*: 0\.\d+ in cross-validation"] * 4
    + [r"test accuracy of the best: (0\.9|1\.0)\d*"],
    "new_activation": [r".* at most \d\.\de-\d\d", r"relu: .* 0\.9\d+", r"softplus: .* test accuracy 0\.9\d+"],
    "where_does_a_gpu_pay": [r" +32 +[\d,]+", r" 8,192 +[\d,]+", r"there is no usable GPU here.*not known"],
}
NEEDS = {"scikit_learn_pipeline": "gpumlp.sklearn"}


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_every_example_is_run_here_and_named_in_the_readme() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(PRINTED)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", readme, re.MULTILINE)) == scripts


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_should(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    done = start(EXAMPLES / f"{name}.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\n(?:.*\n)*".join(PRINTED[name]), done.stdout), done.stdout


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_fails_where_the_network_is_not_good_enough(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    text, changed = re.subn(r"^ENOUGH = 0\.\d+", "ENOUGH = 1.01", script, flags=re.MULTILINE)
    assert changed == 1
    text = re.sub(r"^REPEATS = 5", "REPEATS = 1", text, flags=re.MULTILINE)  # it need not be exact here
    (tmp_path / "example.py").write_text(text)
    done = start(tmp_path / "example.py")
    assert done.returncode == 1
    assert done.stderr.startswith("expected an accuracy of 1.01 or more")


@pytest.mark.parametrize(
    ("gpu_rates", "words"),
    [
        ([1.1, 2, 3], "cuda pays at every batch size from 32 to 512"),
        ([0.5, 2, 3], "cuda pays from a batch size of 128 on (up to 512, the largest measured)"),
        ([2, 0.5, 3], "cuda pays from a batch size of 512 on (up to 512, the largest measured)"),
        ([3, 2, 0.9], "cuda does not pay up to a batch size of 512"),
        ([1, 1, 1], "cuda does not pay up to a batch size of 512"),
    ],
)
def test_where_a_gpu_pays_in_words(gpu_rates: list[float], words: str) -> None:
    path = EXAMPLES / "where_does_a_gpu_pay.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    cpu = dict.fromkeys([32, 128, 512], 1)
    assert module.verdict("cuda", cpu, dict(zip(cpu, gpu_rates, strict=True))) == words
