"""Records: their files, the comparison with the published error, and the command that trains them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

from gpumlp import MLP, Committee, load_digits, reproduce
from gpumlp.records import (
    COLUMNS,
    Record,
    compare,
    differences,
    error_words,
    load_record,
    read_results,
    record_names,
    save_result,
    table,
)
from gpumlp.training.config import PRESETS, Config, ConfigError
from gpumlp.training.run import Run
from tests.command_helpers import ROOT, SAVE_EACH, assert_same_run, finish, kill_at, lines, run, spawn, wait_until

CPU = ("--device", "cpu", "--jobs", 1)
SHORT = ("digits", *CPU, "--epochs", 2, "--seeds", 2)
FILE = """
paper = "Nobody 2026"
source = "a test"
gate = 99.0

[train]
dataset = "digits"
hidden = [4]
epochs = 2
"""
COMMITTEE = f"""{FILE}
[committee]
each = 2
members = [{{}}, {{hidden = [3], preprocess = ["deskew"]}}]
"""
KINDS = ("", "hidden=3,preprocess=deskew,")  # the names of its runs begin so


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def record(published: float | None = None, gate: float | None = None) -> Record:
    return Record("one", "Nobody 2026", "a test", "", Config(), published, gate)


def written(folder: Path, text: str) -> Path:
    (folder / "own.toml").write_text(text)
    return folder / "own.toml"


# -- Files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", record_names())
def test_every_record_can_be_trained(name: str) -> None:
    found = load_record(name)
    assert found.paper
    assert found.source
    samples = 1437 if found.config.dataset == "digits" else 60_000
    assert found.config.resolved(samples).planned_steps(samples) > 0
    assert found.config.validation == 0, "the papers train on all samples"


def test_the_record_of_the_notes_is_their_preset() -> None:
    assert load_record("notes").config == dataclasses.replace(PRESETS["notes"], dataset="mnist")


def test_the_record_that_the_documentation_shows_is_one_with_a_committee(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    own, simard = load_record(str(written(tmp_path, shown))), load_record("simard2003-plain")
    assert (own.paper, own.deviations, own.published) == (simard.paper, simard.deviations, simard.published)
    assert own.networks == 15


def test_a_committee_is_of_as_many_networks_as_its_paper_s_which_are_trained_as_it_says() -> None:
    for name, networks, network in (("meier2011", 25, "simard2003"), ("ciresan2012", 7, "ciresan2010-5")):
        committee = load_record(name)
        assert committee.networks == networks
        assert f"a committee of {networks} has {committee.published} %" in committee.source
        like = dataclasses.replace(
            load_record(network).config, epochs=committee.config.epochs, decay_rate=committee.config.decay_rate
        )
        assert committee.config == like
        assert f"otherwise as {network}." in committee.deviations


def test_a_record_without_a_committee_is_one_network() -> None:
    assert (load_record("digits").members, load_record("digits").networks) == (({},), 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('paper = "Nobody 2026"', "", "paper: expected a text, got nothing"),
        ('paper = "Nobody 2026"', "paper = 2026", "paper: expected a text, got 2026"),
        ("gate = 99.0", "", "gate: expected where there is no published error, got nothing"),
        ("gate = 99.0", "gate = 0.0", "gate: expected a test error in percent, above 0 and below 100, got 0.0"),
        ("gate = 99.0", "published = true", "published: expected a test error in percent, .* got True"),
        ("gate = 99.0", "gate = nan", "gate: expected a test error in percent, .* got nan"),
        ("gate = 99.0", "gate = 9.0\ngates = 1", "gates: unknown"),
        ("gate = 99.0", "gate = ", r"Invalid value \(at line 4, column \d+\)"),
        ("[train]", "[training]", "training: unknown\nown.toml: train: expected a table with the options of"),
        ('dataset = "digits"', "", "train: dataset: expected mnist, digits, .*, got None"),
        ("epochs = 2", "epoch = 2", "train: unknown option: epoch"),
        (
            "epochs = 2",
            "early_stopping = 2\nvalidation = 9",
            "train: early_stopping: not in a record, whose result is",
        ),
        ("epochs = 2", "epochs = 0", "train: epochs: expected a whole number of 1 or more, got 0"),
        ("epochs = 2", "gamma = 0.5", "train: gamma: expected only with schedule step or milestones, .*"),
        ("epochs = 2", "seed = 1", "train: seed: not in a record; give it to the command"),
        ("epochs = 2", 'preset = "note"', "train: preset: expected notes, got 'note'"),
        ("[committee]", "[[committee]]", "committee: expected a table with members and each, got a list"),
        ("each = 2", "each = 0", "committee: each: expected a whole number of 1 or more, got 0"),
        ("each = 2", "each = true", "committee: each: expected a whole number of 1 or more, got True"),
        ("each = 2", "size = 2", "committee: size: unknown"),
        ("members = [", "# [", "committee: members: expected a list of what differs, such as .* got nothing"),
        ("members = [{}, ", "members = [5, ", "committee: members: expected a list of what differs, such as "),
        (
            "members = [",
            "members = []  # [",
            "committee: expected two networks or more, got 0; add members, or set",
        ),
        ("each = 2\nmembers = [", "members = [{}]  # [", "committee: expected two networks or more, got 1; "),
        ("{}, ", "{}, {hidden = [4]}, ", "committee: members: number 2: expected another network than number 1; "),
        ("hidden = [3]", "hidden = [0]", "committee: members: number 2: hidden: expected whole numbers .*"),
        ("hidden = [3]", "hiden = [3]", "committee: members: number 2: hiden: not an option in which members can"),
        ("hidden = [3]", "seed = 3", "committee: members: number 2: seed: not an option in which members can"),
        ("hidden = [3]", 'dataset = "mnist"', "committee: members: number 2: dataset: not an option in which "),
        ("hidden = [3]", "epochs = 3", "committee: members: number 2: epochs: not an option in which members"),
        ('["deskew"]', '["dskew"]', "committee: members: number 2: preprocess: expected deskew, width=PIXELS"),
        ('["deskew"]', '"deskew"', "committee: members: number 2: preprocess: expected a list of words, such as "),
        ('["deskew"]', "{a = 1}", "committee: members: number 2: preprocess: expected deskew, width=PIXELS"),
    ],
)
def test_a_mistake_in_a_file_is_a_clear_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = COMMITTEE.replace(old, new, 1)
    assert text != COMMITTEE
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=f"^own.toml: {message}"):
        load_record(str(path))
    assert run("reproduce", path) == 2
    assert capsys.readouterr().err.startswith("gpumlp-reproduce: own.toml: ")


@pytest.mark.parametrize("value", ["5", "-1", "nan", "true", '"x"', "[]", '["x"]', "[1]", "[[1]]", "{a = 1}"])
def test_no_value_of_an_option_is_a_traceback(tmp_path: Path, value: str) -> None:
    for field in dataclasses.fields(Config):
        for old in ("hidden = [4]", "hidden = [3]"):
            with suppress(ConfigError):
                load_record(str(written(tmp_path, COMMITTEE.replace(old, f"{field.name} = {value}"))))


def test_an_unknown_name_is_answered_with_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", "simard03") == 2
    assert "expected the name of a record, such as simard2003" in capsys.readouterr().err


# -- The comparison ------------------------------------------------------------------------------------------


def test_equal_is_within_two_standard_errors_of_the_seeds_and_of_the_test_set() -> None:
    of_test_set = 0.007 * 0.993 / 10_000
    one = compare(record(0.7), [0.8], 10_000)
    assert one.tolerance == pytest.approx(100 * 2 * math.sqrt(of_test_set))
    assert (one.mean, one.deviation, one.verdict, one.reached) == (0.8, None, "equal", True)
    three = compare(record(0.7), [0.7, 0.8, 0.9], 10_000)
    assert three.deviation == pytest.approx(0.1)
    assert three.tolerance == pytest.approx(100 * 2 * math.sqrt(0.001**2 / 3 + of_test_set))
    assert compare(record(0.7), [0.86], 10_000).verdict == "equal"
    assert compare(record(0.7), [0.87], 10_000).verdict == "worse"
    assert compare(record(0.7), [0.53], 10_000).verdict == "better"


@pytest.mark.parametrize(
    ("published", "gate", "error", "verdict", "reached"),
    [
        (None, 0.8, 0.8, None, True),
        (None, 0.8, 0.81, None, False),
        (0.7, 0.8, 0.81, "equal", False),
        (0.7, 2.0, 1.5, "worse", True),
        (0.7, None, 1.5, "worse", False),
        (0.7, None, 0.1, "better", True),
    ],
)
def test_a_gate_is_its_own_limit_or_not_to_be_worse(
    published: float | None, gate: float | None, error: float, verdict: str | None, reached: bool
) -> None:
    result = compare(record(published, gate), [error], 10_000)
    assert (result.verdict, result.reached) == (verdict, reached)


# -- The command ---------------------------------------------------------------------------------------------


def test_every_seed_is_a_run_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    assert run("reproduce", *SHORT, "--out", out) == 1  # after 2 epochs
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"seed=0", "seed=1"}
    errors = []
    for seed in (0, 1):
        words = ("--dataset", "digits", "--device", "cpu", "--validation", 0, "--epochs", 2, "--seed", seed)
        with threadpool_limits(1):
            assert run("train", *words, "--quiet", "--out", tmp_path / str(seed)) == 0
        assert_same_run(tmp_path / str(seed), out / f"seed={seed}")
        metrics = Run(out / f"seed={seed}").metrics
        assert metrics is not None
        errors.append(100 * (1 - metrics["test_accuracy"]))
        wrong = round(3.6 * errors[-1])
        assert f"seed={seed}: test error {errors[-1]:.2f} % ({wrong} of 360), trained in " in said
    result = compare(record(), errors, 360)
    assert f"test error: {result.mean:.2f} ± {result.deviation:.2f} % (mean and deviation of 2 seeds)" in said
    assert "this is a trial: the record has 50 epochs" in said
    assert "gate: 4.00 % or less: not reached" in said


def test_a_report_is_written_or_the_reason_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    assert run("reproduce", *SHORT, "--out", tmp_path / "r") == 1
    assert f"report: {tmp_path / 'r' / 'report.html'}" in capsys.readouterr().out
    page = (tmp_path / "r" / "report.html").read_text()
    assert "seed=0" in page
    assert "seed=1" in page


def test_a_record_of_ones_own_with_a_published_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, FILE.replace("gate = 99.0", "published = 98.0"))
    assert run("reproduce", path, *CPU, "--seeds", 1, "--out", tmp_path / "r") == 0
    said = capsys.readouterr().out
    assert "record: own, Nobody 2026" in said
    assert " % (1 seed)" in said
    assert re.search(r"published: 98.00 %, so the result is better \(equal is within 1.48 points\)", said)
    assert "gate: not to be worse than the published error: reached" in said


def test_the_same_command_trains_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert run("reproduce", *SHORT, "--quiet", "--out", out) == 1
    first = (out / "seed=0" / "checkpoint.safetensors").stat().st_mtime_ns
    assert run("reproduce", *SHORT[:-1], 3, "--quiet", "--out", out) == 1
    assert (out / "seed=0" / "checkpoint.safetensors").stat().st_mtime_ns == first
    assert (out / "seed=2" / "metrics.json").exists()


def test_a_killed_record_goes_on_by_the_same_command(tmp_path: Path) -> None:
    words = ("digits", *CPU, "--epochs", 40, "--seeds", 2, "--quiet", "--out")
    process = spawn("reproduce", *words, tmp_path / "r", env=SAVE_EACH)
    kill_at(process, lambda: lines(tmp_path / "r" / "seed=1") >= 1)
    assert run("reproduce", *words, tmp_path / "r") == run("reproduce", *words, tmp_path / "whole") == 0
    for seed in (0, 1):
        assert_same_run(tmp_path / "r" / f"seed={seed}", tmp_path / "whole" / f"seed={seed}")
        curve, expected = (tmp_path / name / f"seed={seed}" / "test_curve.csv" for name in ("r", "whole"))
        assert curve.read_bytes() == expected.read_bytes()


def test_a_run_of_other_options_in_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out, file = written(tmp_path, FILE), tmp_path / "r", tmp_path / "results.json"
    words = (own, *CPU, "--seeds", 1, "--quiet", "--out", out, "--save", file)
    assert run("reproduce", *words) == 0
    saved = file.read_bytes()
    train = ("train", "--device", "cpu", "--quiet")
    again = ("--out", out / "seed=0", "--overwrite")
    for change, names in (
        ((*train, "--resume", out / "seed=0", "--epochs", 5), "epochs"),
        ((*train, "--dataset", "digits", "--epochs", 2, *again), "hidden"),
    ):
        assert run(*change) == 0
        capsys.readouterr()
        assert run("reproduce", *words) == 2
        said = capsys.readouterr().err
        assert f"{out / 'seed=0'} holds a run with other options ({names}); remove it" in said
        assert file.read_bytes() == saved


def test_a_curve_with_a_hole_is_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, file = written(tmp_path, FILE), tmp_path / "results.json"
    words = (own, *CPU, "--seeds", 2, "--out", tmp_path / "r", "--save", file)
    assert run("reproduce", *words) == 0
    assert "curves" in read_results(file)[0]
    curve = tmp_path / "r" / "seed=1" / "test_curve.csv"
    first, _, last = curve.read_text().splitlines(keepends=True)
    for content in (first + last, first, None):
        curve.unlink()
        if content is not None:
            curve.write_text(content)
        capsys.readouterr()
        assert run("reproduce", *words) == 0
        said = capsys.readouterr().out
        assert "no curves: a test_curve.csv in" in said
        assert "in place of one of 2 seeds" in said
        (result,) = read_results(file)
        assert "curves" not in result


def test_runs_of_several_devices_are_not_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, file = written(tmp_path, FILE), tmp_path / "results.json"
    words = (own, *CPU, "--seeds", 2, "--out", tmp_path / "r")
    assert run("reproduce", *words) == 0
    metrics = tmp_path / "r" / "seed=1" / "metrics.json"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "device": "cuda:0", "device_name": "a GPU"}))
    assert run("reproduce", *words, "--save", file) == 2
    assert "save: expected runs of one device, got cpu (" in capsys.readouterr().err
    assert not file.exists()


def test_a_file_cannot_have_the_name_of_another_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(FILE)
    assert run("reproduce", path) == 2
    assert "expected another name than that of a record of gpumlp, digits" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    process = spawn("reproduce", "digits", *CPU, "--epochs", 5000, "--seeds", 1, "--out", tmp_path / "r")
    wait_until(lambda: lines(tmp_path / "r" / "seed=0") >= 2, process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert err == (
        "gpumlp-reproduce: interrupted; 0 of 1 runs have ended, the others are saved up to their last epoch; the "
        "same command goes on\n"
    )


def test_progress_is_shown_within_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpumlp.reproduce._INTERVAL", 0.005)
    monkeypatch.setattr("gpumlp.training.run.INTERVAL", 0)
    assert run("reproduce", "digits", *CPU, "--epochs", 60, "--seeds", 1, "--out", tmp_path / "r") == 0
    assert re.search(r"^epoch \d+ of 60 of all runs, \d+ s left$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", 0), "seeds: expected a whole number of 1 or more, got 0"),
        (("--jobs", 0), "jobs is expected to be a number of 1 or more"),
        (("--epochs", 0), "epochs: expected a whole number of 1 or more, got 0"),
        (("--device", "tpu"), "device: expected "),
        (("--data-dir", "x"), "data_dir x does not apply to the data set digits"),
        (("--save", "r.txt"), "save: expected a name that ends in .json, got r.txt"),
        (("--save", "r.json", "--epochs", 1), "save: expected with the record's own epochs, got epochs too"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("reproduce", "digits", *words) == 2
    assert capsys.readouterr().err.startswith(f"gpumlp-reproduce: {message}")
    assert os.listdir() == []


def test_a_trial_leaves_the_folder_of_the_record_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = (written(tmp_path, FILE), *CPU, "--seeds", 1, "--quiet")
    assert run("reproduce", *words, "--epochs", 1) == run("reproduce", *words) == 0
    assert sorted(os.listdir("runs")) == ["own-1-epochs", "own-record"]


def test_a_folder_with_other_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r"
    assert run("reproduce", *SHORT, "--quiet", "--out", out) == 1
    before = (out / "sweep.json").read_bytes()
    capsys.readouterr()
    assert run("reproduce", *SHORT, "--epochs", 3, "--out", out) == 2
    assert f"out: {out} holds runs with other options (epochs); choose another folder" in capsys.readouterr().err
    assert (out / "sweep.json").read_bytes() == before
    words = ("--dataset", "digits", "--device", "cpu", "--epochs", 1, "--jobs", 1, "--grid", "hidden=2,3")
    assert run("sweep", *words, "--quiet", "--out", tmp_path / "s") == 0
    assert run("reproduce", *SHORT, "--out", tmp_path / "s") == 2
    assert "choose another folder" in capsys.readouterr().err


def test_other_data_than_the_record_s_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpumlp import load_digits
    from gpumlp.training import session

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "load_dataset", lambda *_, **__: (*load_digits(), None))
    assert run("reproduce", "simard2003", "--device", "cpu") == 2
    assert "the record simard2003 is of mnist, but the data are digits" in capsys.readouterr().err
    assert os.listdir() == []


def test_a_seed_that_diverges_is_named_and_no_result_is_claimed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, FILE + "learning_rate = 1e30\n")
    assert run("reproduce", path, *CPU, "--seeds", 1, "--out", tmp_path / "r") == 1
    said = capsys.readouterr()
    assert f"gpumlp-reproduce: {tmp_path / 'r' / 'seed=0'} diverged: training diverged" in said.err
    assert "gate" not in said.out


# -- Committees ----------------------------------------------------------------------------------------------


def test_the_result_of_a_committee_is_that_of_its_averaged_probabilities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, file = written(tmp_path, COMMITTEE), tmp_path / "r", tmp_path / "results.json"
    assert run("reproduce", path, *CPU, "--seeds", 2, "--out", out, "--save", file) == 0
    said, (result,) = capsys.readouterr().out, read_results(file)
    assert "runs: 2 committees of 4 networks, each of 2 epochs, in " in said
    test = load_digits()[1]
    for number, seeds in enumerate(((0, 1), (2, 3))):
        runs = [out / f"{kind}seed={seed}" for kind in KINDS for seed in seeds]
        committee = Committee([MLP.load(folder, device="cpu") for folder in runs])
        compared, predicted = committee.compare(test), committee.predict(test.images)
        assert compared.committee.accuracy is not None
        wrong, disputed = round(360 * (1 - compared.committee.accuracy)), round(360 * (compared.disagreement or 0))
        members = [round(360 * (1 - (member.accuracy or 0))) for member in compared.members]
        assert result["wrong"][number] == wrong
        assert result["members"][number] == members
        assert wrong not in members
        assert result["disputed"][number] == disputed > 0
        mistakes = {index: predicted[index] for index in range(360) if predicted[index] != test.labels[index]}
        assert dict(result["mistakes"][number]) == mistakes
        metrics = [Run(folder).metrics or {} for folder in runs]
        assert result["seconds"][number] == pytest.approx(sum(each["seconds"] for each in metrics), abs=0.051)
        assert (
            f"committee {number}: test error {wrong / 3.6:.2f} % ({wrong} of 360), of its members "
            f"{error_words(members, 360)}; the members disagree on {disputed} of 360 samples"
        ) in said
    assert result["seeds"] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert f"test error: {error_words(result['wrong'], 360)} (mean and deviation of 2 committees)" in said


def test_more_committees_keep_the_finished_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (written(tmp_path, COMMITTEE), *CPU, "--out", tmp_path / "r", "--seeds")
    assert run("reproduce", *words, 1) == 0
    first = capsys.readouterr().out
    assert " % (1 committee)" in first
    runs = sorted((tmp_path / "r").glob("*/checkpoint.safetensors"))
    before = [path.stat().st_mtime_ns for path in runs]
    assert run("reproduce", *words, 2) == 0
    assert [path.stat().st_mtime_ns for path in runs] == before
    (same,) = re.findall("^committee 0: .*", first, re.MULTILINE)
    assert same in capsys.readouterr().out


def test_a_killed_committee_goes_on_by_the_same_command(tmp_path: Path) -> None:
    path = written(tmp_path, COMMITTEE.replace("epochs = 2", "epochs = 40"))
    words = (path, *CPU, "--seeds", 1, "--quiet", "--out")
    process = spawn("reproduce", *words, tmp_path / "r", env=SAVE_EACH)
    kill_at(process, lambda: lines(tmp_path / "r" / f"{KINDS[1]}seed=0") >= 1)
    for name in ("r", "whole"):
        assert run("reproduce", *words, tmp_path / name, "--save", tmp_path / f"{name}.json") == 0
    for folder in (f"{kind}seed={seed}" for kind in KINDS for seed in (0, 1)):
        assert_same_run(tmp_path / "r" / folder, tmp_path / "whole" / folder)
    (one,), (other,) = (read_results(tmp_path / f"{name}.json") for name in ("r", "whole"))
    assert one["mistakes"] == other["mistakes"]


def test_a_folder_with_another_committee_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*CPU, "--seeds", 1, "--quiet", "--out", tmp_path / "r")
    assert run("reproduce", written(tmp_path, FILE), *words) == 0
    assert run("reproduce", written(tmp_path, COMMITTEE), *words) == 2
    assert "holds runs with other options (hidden, preprocess); choose" in capsys.readouterr().err


# -- Results and the table -----------------------------------------------------------------------------------


def test_a_result_is_saved_with_hardware_versions_seeds_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = written(tmp_path, FILE), tmp_path / "results.json"
    words = (path, *CPU, "--quiet", "--out", tmp_path / "r", "--save", file)
    assert run("reproduce", *words, "--seeds", 1) == run("reproduce", *words, "--seeds", 2) == 0
    (result,) = read_results(file)  # the second one instead of the first
    assert result["record"] == "own"
    assert result["seeds"] == [0, 1]
    assert len(result["seconds"]) == len(result["wrong"]) == 2
    assert result["test_samples"] == 360
    for seed, wrong in enumerate(result["wrong"]):
        metrics = Run(tmp_path / "r" / f"seed={seed}").metrics
        assert metrics is not None
        assert 1 - wrong / 360 == pytest.approx(metrics["test_accuracy"])
        curve, mistakes = result["curves"][seed], result["mistakes"][seed]
        assert (len(curve), curve[-1], len(mistakes)) == (2, wrong, wrong)
        assert all(load_digits()[1].labels[index] != predicted for index, predicted in mistakes)
    assert {"hardware", "device", "runs_at_once", "epochs", "date", "gpumlp", "python", "numpy"} <= result.keys()


def test_a_result_on_other_hardware_stands_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    cpu = {"record": "simard2003", "device": "cpu", "hardware": "a CPU", "seeds": [0, 1], "wrong": [80, 84]}
    cpu |= {"test_samples": 10_000, "seconds": [600.0, 660.0], "runs_at_once": 2}
    gpu = {**cpu, "device": "cuda", "hardware": "a GPU", "seeds": [0], "wrong": [82], "seconds": [30.0]}
    del gpu["runs_at_once"]
    save_result(file, gpu)
    save_result(file, cpu)
    (row,) = (row for row in table(read_results(file)) if row[0] == "simard2003")
    assert row[-2:] == ("0.82 ± 0.03 %, 2 seeds, a CPU, 2 at once\n0.82 %, 1 seed, a GPU", "10 min\n30 s")


def test_no_result_of_several_commands_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    result = {"device": "cpu", "hardware": "a CPU", "seeds": [0], "wrong": [80], "test_samples": 9, "seconds": [1]}

    def save(number: int) -> None:
        save_result(file, {**result, "record": f"r{number}"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(40)))
    assert {each["record"] for each in read_results(file)} == {f"r{number}" for number in range(40)}
    assert os.listdir(tmp_path) == ["results.json"]


def test_the_table_says_of_how_many_networks_a_committee_is(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    result = {"record": "meier2011", "device": "cpu", "hardware": "a CPU", "seeds": [0] * 50, "wrong": [40, 44]}
    result |= {"test_samples": 10_000, "seconds": [7200, 7200], "members": [[70] * 25] * 2, "disputed": [90, 91]}
    save_result(file, result)
    (row,) = (row for row in table(read_results(file)) if row[0] == "meier2011")
    assert row[2:] == ("25 networks of 800", "0.39 %", "0.42 ± 0.03 %, 2 committees, a CPU", "2.0 h")


DAMAGED = '{"results": [{"record": "r", "hardware": "h", "wrong": [1], "seconds": [1], "test_samples": 9, %s}]}'


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"results": 1}', '{"results": [{"record": "digits"}]}'),
        DAMAGED.replace('"r"', '["r"]') % '"n": 1',
        DAMAGED.replace("9", "0") % '"n": 1',
        DAMAGED % '"mistakes": [[[0, 1], [2, 1]]]',
        *(
            DAMAGED % f'"curves": {curves}'
            for curves in ("5", "[5]", "[[]]", '[["a"]]', "[[1], [null]]", "[[0.5]]", "[[1], [1, 1]]")
        ),
        *(DAMAGED % f'"mistakes": {pairs}' for pairs in ("5", "[5]", "[[5]]", "[[[1]]]", "[[[0.5, 1]]]")),
    ],
)
def test_a_damaged_file_of_results_is_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    assert run("reproduce", *SHORT[:-4], "--save", file, "--out", tmp_path / "r") == 2
    assert (
        f"{file}: expected a file of results, as --save writes it, got another or a damaged one"
        in capsys.readouterr().err
    )
    assert file.read_text() == content


def test_saved_results_are_of_the_records_as_they_are() -> None:
    for result in read_results():
        own = load_record(result["record"])
        assert result["epochs"] == own.config.epochs
        assert result["settings"] == own.settings
        assert result["published"] == own.published


def test_the_table_shows_every_record_and_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce") == 0
    said = capsys.readouterr().out
    for name in record_names():
        assert re.search(rf"^ {name} ", said, re.MULTILINE)
    assert [f"- {line}" in said for line in differences()] == [True] * len(differences())
    assert max(len(line) for line in said.partition("what differs")[0].splitlines()) <= 80


def test_the_documentation_has_the_table_and_what_differs() -> None:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *table(read_results())]
    text = "\n".join(f"| {' | '.join(row)} |".replace("\n", "<br>") for row in rows)
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    assert text in page, f"docs/records.md needs\n{text}"
    for line in differences():
        assert f"- {line}" in " ".join(page.split()), f"docs/records.md needs\n- {line}"


def test_the_documentation_has_the_pictures_of_what_was_measured() -> None:
    results = sorted(read_results(), key=lambda each: len(each["wrong"]))
    best = {each["record"]: each for each in results if "curves" in each or "mistakes" in each}  # of most seeds
    wanted, curves = [], []
    for name, each in best.items():
        errors = [100 * wrong / each["test_samples"] for wrong in each["wrong"]]
        if "curves" in each:
            curves.append((compare(record(1.0), errors, each["test_samples"]).mean, name))
        if "mistakes" in each:
            kind = "committee" if "members" in each else "seed"
            wrong = [{sample for sample, _ in pairs} for pairs in each["mistakes"]]
            alt = f"{name} gets {len(set.union(*wrong)):,} of {each['test_samples']:,} test samples wrong"
            alt += f", {len(set.intersection(*wrong)):,} with every {kind}" * (len(wrong) > 1)
            wanted.append(f"![{alt}](figures/mistakes-{name}.png)")
    if curves:
        errors = ", ".join(f"{name} {mean:.2f} %" for mean, name in sorted(curves, reverse=True))
        wanted.insert(0, f"![Test error over the epochs, at the end: {errors}](figures/records.png)")
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    missing = [line for line in wanted if line not in page]
    assert not missing, "docs/records.md needs\n" + "\n".join(missing)


@pytest.mark.parametrize("wrong", [70, 35, 29])
def test_a_result_exactly_at_the_gate_reaches_it(wrong: int) -> None:
    row = SimpleNamespace(metrics={"test_accuracy": 1 - wrong / 10_000})
    errors = [100 * each / 10_000 for each in [reproduce._wrong(row, 10_000)]]
    assert compare(record(None, wrong / 100), errors, 10_000).reached
    assert not compare(record(None, wrong / 100), [error + 0.01 for error in errors], 10_000).reached


def test_a_missing_file_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", "nofile.toml") == 2
    assert "nofile.toml: No such file or directory" in capsys.readouterr().err
