"""The page of `gradcore dashboard`: what its document holds, that the server is local, and that a browser shows it."""

from __future__ import annotations

import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools import COMMAND_LINE, HANG

import gradcore
from gradcore import cli
from gradcore.training.live import FORMAT, VERSION
from gradcore.viewer.curve import Curve
from gradcore.viewer.dashboard import Page, drawable

pytest.importorskip("bokeh")

ENV = {**os.environ, "PYTHONPATH": str(Path(gradcore.__file__).parent.parent), "GRADCORE_NUM_THREADS": "1"}
COMMAND = [*COMMAND_LINE, "dashboard"]
START = {"type": "start", "format": FORMAT, "version": VERSION, "started": "now", "machine": {}, "names": {}}
END = {"type": "end", "status": "ended", "error": None, "steps": 2, "seconds": 1.0}
FINDING = {
    "type": "finding",
    "kind": "nan_loss",
    "where": "",
    "severity": "critical",
    "step": 2,
    "last_step": 2,
    "count": 1,
    "message": "The loss became <script>alert(1)</script>.",
    "advice": "Clip.",
}


def step(i: int, loss: Any = 0.5, **more: Any) -> dict[str, Any]:
    line = {"type": "step", "step": i, "epoch": 0, "loss": loss, "grad_norm": 2.0, "clipped": False, "skipped": False}
    ends = {"dh_first": {"l0": 1e-9}, "dh_last": {"l0": 0.25}}
    return {**line, **ends, "lr": 0.1, "seconds": i / 10, **more}


def text(*found: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_text(text(START, *map(step, range(5)), FINDING), encoding="utf-8")
    return path


# ---- the document ----------------------------------------------------------------------------------------------------


def opened(path: Path) -> tuple[Page, Any]:
    from bokeh.document import Document

    page, document = Page(path), Document()
    page.open(document)
    return page, document


def data(document: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = document.get_model_by_name(name).data
    return found


def scales(document: Any) -> dict[str, str]:
    from bokeh.plotting import figure

    panels = document.select({"type": figure})
    return {panel.yaxis[0].axis_label: type(panel.y_scale).__name__ for panel in panels}


def test_the_page_follows_the_file(path: Path) -> None:
    page, document = opened(path)
    assert document.title == "gradcore: run.jsonl"
    assert data(document, "loss") == {"step": [0, 1, 2, 3, 4], "value": [0.5] * 5}
    assert data(document, "norm")["value"] == [2.0] * 5
    assert data(document, "findings")["kind"] == ["nan_loss"]
    with path.open("a", encoding="utf-8") as file:
        file.write(text(step(5), END))
    page.update()
    assert data(document, "loss")["step"][-1] == 5
    assert "(ended)" in document.get_model_by_name("head").text
    path.write_text(text(START, step(0)), encoding="utf-8")
    page.update()
    assert data(document, "loss")["step"] == [0]
    assert data(document, "findings")["kind"] == []
    assert "(running)" in document.get_model_by_name("head").text


def test_what_the_file_says_is_escaped(path: Path) -> None:
    _, document = opened(path)
    tables = document.get_model_by_name("tables").text
    assert "<script>" not in tables
    assert "&lt;script&gt;" in tables
    assert "1e-09" in tables
    path.write_text(text(START, step(0, trial="<b>bold</b>")), encoding="utf-8")
    _, document = opened(path)
    assert "<b>" not in document.get_model_by_name("head").text


def test_a_page_without_a_file_or_steps(tmp_path: Path) -> None:
    path = tmp_path / "later.jsonl"
    page, document = opened(path)
    assert "waiting for the file" in document.get_model_by_name("head").text
    path.write_text("", encoding="utf-8")
    page.update()
    assert "waiting for the first step" in document.get_model_by_name("head").text
    path.write_text(text({**START, "version": 99}), encoding="utf-8")
    page.update()
    assert "version 99" in document.get_model_by_name("head").text
    path.unlink()
    path.mkdir()
    page.update()
    assert "directory" in document.get_model_by_name("head").text


def test_an_axis_is_logarithmic_where_all_is_positive(path: Path) -> None:
    page, document = opened(path)
    assert scales(document) == {"loss": "LogScale", "gradient norm": "LogScale"}
    with path.open("a", encoding="utf-8") as file:
        file.write(text(step(5, -1.0)))
    page.update()
    assert scales(document) == {"loss": "LinearScale", "gradient norm": "LogScale"}
    assert data(document, "loss")["value"][-1] == -1.0
    assert len(document.session_callbacks) == 1  # it goes on


def test_curves_have_gaps_and_keep_extremes() -> None:
    curve = Curve()
    for i, value in enumerate([1.0, math.nan, 2.0]):
        curve.append(i, value)
    drawn = drawable(curve, positive=True)
    assert drawn["step"] == [0, 1, 2]
    assert [str(value) for value in drawn["value"]] == ["1.0", "nan", "2.0"]
    for i in range(3, 100_000):
        curve.append(i, 1e6 if i == 50_000 else 1.0)
    drawn = drawable(curve, positive=True)
    assert max(drawn["value"]) == 1e6
    assert len(drawn["step"]) < 5000


# ---- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a user runs it, and its address."""
    command = [*COMMAND, str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), line
            yield process, line.split()[0]
        finally:
            process.kill()


def test_the_page_is_served_to_this_machine_and_site_only(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    with urllib.request.urlopen(address, timeout=HANG) as answer:
        page = answer.read().decode()
    assert answer.status == 200
    assert "<title>gradcore: run.jsonl</title>" in page
    scripts = [part.split('"')[0] for part in page.split('<script src="')[1:]]
    assert scripts
    assert all(script.startswith("/static/") for script in scripts)  # nothing from elsewhere
    with urllib.request.urlopen(address + scripts[0][1:], timeout=HANG) as answer:
        assert len(answer.read()) > 100_000
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers |= {"Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==", "Origin": "http://elsewhere.example"}
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=HANG)
    connection.request("GET", "/ws", headers=headers)
    assert connection.getresponse().status == 403
    connection.close()
    if os.name == "posix":
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 130
        assert err.endswith("gradcore: interrupted\n")


@pytest.mark.browser
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium")
def test_a_browser_shows_what_is_appended(server: tuple[subprocess.Popen[str], str], path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(server[1])
        last = "const found = window.Bokeh?.documents[0]?.get_model_by_name('loss'); return found?.data.step.length"

        def wait_for(n: int) -> None:
            end = time.monotonic() + HANG
            while browser.execute_script(last) != n:
                assert time.monotonic() < end
                time.sleep(0.1)

        wait_for(5)
        with path.open("a", encoding="utf-8") as file:
            file.write(text(*map(step, range(5, 305))))
        wait_for(305)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        browser.quit()


def test_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for argv, message in (
            ([str(tmp_path)], "is a directory, expected a file"),
            ([str(tmp_path / "no" / "run.jsonl")], "there is no folder"),
            (
                [str(tmp_path / "run.jsonl"), "--port", "65536"],
                "--port: expected an integer from 0 to 65535, got 65536",
            ),
            ([str(tmp_path / "run.jsonl"), "--port", port], f"--port {port}: "),
        ):
            assert cli.main(["dashboard", *argv]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert message in err
            assert err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "bokeh.server.server", None)
    assert cli.main(["dashboard", str(tmp_path / "run.jsonl")]) == 2
    assert capsys.readouterr().err == 'gradcore: the dashboard needs bokeh: pip install "gradcore[cli]"\n'
