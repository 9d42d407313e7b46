"""The examples run, print the documented output, and fail on low accuracy."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

import pytest

from tests.command_helpers import ROOT

EXAMPLES = ROOT / "examples"
# What each prints, as patterns of lines that follow each other.
PRINTED = {
    "quick_start": [r" *1/50 .*", r"the first test images are: \[4 0 6 .*", r"test accuracy: 0\.9\d+"],
    "own_data": [r"epoch 10: .*held-out.*", r"the point is blue with probability .*", r"test accuracy: 0\.9\d+"],
    "scikit_learn_pipeline": [r".*: 0\.\d+ in cross-validation"] * 4
    + [r"test accuracy of the best: (0\.9|1\.0)\d*"],
    "new_activation": [r".* at most \d\.\de-\d\d", r"relu: .* 0\.9\d+", r"mish: .* test accuracy 0\.9\d+"],
    "where_does_a_gpu_pay": [
        r" +32 +[\d,]+",
        r" 8,192 +[\d,]+",
        r"(?:there is no usable GPU here.*not known|cuda:0 .*pay.*)",
    ],
}
FASTER = {"where_does_a_gpu_pay": {"REPEATS": 1}}
NEEDS = {"scikit_learn_pipeline": "gpumlp.sklearn"}


def run(name: str, **constants: float) -> tuple[object, str]:
    """Run an example as a script with changed constants; return its exit code and output."""
    pytest.importorskip(NEEDS.get(name, "gpumlp"))
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for constant, value in constants.items():
        text, changed = re.subn(rf"^{constant} = [\d.]+", f"{constant} = {value}", text, flags=re.MULTILINE)
        assert changed == 1
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        exec(compile(text, f"{name}.py", "exec"), {"__name__": "__main__"})
    return exit_.value.code, out.getvalue()


def test_every_example_is_run_here_and_named_in_the_readme() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == set(PRINTED)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", readme, re.MULTILINE)) == scripts


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_should(name: str) -> None:
    code, printed = run(name, **FASTER.get(name, {}))
    assert code is None
    assert re.search(r"\n(?:.*\n)*".join(PRINTED[name]), printed), printed


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_fails_where_the_network_is_not_good_enough(name: str) -> None:
    code, _ = run(name, ENOUGH=1.01, **FASTER.get(name, {}))
    assert str(code).startswith("expected an accuracy of 1.01 or more")


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
    names: dict[str, Any] = {"__name__": path.stem}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    cpu = dict.fromkeys([32, 128, 512], 1)
    assert names["verdict"]("cuda", cpu, dict(zip(cpu, gpu_rates, strict=True))) == words
