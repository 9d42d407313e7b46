"""The pages of `gpumlp.report` in a headless Chromium: self-contained, readable, and as exact as Python."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpumlp import ELU, MLP, Committee, Dataset, Inputs, LeakyReLU, Preprocessing, fit, load_dataset
from gpumlp.nn.activations import ACTIVATIONS
from gpumlp.nn.committee import members_of
from gpumlp.report import drawing_page, report_page, write_page
from gpumlp.report.page import render_report
from tests.command_helpers import DIGITS, run
from tests.report_helpers import trained

pytest.importorskip("jinja2")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium with its own profile; skips with the reason if there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def open_page(chrome: Any, path: Path, *, width: int = 1200, scheme: str = "light") -> None:
    """Load a file in a window of a width, with a preferred colour scheme."""
    for kind in ("browser", "performance"):
        chrome.get_log(kind)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    chrome.get(path.as_uri())


def console(chrome: Any) -> list[str]:
    """Errors and warnings in the console since the page was opened."""
    return [entry["message"] for entry in chrome.get_log("browser")]


def requests(chrome: Any) -> list[str]:
    """The addresses requested since the page was opened."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    addresses = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    return [address for address in addresses if not address.startswith(("data:", "chrome"))]


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset]:
    """MNIST if it is available, otherwise the digits."""
    train, test, _ = load_dataset("auto")
    return train, test


@pytest.fixture(scope="module")
def network(data: tuple[Dataset, Dataset]) -> MLP:
    train = data[0]
    model = MLP([train.features, 64, train.classes], seed=0, device="cpu")
    fit(model, train, epochs=3, batch_size=64)
    return model


@pytest.fixture(scope="module")
def pad(
    chrome: Any, data: tuple[Dataset, Dataset], network: MLP, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("pad") / "pad.html"
    write_page(path, drawing_page(network, data[1].feature_shape, title="A pad", data=data[1]))
    return path


@pytest.fixture(scope="module")
def reports(chrome: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on one run and one on two, of which one is called <b>."""
    folder = tmp_path_factory.mktemp("runs")
    words = (*DIGITS, "--epochs", 3, "--quiet")
    assert run("train", *words, "--out", folder / "one", "--report") == 0
    assert run("train", *words, "--out", folder / "<b>", "--hidden", "--validation", 0) == 0
    write_page(folder / "two.html", report_page([str(folder / "one"), str(folder / "<b>")]))
    for task in ("labels", "numbers"):
        write_page(folder / f"{task}.html", render_report([trained(task)]))
    return folder


def predictions(chrome: Any, images: np.ndarray) -> np.ndarray:
    script = "return arguments[0].map((pixels) => Array.from(window.gpumlp.predict(pixels)))"
    return np.array(chrome.execute_script(script, images.tolist()))


def shares(chrome: Any) -> list[str]:
    """The probabilities shown by the bars, after the drawing is painted."""
    chrome.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return [value.text for value in chrome.find_elements("css selector", "#pad-bars .value")]


def stroke(chrome: Any, *moves: tuple[int, int]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = chrome.find_element("id", "pad")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    actions = ActionChains(chrome, duration=10).move_to_element_with_offset(canvas, *moves[0]).click_and_hold()
    for move in moves[1:]:
        actions.move_by_offset(*move)
    actions.release().perform()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 400)])
@pytest.mark.parametrize("name", ["one/report.html", "two.html", "labels.html", "numbers.html"])
def test_reports_open_without_errors_requests_or_horizontal_scrolling(
    chrome: Any, reports: Path, name: str, scheme: str, width: int
) -> None:
    open_page(chrome, reports / name, width=width, scheme=scheme)
    ground = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness > 600) == (scheme == "light")
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width
    assert requests(chrome) == [(reports / name).as_uri()]
    assert console(chrome) == []


# For each element with text of its own: its name, and the contrast of the text as defined by WCAG 2.
CONTRASTS = """
const parse = (colour) => {
  const [r, g, b, a = 1] = colour.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
  return [...[r, g, b].map((part) => colour.startsWith("color(") ? part : part / 255), a];
};
const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]);
const ground = (element) => element
  ? over(parse(getComputedStyle(element).backgroundColor), ground(element.parentElement)) : [1, 1, 1];
const luminance = (colour) => {
  const [r, g, b] = colour.map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
document.querySelectorAll("details").forEach((element) => { element.open = true; });
return [...document.body.querySelectorAll("*")].filter((element) => !element.closest("script, style, option") &&
  [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim())).map((element) => {
    const style = getComputedStyle(element), below = ground(element);
    const text = over(parse(element.closest("svg") ? style.fill : style.color), below);
    const [dark, bright] = [luminance(text), luminance(below)].sort((a, b) => a - b);
    return [`${element.tagName}.${element.getAttribute("class")}`, (bright + 0.05) / (dark + 0.05)];
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one/report.html", "two.html"])
def test_text_has_enough_contrast(chrome: Any, reports: Path, name: str, scheme: str) -> None:
    open_page(chrome, reports / name, scheme=scheme)
    found = chrome.execute_script(CONTRASTS)
    assert len(found) > 200
    assert {element for element, _ in found} >= {"SPAN.said", "TD.right", "TD.wrong", "TD.none", "text.null"}
    assert {element: contrast for element, contrast in found if contrast < 4.5} == {}


def test_names_are_text_and_never_markup(chrome: Any, reports: Path) -> None:
    open_page(chrome, reports / "two.html")
    assert "<b>" in chrome.find_element("css selector", ".facts thead").text
    assert [option.text for option in chrome.find_elements("css selector", "#pad-network option")][1].startswith(
        "<b>"
    )


@pytest.mark.parametrize("name", ["two.html", "labels.html", "numbers.html"])
def test_every_section_control_and_picture_has_a_name(chrome: Any, reports: Path, name: str) -> None:
    open_page(chrome, reports / name)
    nameless = chrome.execute_script(
        'return [...document.querySelectorAll(\'img:not([alt]), img[alt=""], table:not(:has(> caption)),'
        "section:not([aria-labelledby]), [role=img]:not([aria-label]), canvas:not([aria-label])')]"
        ".map((element) => element.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    unlabelled = chrome.execute_script(
        "return [...document.querySelectorAll('input, select')].filter((field) => !field.labels.length).length"
    )
    assert unlabelled == 0
    identities = chrome.execute_script(
        "return [...document.querySelectorAll('[id]')].map((element) => element.id)"
    )
    assert len(identities) == len(set(identities))
    for link in chrome.find_elements("css selector", "nav a"):
        assert chrome.find_elements("css selector", link.get_dom_attribute("href"))


def test_the_slider_shows_the_values_of_an_epoch(chrome: Any, reports: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(chrome, reports / "one/report.html")
    slider, readout = (
        chrome.find_element("id", "curves-epoch"),
        chrome.find_element("css selector", "#curves .readout"),
    )
    last = readout.text
    slider.send_keys(Keys.ARROW_LEFT)
    assert chrome.find_element("css selector", "#curves .at").text == "2 of 3"
    assert readout.text != last
    assert readout.text.startswith("Loss")
    assert "training" in readout.text


def test_the_page_computes_the_probabilities_of_python(
    chrome: Any, pad: Path, data: tuple[Dataset, Dataset], network: MLP
) -> None:
    open_page(chrome, pad)
    images = data[1].images[:100].reshape(100, -1)
    inputs = images / 255 if images.dtype == np.uint8 else images
    np.testing.assert_allclose(predictions(chrome, inputs), network.predict_proba(images), atol=1e-4)
    assert requests(chrome) == [pad.as_uri()]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, ["gelu", ELU(0.5)], [LeakyReLU(0.2), "silu"]], ids=str)
def test_every_activation_runs_in_the_page(chrome: Any, tmp_path: Path, activation: Any) -> None:
    options = {"initializer": "normal", "seed": 1, "device": "cpu"}
    model = MLP([16, 12, 9, 12], activation, dropout=[0.5, 0], input_dropout=0.2, **options)
    start = model.state_dict()
    model.load_state_dict({name: 100 * tensor for name, tensor in start.items()})  # far from linear
    write_page(tmp_path / "pad.html", drawing_page(model, (4, 4)))
    open_page(chrome, tmp_path / "pad.html")
    images = np.random.default_rng(0).random((100, 16))
    np.testing.assert_allclose(predictions(chrome, images), model.predict_proba(images), atol=1e-4)
    assert console(chrome) == []


def test_a_page_with_a_committee_computes_the_mean_and_shows_no_hidden_layers(chrome: Any, tmp_path: Path) -> None:
    committee = Committee([MLP([16, 12 + seed, 10], "tanh", seed=seed, device="cpu") for seed in range(3)])
    write_page(tmp_path / "pad.html", drawing_page(committee, (4, 4)))
    open_page(chrome, tmp_path / "pad.html")
    images = np.random.default_rng(0).random((100, 16))
    np.testing.assert_allclose(predictions(chrome, images), committee.predict_proba(images), atol=1e-4)
    assert not chrome.find_elements("css selector", "#pad-hidden canvas")
    assert console(chrome) == []


def drawings(size: int) -> np.ndarray:
    """uint8 images: blank, full, dots, lines of one pixel at all slants, and faint lines."""
    y, x = np.mgrid[:size, :size]
    images = [np.zeros((size, size)), np.full((size, size), 255)]
    images += [255 * ((y == row) & (x == column)) for row, column in ((0, 0), (3, size - 1), (size // 2, 2))]
    for slope in (-2, -0.7, 0, 0.3, 1):
        images.append(255 * (np.abs(x - size / 2 - slope * (y - size / 2)) < 0.5))
    images += [255 * (y == 2), 255 * ((y == size // 2 + x // 3) & (x > 1)), 7 * (x == y)]
    # Beside a line, one of 2 % of its brightness, which is not ink yet, and one just above.
    images += [50 * k * (x == size // 2) + (k + more) * (x == 1) for k in range(1, 6) for more in (0, 1)]
    return np.array(images).astype(np.uint8)


PREPROCESSING: list[Preprocessing | None] = [
    Preprocessing(deskew=True), None, Preprocessing(width=5), Preprocessing(deskew=True, width=3),
    Preprocessing(width=8), Preprocessing(deskew=True, width=5),
]  # fmt: skip


def preprocessing_networks(shape: tuple[int, int], dtype: str) -> list[MLP]:
    """An untrained network for images of a shape with each of `PREPROCESSING`."""
    members = [MLP([shape[0] * shape[1], 12, 10], seed=seed, device="cpu") for seed in range(len(PREPROCESSING))]
    for member, preprocessing in zip(members, PREPROCESSING, strict=True):
        member.inputs = Inputs(shape, dtype, "own", preprocessing)
    return members


def made(model: MLP | Committee, images: np.ndarray) -> np.ndarray:
    """Images after each preprocessing of a network, ``(images, preprocessings, pixels)``."""
    found = dict.fromkeys(member.inputs.preprocessing for member in members_of(model) if member.inputs)
    return np.stack([(each(images) if each else images).reshape(len(images), -1) for each in found], axis=1)


@pytest.mark.parametrize(
    ("name", "dtype"), [("digits", "uint8"), ("digits", "float32"), ("digits", "any"), ("auto", "uint8")]
)
def test_the_page_preprocesses_images_as_python(chrome: Any, tmp_path: Path, name: str, dtype: str) -> None:
    """Also blank images, dots and thin lines; a network alone, and each member of a committee in its own way."""
    test = load_dataset(name)[1]
    images = test.images[:60] if test.images.dtype == np.uint8 else np.rint(255 * test.images[:60])
    images = np.concatenate([drawings(images.shape[1]), images.astype(np.uint8)])
    images = images // 16 if dtype == "any" else images
    given = (images / 255).astype(np.float32) if dtype == "float32" else images
    white = 255 if dtype == "uint8" else 1
    networks = preprocessing_networks(test.feature_shape, dtype)
    for model in (Committee([*networks, networks[0]]), *networks):
        write_page(tmp_path / "pad.html", drawing_page(model, test.feature_shape))
        open_page(chrome, tmp_path / "pad.html")
        inputs = (given.reshape(len(given), -1) / white).astype(np.float32)  # as those of drawings
        probabilities = model.predict_proba(given)
        found = predictions(chrome, inputs)
        np.testing.assert_allclose(found, probabilities, atol=1e-4)
        np.testing.assert_array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))
        script = "return arguments[0].map((each) => gpumlp.preprocessed(each).map((image) => Array.from(image)))"
        seen = np.array(chrome.execute_script(script, inputs.tolist()))
        numbers = given.astype(np.float32) if dtype == "any" else given
        np.testing.assert_allclose(seen, made(model, numbers) / white, atol=1e-6)  # far below a grey level
        assert console(chrome) == []


def test_a_drawing_is_preprocessed_and_shown_as_the_network_sees_it(chrome: Any, tmp_path: Path) -> None:
    networks = preprocessing_networks((28, 28), "uint8")
    captions = ["deskewed", "unchanged", "5 pixels wide"]
    for model, shown in ((Committee(networks[:3]), captions), (networks[0], captions[:1]), (networks[1], [])):
        write_page(tmp_path / "pad.html", drawing_page(model, (28, 28)))
        open_page(chrome, tmp_path / "pad.html")
        stroke(chrome, (60, -100), (-120, 200))
        percents = [float(text.removesuffix(" %")) for text in shares(chrome)]
        drawing = np.array(chrome.execute_script("return Array.from(gpumlp.drawing())")).reshape(1, 28, 28)
        image = np.rint(255 * drawing).astype(np.uint8)  # as of a picture
        np.testing.assert_allclose(percents, 100 * model.predict_proba(image)[0], atol=0.1)
        levels = chrome.execute_script(
            "return [...document.querySelectorAll('#pad-seen canvas')].map((canvas) => Array.from(canvas"
            ".getContext('2d').getImageData(0, 0, 28, 28).data).filter((_, place) => place % 4 === 0))"
        )
        np.testing.assert_allclose(np.array(levels), made(model, image)[0].astype(int), atol=1)
        texts = [each.text for each in chrome.find_elements("css selector", "#pad-seen figcaption")]
        assert texts == shown
        assert console(chrome) == []
    changed = made(networks[0], image).astype(int) - image.ravel()
    assert np.abs(changed).max() > 100  # the stroke is slanted


def test_a_drawing_of_a_test_image_is_centred_like_the_image(
    chrome: Any, pad: Path, data: tuple[Dataset, Dataset], network: MLP
) -> None:
    """Images five times as large and off centre are restored."""
    open_page(chrome, pad)
    images = data[1].images[:20].astype(np.float64)
    images /= images.max()
    large = np.pad(np.kron(images, np.ones((5, 5))), [(0, 0), (0, 30), (20, 0)])
    script = (
        "const [ink, width, height] = arguments;"
        "return ink.map((drawing) => Array.from(window.gpumlp.centre(drawing, width, height)))"
    )
    flat = large.reshape(len(large), -1).round(3)
    back = np.array(chrome.execute_script(script, flat.tolist(), large.shape[2], large.shape[1]))
    agree = network.predict(back.astype(np.float32)) == network.predict(data[1].images[:20])
    assert agree.mean() >= 0.9
    assert np.median(np.abs(back.reshape(images.shape) - images).mean(axis=(1, 2))) < 0.03


def test_drawing_changes_the_probabilities_and_can_be_undone(chrome: Any, pad: Path) -> None:
    open_page(chrome, pad)
    assert set(shares(chrome)) == {"–"}
    stroke(chrome, (-60, -80), (100, 0), (-60, 160))
    one = shares(chrome)
    assert set(one) != {"–"}
    stroke(chrome, (-60, 60), (120, 0))
    assert shares(chrome) != one
    time.sleep(0.6)
    assert chrome.find_element("id", "pad-result").text.startswith("It looks like")
    assert "above 0" in chrome.find_element("css selector", "#pad-hidden figcaption").text
    chrome.find_element("id", "pad-undo").click()
    assert shares(chrome) == one
    chrome.find_element("id", "pad-clear").click()
    assert set(shares(chrome)) == {"–"}
    assert console(chrome) == []


def test_drawing_works_from_the_keyboard(chrome: Any, pad: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(chrome, pad)
    canvas = chrome.find_element("id", "pad")
    canvas.send_keys(Keys.ARROW_UP * 8)
    assert set(shares(chrome)) == {"–"}  # the brush is still up
    canvas.send_keys(Keys.SPACE + Keys.ARROW_DOWN * 16)
    one = shares(chrome)
    assert set(one) != {"–"}
    assert chrome.find_element("id", "pad-brush").text == "brush down"
    canvas.send_keys(Keys.SPACE + Keys.ARROW_UP * 5)
    assert shares(chrome) == one
    canvas.send_keys("z")
    assert set(shares(chrome)) == {"–"}


def test_another_network_can_be_chosen(chrome: Any, reports: Path) -> None:
    from selenium.webdriver.support.select import Select

    open_page(chrome, reports / "two.html")
    stroke(chrome, (-40, -60), (80, 0), (-30, 120))
    first = shares(chrome)
    assert chrome.find_elements("css selector", "#pad-hidden canvas")
    Select(chrome.find_element("id", "pad-network")).select_by_index(1)
    assert shares(chrome) != first
    assert not chrome.find_elements("css selector", "#pad-hidden canvas")  # softmax regression
