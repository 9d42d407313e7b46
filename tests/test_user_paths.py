"""``~`` and ``~user`` are the home folder in every path that a command or a public function takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import common, markdown, throughput
from gpumlp import (
    MLP,
    BestCheckpoint,
    TensorBoard,
    fit,
    load_dataset,
    load_digits,
    load_mnist,
    load_npz,
)
from gpumlp.data.mnist import ENVIRONMENT_VARIABLE, mnist_folders
from gpumlp.files import PathError, user_path
from gpumlp.predicting import predict_files
from gpumlp.report import report_page
from tests.command_helpers import DIGITS, run
from tests.data_helpers import small_mnist, write_files

NEW = (*DIGITS, "--hidden", "4", "--epochs", "1")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert run("train", *NEW, "--quiet", "--out", home / "run") == 0
    train, test = load_digits()
    np.save(home / "x.npy", test.images[:3])
    arrays = {"x_train": train.images, "y_train": train.labels, "x_test": test.images, "y_test": test.labels}
    np.savez(home / "data.npz", **arrays)
    MLP([4, 2], device="cpu").save(home / "model")
    return home


@pytest.fixture
def home(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the current one is another, and empty."""
    folder = Path(shutil.copytree(once, tmp_path / "home"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (("train", *NEW, "--out", "~/new"), "new/metrics.json"),
        (("train", *NEW, "--report", "--log", "tensorboard", "--out", "~/new"), "new/report.html"),
        (("train", "--resume", "~/run", "--epochs", 2), None),
        (
            ("sweep", *NEW[:3], "cpu", "--epochs", 1, "--grid", "hidden=2", "--jobs", 1, "--out", "~/s"),
            "s/sweep.csv",
        ),
        (
            (
                "reproduce",
                "digits",
                "--device",
                "cpu",
                "--seeds",
                1,
                "--jobs",
                1,
                "--out",
                "~/r",
                "--save",
                "~/r.json",
            ),
            "r.json",
        ),
        (
            ("train", "--dataset", "~/data.npz", "--epochs", 1, "--device", "cpu", "--out", "~/new"),
            "new/config.json",
        ),
        (("evaluate", "~/run"), None),
        (("history", "~/run", "--csv", "~/epochs.csv"), "epochs.csv"),
        (("history", "~"), None),
        (("diagnose", "~/run"), None),
        (("predict", "~/run", "~/x.npy", "--out", "~/p.csv"), "p.csv"),
        (("export", "~/run", "--format", "npz"), "run/network.npz"),
        (("export", "~/model", "--format", "npz", "--out", "~/n.npz"), "n.npz"),
        (("export", "~/run", "--format", "html", "--out", "~/n.html"), "n.html"),
        (("report", "~/run"), "run/report.html"),
        (("report", "~/run", "--out", "~/page.html"), "page.html"),
        (("figures", "activations", "--out", "~/figures"), "figures/activations.png"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_commands_read_and_write_in_the_home_folder(
    words: tuple[object, ...], written: str | None, home: Path
) -> None:
    assert run(*map(str, words)) == 0
    assert not list(Path().iterdir())
    if written is not None:
        assert (home / written).is_file()


NOBODY = "~gpumlp-nobody/x"


@pytest.mark.parametrize(
    "words",
    [
        ("train", *NEW, "--out", NOBODY),
        ("train", "--resume", NOBODY),
        ("train", "--dataset", NOBODY + ".npz"),
        ("train", "--dataset", "mnist", "--data-dir", NOBODY),
        ("evaluate", NOBODY),
        ("history", NOBODY),
        ("history", "~/run", "--csv", NOBODY + ".csv"),
        ("diagnose", NOBODY),
        ("predict", NOBODY, "~/x.npy"),
        ("predict", "~/run", "~/x.npy", "--out", NOBODY + ".csv"),
        ("export", NOBODY),
        ("export", "~/run", "--format", "npz", "--out", NOBODY + ".npz"),
        ("report", NOBODY),
        ("report", "~/run", "--out", NOBODY + ".html"),
        ("figures", "activations", "--out", NOBODY),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_user_who_does_not_exist_is_one_line(words: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*map(str, words)) == 2
    out, err = capsys.readouterr()
    assert out == "" or words[0] == "train"
    assert len(err.splitlines()) == 1
    assert "~gpumlp-nobody has no home folder; write the path out, or ./~gpumlp-nobody" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("train", *NEW, "--out", ""),
        ("train", "--resume", ""),
        ("train", "--dataset", "mnist", "--data-dir", ""),
        ("sweep", *NEW[:4], "--grid", "hidden=2,4", "--out", ""),
        ("reproduce", "digits", "--out", ""),
        ("figures", "activations", "--out", ""),
        ("evaluate", ""),
        ("evaluate", "~/run", ""),
        ("history", ""),
        ("history", "~/run", "--csv", ""),
        ("diagnose", ""),
        ("diagnose", "~/run", ""),
        ("predict", "", "~/x.npy"),
        ("predict", "~/run", "~/x.npy", "--out", ""),
        ("export", ""),
        ("export", "~/run", "--format", "npz", "--out", ""),
        ("report", ""),
        ("report", "~/run", "--out", ""),
        ("shuffle", "", "~/x.npy", "out"),
        ("shuffle", "~/x.npy", "~/x.npy", ""),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_an_empty_path_is_one_line(words: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*map(str, words)) == 2
    out, err = capsys.readouterr()
    assert out == "" or words[0] == "train"
    assert len(err.splitlines()) == 1
    assert "got an empty one" in err or "expected a folder, got ''" in err
    assert not list(Path().iterdir())


def test_an_empty_path_in_python() -> None:
    for path, message in (("", "expected a path, got an empty one"), ("a\0b", "a path without null characters")):
        with pytest.raises(PathError, match=message):
            user_path(path)


def test_a_file_of_a_user_who_does_not_exist_ends_its_own_row(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", "~/run", NOBODY, "~/x.npy") == 1
    out, err = capsys.readouterr()
    assert "x.npy" in out
    assert "~gpumlp-nobody has no home folder" in err


def test_the_data_folder_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(home / "mnist", small_mnist())
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "~/mnist")
    assert load_mnist(download=False)[0].name == "mnist-like"
    assert load_dataset("mnist", "~/mnist")[2].startswith(f"The files in {home / 'mnist'} have")
    assert dict(mnist_folders())[ENVIRONMENT_VARIABLE] == f"{home / 'mnist'} (holds MNIST)"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, NOBODY)
    assert "has no home folder" in dict(mnist_folders())[ENVIRONMENT_VARIABLE]
    with pytest.raises(PathError, match="has no home folder"):
        load_mnist(download=False)


def test_without_a_home_folder_there_is_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pwd = pytest.importorskip("pwd", reason="on Windows every user has a home folder")
    for name in ("HOME", "XDG_CACHE_HOME", ENVIRONMENT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda user: {}[user])  # as for a user number that a container is given
    monkeypatch.chdir(tmp_path)
    assert run("info") == 0
    assert "there is no home folder for a cache; set HOME" in capsys.readouterr().out
    assert run("train", "--device", "cpu", "--hidden", "4", "--epochs", "1", "--out", "run") == 0
    assert "digits (1,797 images of 8 x 8) are used instead" in capsys.readouterr().out
    assert run("train", "--dataset", "mnist", "--device", "cpu") == 2
    assert "MNIST is not available: there is no home folder for a cache" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


PYTHON: dict[str, Callable[[str], object]] = {
    "MLP.load": lambda folder: MLP.load(f"{folder}/model", device="cpu"),
    "MLP.save": lambda folder: MLP([4, 2], device="cpu").save(f"{folder}/saved"),
    "load_npz": lambda folder: load_npz(f"{folder}/data.npz"),
    "load_dataset": lambda folder: load_dataset(f"{folder}/data.npz"),
    "BestCheckpoint": lambda folder: _fit(BestCheckpoint(f"{folder}/best.safetensors", "train_loss")),
    "TensorBoard": lambda folder: _fit(TensorBoard(f"{folder}/log")),
    "report_page": lambda folder: report_page([f"{folder}/run"]),
    "benchmarks": lambda folder: common.output_folder(throughput.Options(out=f"{folder}/results")),
}


def _fit(callback: Any) -> None:
    fit(MLP([64, 10], device="cpu"), load_digits()[1], epochs=1, callbacks=callback)


@pytest.mark.parametrize("function", PYTHON)
def test_functions_read_and_write_in_the_home_folder(function: str, home: Path) -> None:
    PYTHON[function]("~")
    assert not list(Path().iterdir())
    with pytest.raises(PathError, match="~gpumlp-nobody has no home folder"):
        PYTHON[function]("~gpumlp-nobody")
    assert not list(Path().iterdir())


def test_files_to_predict(home: Path) -> None:
    results = predict_files(MLP.load("~/run", device="cpu"), ["~/x.npy"])
    assert results[0].error is None


def test_files_of_results(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(Path(markdown.__file__).parent / "results" / "compare-cpu.json", home)
    assert markdown.main(["~/compare-cpu.json"]) == 0
    assert markdown.main([f"{NOBODY}.json"]) == 2
    assert "has no home folder" in capsys.readouterr().err
