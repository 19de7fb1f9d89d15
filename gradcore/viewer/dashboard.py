"""Show a run in the browser, with a Bokeh server that only this machine reaches."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from html import escape
from pathlib import Path
from typing import Any

from gradcore._base.html import html_table
from gradcore.viewer.curve import Curve
from gradcore.viewer.follow import Follower, Trial
from gradcore.viewer.terminal import STATUS

__all__: list[str] = []  # for the package only

ADDRESS = "127.0.0.1"
INTERVAL = 500  # milliseconds between two looks at the file
MISSING = 'the dashboard needs bokeh: pip install "gradcore[cli]"'
# Of Okabe and Ito's palette, which color-blind readers tell apart.
COLORS = {"loss": "#0072B2", "norm": "#D55E00"}
SEVERITIES = {"critical": "#CC3311", "high": "#D55E00", "moderate": "#E69F00", "info": "#999999"}
MOST_POINTS = 1000


def serve(path: Path, port: int) -> None:
    """Serve the page until Ctrl-C."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port: expected an integer from 0 to 65535, got {port}")
    try:
        from bokeh.application import Application
        from bokeh.application.handlers.function import FunctionHandler
        from bokeh.server.server import Server
    except ImportError:
        raise ValueError(MISSING) from None

    def fill(document: Any) -> None:
        Page(path).open(document)

    port = _free_port(port)
    origins = [f"{ADDRESS}:{port}", f"localhost:{port}"]  # no page of another site may connect
    application = Application(FunctionHandler(fill))
    server = Server({"/": application}, address=ADDRESS, port=port, allow_websocket_origin=origins)
    try:
        server.start()
        print(f"http://{ADDRESS}:{port}/ shows {path}; Ctrl-C ends it.", flush=True)
        server.io_loop.start()
    finally:
        server.stop()
        server.unlisten()


def _free_port(wanted: int) -> int:
    """Return the port, or any for 0; raise where it is taken."""
    with contextlib.closing(socket.socket()) as probe:
        if os.name == "posix":  # elsewhere it means another thing
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, wanted))
        except OSError as error:
            raise OSError(f"--port {wanted}: {error.strerror}") from None
        port: int = probe.getsockname()[1]
    return port


class Page:
    """One open page: it reads the file for itself."""

    def __init__(self, path: Path) -> None:
        from bokeh.models import ColumnDataSource, Div

        self._follower = Follower(path)
        self._head, self._tables = Div(sizing_mode="stretch_width"), Div(sizing_mode="stretch_width")
        self._head.name, self._tables.name = "head", "tables"
        self._curves = {name: ColumnDataSource({"step": [], "value": []}, name=name) for name in COLORS}
        self._marks = ColumnDataSource({"step": [], "color": [], "kind": []}, name="findings")
        self._logarithmic: dict[str, bool] = {}
        self._document: Any = None

    def open(self, document: Any) -> None:
        """Fill a new document and keep it up to date."""
        self._document = document
        document.title = f"gradcore: {self._follower.path.name}"
        self.update(first=True)
        document.add_periodic_callback(self.update, INTERVAL)

    def update(self, *, first: bool = False) -> None:
        """Show what is new in the file."""
        try:
            until, changed = time.monotonic() + INTERVAL / 2000, self._follower.poll()
            while self._follower.behind and time.monotonic() < until:  # a long file comes in parts
                changed |= self._follower.poll()
        except OSError as error:
            self._head.text = f"<p>{escape(str(error))}</p>"
            return
        if not (changed or first):
            return
        trial = self._follower.run.current
        self._head.text, self._tables.text = self._title(trial), self._details(trial)
        curves = {"loss": trial.loss, "norm": trial.grad_norm} if trial else {"loss": Curve(), "norm": Curve()}
        logarithmic = {name: curve.lowest > 0 for name, curve in curves.items()}
        if first or logarithmic != self._logarithmic:
            self._logarithmic = logarithmic
            self._draw()
        for name, curve in curves.items():
            self._curves[name].data = drawable(curve, positive=logarithmic[name])
        findings = trial.ordered_findings() if trial else []
        self._marks.data = {
            "step": [finding.step for finding in findings],
            "color": [SEVERITIES[finding.severity] for finding in findings],
            "kind": [finding.kind for finding in findings],
        }

    def _draw(self) -> None:
        """Make the figures anew: an axis is logarithmic or not from its beginning."""
        from bokeh.layouts import column
        from bokeh.plotting import figure

        figures: list[Any] = []
        for name, source in self._curves.items():
            panel = figure(
                height=260,
                sizing_mode="stretch_width",
                y_axis_type="log" if self._logarithmic[name] else "linear",
                tools="pan,wheel_zoom,box_zoom,reset,save",
                active_drag="box_zoom",
                x_axis_label="step",
                y_axis_label="gradient norm" if name == "norm" else name,
                **({"x_range": figures[0].x_range} if figures else {}),
            )
            panel.line("step", "value", source=source, color=COLORS[name], line_width=1.5)
            panel.vspan(x="step", color="color", source=self._marks, line_dash="dotted")
            panel.toolbar.logo = None
            figures.append(panel)
        self._document.clear()
        self._document.add_root(column(self._head, *figures, self._tables, sizing_mode="stretch_width"))

    def _title(self, trial: Trial | None) -> str:
        follower, run = self._follower, self._follower.run
        if not follower.exists:
            state = "waiting for the file"
        elif run.problem:
            state = run.problem
        else:
            state = STATUS[run.status] if run.ended else "running" if trial else "waiting for the first step"
        name = f": {trial.name}" if trial and trial.name else ""
        error = f"<p>{escape(run.error)}</p>" if run.error else ""
        return f"<h2>{escape(follower.path.name + name)} ({escape(state)})</h2>{error}"

    def _details(self, trial: Trial | None) -> str:
        if trial is None:
            return ""
        facts = [
            ("step, epoch", f"{trial.step:,}, {trial.epoch:,}"),
            ("loss", f"{trial.loss.last:.4g}, lowest {trial.loss.lowest:.4g}"),
            ("gradient norm", f"{trial.grad_norm.last:.4g}"),
            ("clipped", f"{trial.n_clipped / trial.n_steps:.0%} of steps"),
            ("skipped steps", f"{trial.n_skipped:,}"),
            ("damaged lines", f"{self._follower.run.n_damaged:,}"),
        ]
        layers = [
            (name, f"{trial.dh_first.get(name, math.nan):.3g}", f"{last:.3g}") for name, last in trial.dh_last.items()
        ]
        found = [
            (finding.severity, finding.kind, finding.where, finding.seen(), finding.message, finding.advice)
            for finding in trial.ordered_findings()
        ]
        tables = [html_table(facts)]
        if layers:
            header = "layer", "|dL/dh| at the first time step", "at the last one"
            tables.append(html_table(layers, header=header))
        if found:
            header_ = "severity", "finding", "where", "seen", "what happened", "what to do"
            tables.append(html_table(found, header=header_))
        others = [other for other in self._follower.run.trials.values() if other.n_steps and other is not trial]
        if others:
            rows = [(other.name, f"{other.loss.last:.4g}", f"{other.loss.lowest:.4g}") for other in others]
            tables.append(html_table(rows, header=("trials before", "loss", "lowest")))
        return "<br>".join(tables)


def drawable(curve: Curve, *, positive: bool) -> dict[str, list[float]]:
    """Both extremes of every point, with gaps for what is not finite or has no place on the axis."""
    steps: list[float] = []
    values: list[float] = []
    for point in curve.points(MOST_POINTS):
        for value in dict.fromkeys((point.low, point.high)):
            steps.append(point.step)
            values.append(value if value > 0 or not positive else math.nan)
        if point.bad and math.isfinite(point.high):  # a gap
            steps.append(point.step)
            values.append(math.nan)
    return {"step": steps, "value": values}
