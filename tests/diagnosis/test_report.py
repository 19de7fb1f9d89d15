"""The report is one file that shows what was found, whatever was found, and fetches nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("bokeh")

import gradcore
from gradcore.diagnosis import Config, configure, report, report_draw, report_figures, study
from gradcore.diagnosis.wording import BASELINES, number
from gradcore.training.monitor import Finding

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$$x^2$$ & {{ 1 }} <!-- figure loss -->",
)
MOST = 4_000_000
QUICK: dict[str, Any] = {"steps": 6, "hidden": 8, "seq_len": 20, "seeds": 2}


@pytest.fixture(scope="module")
def plain() -> Any:
    return study(configure("sunspots", **QUICK))


@pytest.fixture(scope="module")
def own() -> Any:
    gru = gradcore.GRU(2, 6, num_layers=2, bidirectional=True, rng=0)
    x, target = np.random.default_rng(0).normal(size=(30, 4, 2)), np.zeros((30, 4, 1), np.float32)
    model = gradcore.Sequential(gru, gradcore.Linear(12, 1, rng=0))
    return gradcore.diagnose(model, [(x.astype(np.float32), target)], gradcore.losses.mse)


@pytest.fixture(scope="module")
def hostile(plain: Any) -> Any:
    """A study whose names all come from somebody who means harm."""
    bad = " ".join(HOSTILE)
    finding = dataclasses.replace(made_up(3), kind=bad, where=bad, message=bad, advice=bad)
    tried = [dataclasses.replace(trial, name=f"{trial.name} {bad}", findings=(finding,)) for trial in plain.trials]
    forecast = dataclasses.replace(
        plain.forecast,
        matrices=tuple(dataclasses.replace(each, name=bad) for each in plain.forecast.matrices),
        spectra=tuple(dataclasses.replace(each, name=bad) for each in plain.forecast.spectra),
    )
    return dataclasses.replace(
        plain,
        forecast=forecast,
        measurement=dataclasses.replace(plain.measurement, names=(bad,)),
        trials=tuple(tried),
        verdict=dataclasses.replace(
            plain.verdict, remedy=tried[1].name, finding=bad, advice=bad, python=f"load({bad!r})"
        ),
        start=dataclasses.replace(
            plain.start,
            task=bad,
            data={"target": bad, bad: [bad, {bad: bad}]},
            baselines={"constant": 1.0, bad: 2.0},
            config=dataclasses.replace(plain.start.config, source=bad, target=bad),
        ),
    )


def made_up(step: int) -> Finding:
    return Finding("large_gradients", "l0", "high", step, step, 1, {}, "It is large.", "Clip it.")


def nowhere_finite(found: Any) -> Any:
    """The same study with NaN, infinities and zeros wherever there are numbers."""

    def spoiled(array: Any) -> Any:
        out = np.array(array, copy=True)
        out.flat[0::3], out.flat[1::3], out.flat[2::3] = math.nan, math.inf, 0
        return out

    history = gradcore.History()
    for loss in (math.nan, math.inf, -math.inf):
        history.append(loss, grad_norm=loss)
    finding = made_up(10**6)
    tried = tuple(
        dataclasses.replace(
            trial,
            loss=math.nan,
            held_out_losses=(math.nan, math.inf),
            largest_norm=0.0,
            history=history,
            findings=(finding,),
        )
        for trial in found.trials
    )
    nothing = math.nan
    spoilt = {"predicted": nothing, "upper_bound": math.inf, "with_above": nothing, "measured": nothing}
    rates = tuple(dataclasses.replace(each, **spoilt) for each in found.comparison.layers)
    return dataclasses.replace(
        found,
        forecast=dataclasses.replace(
            found.forecast,
            rate=math.inf,
            factor=nothing,
            curves=spoiled(found.forecast.curves),
            matrices=tuple(
                dataclasses.replace(each, radius=nothing, norm=math.inf, eigenvalues=spoiled(each.eigenvalues))
                for each in found.forecast.matrices
            ),
            spectra=tuple(
                dataclasses.replace(each, largest=-math.inf, exponents=spoiled(each.exponents))
                for each in found.forecast.spectra
            ),
        ),
        measurement=dataclasses.replace(
            found.measurement, norms=spoiled(found.measurement.norms), rate=nothing, factor=nothing
        ),
        comparison=dataclasses.replace(found.comparison, layers=rates),
        trials=tried,
        verdict=dataclasses.replace(found.verdict, kind="diverged", remedy=None, loss=nothing),
        threshold=dataclasses.replace(found.threshold, max_norm=math.inf),
        lengths=tuple(dataclasses.replace(each, rate=math.inf, factor=nothing) for each in found.lengths),
        start=dataclasses.replace(found.start, baselines={"constant": nothing}, data={"mean": nothing}),
    )


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.heads: list[str] = []
        self.inside: list[str] = []
        self.feed(html)
        assert self.inside == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path", "circle") or self.inside[-1:] == ["g"]:
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.inside[-1:] and self.inside[-1] not in ("script", "style"):
            self.text += data
            if self.inside[-1] in ("h1", "h2"):
                self.heads.append(data)

    def count(self, tag: str, **attrs: str) -> int:
        return sum(name == tag and attrs.items() <= given.items() for name, given in self.tags)


def checked(html: str, n_figures: int) -> Page:
    """What holds for each report."""
    assert len(html.encode()) < MOST
    page = Page(html)
    assert page.count("figure") == page.count("div", role="img") == n_figures
    for figure in re.findall(r"<figure>.*?</figure>", html, flags=re.S):
        assert figure.count("<details>") == figure.count("<table") == 1
        assert re.search(r"<tbody><tr><td>", figure), "no numbers"
        (caption,) = re.findall(r"<figcaption>(.*?)(?:<small>.*)?</figcaption>", figure)
        assert f'aria-label="{caption}"' in figure
        assert re.fullmatch(r".{15,}\.", caption, flags=re.S)
        assert "data-root-id" in figure
    assert not [
        given for _, given in page.tags if given.keys() & {"src", "href", "srcset", "action", "data", "background"}
    ]
    assert not {"img", "link", "iframe", "object", "embed", "base"} & {name for name, _ in page.tags}
    assert not re.search(r"@import|url\(\s*['\"]?https?:", html)
    (policy,) = (given["content"] for name, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    return page


# ---- what is in the file ---------------------------------------------------------------------------------------------


def test_everything_in_its_order(plain: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "report.html"
    with caplog.at_level(logging.WARNING):
        plain.to_html(path)
    assert not caplog.records  # bokeh has nothing to say about the figures
    page = checked(path.read_text("utf-8"), 6)
    assert page.heads == [
        "The gradient vanishes", "In detail", "The Python to copy", "Growth over time steps", "Training as configured",
        "Norms by layer and training step", "Eigenvalues", "Trials", "Other lengths", "Data as read", "How it was made",
    ]  # fmt: skip
    for text in (plain.verdict.finding, plain.verdict.advice, plain.verdict.python, plain.start.task):
        assert text in page.text
    for trial in plain.trials:
        assert trial.name in page.text
    for name, loss in plain.start.baselines.items():
        assert f"{BASELINES[name]}, {number(loss)}" in page.text
    assert "gradcore diagnose --hidden 8 --seq-len 20 --steps 6 --seeds 2 --out DIR sunspots" in page.text
    assert "seeds0, 1" in page.text
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_each_cell_with_two_layers(cell: str) -> None:
    found = study(configure("adding", cell=cell, layers=2, **QUICK))
    page = checked(report.page(found), 6)
    assert "0.l1, measured" in page.text
    assert "0.weight_hh_l1" in page.text


def test_a_training_that_diverges() -> None:
    found = study(configure("sunspots", lr=1e30, **QUICK))
    assert not np.isfinite(found.trials[0].history.grad_norm).all()
    page = checked(report.page(found), 6)
    assert page.heads[0] == "The training diverges"
    assert "steps have none that is finite" in page.text


def test_a_model_of_ones_own(own: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.html"
    own.to_html(path)
    page = checked(path.read_text("utf-8"), 2)
    assert page.heads == ["The gradient vanishes", "Growth over time steps", "Eigenvalues", "Machine and versions"]
    assert "0.l1_reverse, measured" in page.text


def test_a_forecast_begins_where_the_loss_is(own: Any) -> None:
    panel = report_figures.time_steps(own)
    at = {name: i for i, name in enumerate(panel.header)}
    for name, row in (("0.l1", panel.rows[-1]), ("0.l1_reverse", panel.rows[0])):
        assert row[at[f"{name}, measured"]] == row[at[f"{name}, forecast"]]


def test_nothing_is_finite(plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        page = checked(report.page(nowhere_finite(plain)), 5)
    assert not caplog.records
    assert page.heads[0] == "The training diverges"
    assert "The growth cannot be measured" in page.text


def test_hostile_names_are_text(hostile: Any, plain: Any) -> None:
    html = report.page(hostile)
    page = checked(html, 6)
    for bad in HOSTILE:
        assert bad in page.text
    assert not re.search(r"<script[^>]*>alert|<img", html)
    assert page.count("script") == Page(report.page(plain)).count("script")
    assert page.count("img") == 0


def test_a_missing_bokeh_is_named(plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bokeh.embed", None)
    with pytest.raises(ImportError, match=r'^a report needs bokeh: pip install "gradcore\[cli\]"$'):
        plain.to_html(tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_whole_or_not_at_all(plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plain.to_html(path)
    assert [(file.name, file.read_text("utf-8")) for file in tmp_path.iterdir()] == [("report.html", "old")]
    with pytest.raises(TypeError, match=r"^path: "):
        plain.to_html(3)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (configure("sunspots"), "gradcore diagnose --out DIR sunspots"),
        (configure("sunspots", init="default"), "gradcore diagnose --init default --out DIR sunspots"),
        (configure("sunspots", gain=1.4), "gradcore diagnose --gain 1.4 --out DIR sunspots"),
        (configure("sunspots", cell="lstm", lr=0.1), "gradcore diagnose --cell lstm --lr 0.1 --out DIR sunspots"),
        (configure("my file.csv", target="a b"), "gradcore diagnose --target 'a b' --out DIR 'my file.csv'"),
        (configure("-x.csv", target=2), "gradcore diagnose --target 2 --out DIR -- -x.csv"),
        (
            Config("adding", cell="gru", gate_bias=1.0),
            "gradcore.diagnosis.study(gradcore.diagnosis.configure('adding', cell='gru', gate_bias=1.0))",
        ),
    ],
)
def test_the_command_is_the_one_that_was_given(config: Config, line: str) -> None:
    assert report.command(config) == line


def test_thinned_lines_keep_what_stands_out() -> None:
    values = np.ones(100_000)
    values[[777, 5_000, 31_234]] = 1e6, -1e6, math.nan
    kept = report_draw.thinned(values)
    assert len(kept) <= report_draw.MOST_POINTS
    assert {0, 777, 5_000, 31_234, 99_999} <= {*kept.tolist()}
    np.testing.assert_array_equal(report_draw.thinned(values[:50]), np.arange(50))


def test_a_long_training_stays_small(plain: Any) -> None:
    history, rng = gradcore.History(), np.random.default_rng(0)
    for norms in rng.lognormal(size=(20_000, 6)):
        history.append(float(norms[0]), gradcore.grad_norm({f"weight {i}": norms[i : i + 1] for i in range(6)}))
    long = dataclasses.replace(plain.trials[0], history=history)
    page = checked(report.page(dataclasses.replace(plain, trials=(long, *plain.trials[1:]))), 6)
    assert "weight 5" in page.text


# ---- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, whose name server knows no name."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def opened(browser: Any, found: Any, path: Path, *, width: int = 390, scheme: str = "light") -> None:
    """Open the report of a diagnosis, and wait until its figures are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    found.to_html(path)
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())
    WebDriverWait(browser, 120).until(lambda _: browser.execute_script(DRAWN))


# Bokeh draws in shadow trees, which querySelectorAll does not enter.
DRAWN = """
const plots = [...document.querySelectorAll(".plot")]
const below = (node) => [node, ...[...(node.shadowRoot?.children ?? []), ...node.children].flatMap(below)]
window.sizes = plots.map((plot) => {
    const found = below(plot).filter((node) => ["canvas", "svg"].includes(node.tagName.toLowerCase()))
    const boxes = found.map((node) => node.getBoundingClientRect())
    return [Math.max(0, ...boxes.map((box) => box.width)), Math.max(0, ...boxes.map((box) => box.height))]
})
window.drawn = plots.flatMap(below).filter((node) => node.tagName === "path" && node.getAttribute("d")).length
return Boolean(window.Bokeh) && Bokeh.documents.length === 1 && Bokeh.documents[0].is_idle && window.drawn > 0
"""


def quiet(browser: Any) -> None:
    """Nothing was asked of a network, and nothing went wrong."""
    loud = [entry for entry in browser.get_log("browser") if entry["level"] not in ("INFO", "DEBUG")]
    assert loud == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 0
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["plain", "own", "hostile", "nothing finite"])
def test_a_report_in_a_browser(
    kind: str, width: int, browser: Any, plain: Any, own: Any, hostile: Any, tmp_path: Path
) -> None:
    found = {"plain": plain, "own": own, "hostile": hostile, "nothing finite": nowhere_finite(plain)}[kind]
    opened(browser, found, tmp_path / "report.html", width=width)
    quiet(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script("return window.sizes")
    assert len(sizes) == {"own": 2, "nothing finite": 5}.get(kind, 6)
    for drawn_width, height in sizes:
        assert 300 <= drawn_width <= width
        assert height >= 200
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0


@pytest.mark.browser
def test_points_in_the_browser_are_those_of_the_history(browser: Any, plain: Any, tmp_path: Path) -> None:
    opened(browser, plain, tmp_path / "report.html")
    lines = browser.execute_script("""
        const models = Bokeh.documents[0].roots().flatMap((root) => [...root.references()])
        return models.filter((each) => each.type === "ColumnDataSource" && each.data.y).map((each) => [...each.data.y])
    """)
    history = plain.trials[0].history
    for values in (history.loss, history.grad_norm, plain.measurement.norms[0]):
        assert any(len(line) == len(values) and np.allclose(np.array(line, float), values) for line in lines)


@pytest.mark.browser
def test_light_dark_and_paper(browser: Any, plain: Any, tmp_path: Path) -> None:
    colors = {}
    ask = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    for scheme in ("light", "dark"):
        opened(browser, plain, tmp_path / "report.html", scheme=scheme)
        colors[scheme] = browser.execute_script(ask)
    assert colors["light"][0] == "rgb(255, 255, 255)"
    bright = {scheme: [sum(map(int, re.findall(r"\d+", each)[:3])) for each in both] for scheme, both in colors.items()}
    assert bright["light"][0] > bright["light"][1] + 500
    assert bright["dark"][0] < bright["dark"][1] - 500
    emulated = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    assert browser.execute_script(ask) == colors["light"]
    hidden = "return getComputedStyle(document.querySelector('.code button')).display"
    assert browser.execute_script(hidden) == "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.browser
@pytest.mark.parametrize("clipboard", [True, False])
def test_the_python_is_copied(clipboard: bool, browser: Any, plain: Any, tmp_path: Path) -> None:
    opened(browser, plain, tmp_path / "report.html")
    browser.execute_script("""
        const copied = (text) => { window.copied = text }
        const place = arguments[0] ? { writeText: async (text) => copied(text) } : undefined
        Object.defineProperty(navigator, "clipboard", { value: place, configurable: true })
        document.addEventListener("copy", () => copied(String(window.getSelection())))
    """, clipboard)  # fmt: skip
    browser.find_element("css selector", ".code button").click()
    assert browser.execute_script("return window.copied").strip() == plain.verdict.python
    assert browser.find_element("css selector", ".code button").text == "Copied"
