"""A diagnosis as a page: one file of HTML that needs no network.

Whatever comes from outside is escaped where it enters the page. The page itself forbids its reader's browser to fetch
anything.
"""

from __future__ import annotations

import dataclasses
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from gradcore._base.threads import info
from gradcore.diagnosis.config import Config, configure
from gradcore.diagnosis.report_draw import COLORS, Key, Panel
from gradcore.diagnosis.report_figures import RAMP, Course, eigenvalues, factor, heat_map, time_steps, training, trials
from gradcore.diagnosis.wording import number
from gradcore.training.history import History
from gradcore.training.monitor import Finding

__all__: list[str] = []  # for the package only

HEADS = {
    "explodes": "The gradient explodes",
    "vanishes": "The gradient vanishes",
    "stable": "The gradient is stable",
    "diverged": "The training diverges",
    "nothing_to_learn": "Nothing was learned",
}
MISSING = 'a report needs bokeh: pip install "gradcore[cli]"'
NORMS = "Of the gradient of each parameter, and of dL/dh at both ends of the sequence; logarithmic."
MOST_FINDINGS = 30
MOST_COLUMNS = 6  # of a table that a phone shows whole; one with more scrolls in its own box
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:"
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{css}</style>
{library}
</head>
<body>
<main>
<noscript><p class="note">The figures need JavaScript; the tables below them have their numbers.</p></noscript>
{body}
</main>
{figures}
<script>
{js}</script>
</body>
</html>
"""


def page(found: Any) -> str:
    """Write a diagnosis as a page.

    Parameters
    ----------
    found : Diagnosis or Study
        What was found.

    Returns
    -------
    str
        HTML that holds all it needs.

    Raises
    ------
    ImportError
        If bokeh is not installed.
    """
    return _page(_title(found), partial(_study if hasattr(found, "trials") else _diagnosis, found))


def run_page(history: History, findings: Sequence[Finding]) -> str:
    """Write a training run as a page.

    Parameters
    ----------
    history : History
        Its record.
    findings : sequence of Finding
        What a monitor has found.

    Returns
    -------
    str
        HTML that holds all it needs.

    Raises
    ------
    ImportError
        If bokeh is not installed.
    """
    return _page("Training run", partial(_run, history, findings))


def _page(title: str, parts: Callable[[dict[str, Panel]], Iterable[str]]) -> str:
    """Put the parts, which name their figures, into a page."""
    try:
        from bokeh.embed import components
        from bokeh.resources import Resources
    except ImportError:
        raise ImportError(MISSING) from None
    panels: dict[str, Panel] = {}
    with np.errstate(all="ignore"):  # numbers that are not finite are among what is shown
        body = "\n".join(parts(panels))
    figures = {name: panel.figure for name, panel in panels.items()}
    script, places = components(figures) if figures else ("", {})
    for name, place in places.items():
        body = body.replace(_place(name), place.strip())
    resources = Resources(mode="inline", components=["bokeh"])
    here = files(__package__)
    return PAGE.format(
        policy=POLICY,
        title=escape(f"{title} - gradcore"),
        css=(here / "report.css").read_text("utf-8"),
        library="\n".join(f"<script>\n{code}\n</script>" for code in resources.js_raw),
        body=body,
        figures=script,
        js=(here / "report.js").read_text("utf-8"),
    )


# ---- the parts in their order ----------------------------------------------------------------------------------------


def _run(history: History, findings: Sequence[Finding], panels: dict[str, Panel]) -> Iterator[str]:
    """The page of a training run."""
    yield f'<p class="over">gradcore {info()["version"]}</p>\n<h1>Training run</h1>'
    if len(history):
        loss, norm = training(Course(history, findings, float(history.loss[-1])), None)
        figures = _figure("loss", loss, panels), _figure("norm", norm, panels)
        yield _section("Training", *figures, _findings(findings))
        norms = heat_map(history)
        if norms is not None:
            yield _section("Norms by layer and training step", _figure("norms", norms, panels, NORMS))
    else:
        yield _section("Training", _note("No steps were made."), _findings(findings))
    yield _section("Machine and versions", _facts(_machine(info())))


def _diagnosis(found: Any, panels: dict[str, Panel]) -> Iterator[str]:
    """The page of a model of the user's own."""
    yield _head(found, f"gradcore {info()['version']}")
    if hasattr(found, "python"):
        items = "".join(f"<li>{escape(text)}</li>" for text in found.remedies)
        yield _section("What may help", f"<ul>{items}</ul>" if items else "", _code(found.python))
    yield _growth(found, panels)
    if hasattr(found, "depth"):
        rows = [(each.name, number(each.dx_norm), number(each.dy_norm)) for each in found.depth]
        note = _note("Norms of the gradient of the whole loss, at the input and at the output of each layer.")
        yield _section("Layer by layer", note, _table(("layer", "dL/d(input)", "dL/d(output)"), rows))
    yield _matrices(found, panels)
    yield _section("Machine and versions", _facts(_machine(info())))


def _study(found: Any, panels: dict[str, Panel]) -> Iterator[str]:
    """The page of a study."""
    start, configured = found.start, found.trials[0]
    yield _head(found, f"gradcore {start.machine.get('version', '')} · {start.task}")
    note = (
        "It repeats the training that the verdict names." if found.verdict.remedy else "It repeats the configuration."
    )
    yield _section("In detail", f"<p>{escape(found.verdict.finding)}</p>", f"<p>{escape(found.verdict.advice)}</p>")
    yield _section("The Python to copy", _code(found.verdict.python), _note(note))
    yield _growth(found, panels)
    loss, norm = training(configured, found.threshold.max_norm)
    yield _section(
        "Training as configured",
        _figure("loss", loss, panels, f"With seed {start.config.seed}, the first of {start.config.seeds}."),
        _figure("norm", norm, panels),
        _findings(configured.findings),
    )
    norms = heat_map(configured.history)
    if norms is not None:
        yield _section("Norms by layer and training step", _figure("norms", norms, panels, NORMS))
    yield _matrices(found, panels)
    yield _section("Trials", _figure("trials", trials(found), panels), _suggestions(found.suggestions))
    yield _section("Other lengths", _lengths(found.lengths))
    yield _section("Data as read", _facts({"task": start.task, "source": start.config.source} | dict(start.data)))
    yield _section("How it was made", _made(found))


def _head(found: Any, over: str) -> str:
    """What was found, in words and in the numbers that matter most."""
    verdict, measured = found.verdict, found.measurement
    expected = found.forecast
    tiles = [
        ("growth a step back", f"×{factor(measured.rate)}", f"forecast ×{factor(expected.rate)}"),
        (f"over {expected.horizon} steps", f"×{number(measured.factor)}", f"forecast ×{number(expected.factor)}"),
    ]
    if hasattr(found, "trials"):
        by_name = {trial.name: trial for trial in found.trials}
        for label, name in (("loss held out, as configured", found.trials[0].name), ("best remedy", verdict.remedy)):
            if name in by_name:
                tiles.append((label, number(by_name[name].held_out_loss), f"± {number(by_name[name].spread)}"))
    words = f'<p>{escape(verdict.finding)}</p>\n<p class="advice">{escape(verdict.advice)}</p>'
    if hasattr(found, "trials"):
        words = f'<p class="advice">{escape(verdict.summary)}</p>'
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(beside)}</dd></div>"
        for name, value, beside in tiles
    )
    return (
        f'<p class="over">{escape(over)}</p>\n<h1>{escape(_title(found))}</h1>\n{words}\n<dl class="tiles">{cells}</dl>'
    )


def _title(found: Any) -> str:
    kind: str = found.verdict.kind
    if kind == "diverged" and not hasattr(found, "trials"):
        return "The gradient is not finite"
    return HEADS.get(kind, kind)


def _growth(found: Any, panels: dict[str, Panel]) -> str:
    way = "The loss is at the last time step; its gradient flows to the left."
    if any(name.endswith("_reverse") for name in found.measurement.names):
        way = f"{way} In the reverse direction the loss is at the first, and its gradient flows to the right."
    header = ("layer", "predicted", "at most", "with above", "measured")
    rows = [
        (layer.name, *(f"{v:.4f}" for v in (layer.predicted, layer.upper_bound, layer.with_above, layer.measured)))
        for layer in found.comparison.layers
    ]
    return _section(
        "Growth over time steps",
        _figure("steps", time_steps(found), panels, way),
        _note("Rates, natural logarithms per step back; above 0 the gradient grows."),
        _table(header, rows),
    )


def _matrices(found: Any, panels: dict[str, Panel]) -> str:
    parts = []
    if found.forecast.matrices:
        parts.append(_figure("eigenvalues", eigenvalues(found.forecast.matrices), panels))
    signs = {"explodes": ">", "vanishes": "<"}
    conditions = [
        f"{condition.name} {signs[condition.of]} {number(condition.limit)} "
        f"{'holds' if condition.holds else 'does not hold'} ({number(condition.value)}). {condition.meaning}"
        for condition in found.forecast.conditions
    ]
    if conditions:
        items = "".join(f"<li>{escape(text)}</li>" for text in conditions)
        parts.append(f"<details><summary>What theory says of these weights</summary><ul>{items}</ul></details>")
    if found.forecast.spectra:
        rows = [
            (
                each.name,
                f"{each.largest:.4f}",
                f"{int((each.exponents > 0).sum())} of {len(each.exponents)}",
                each.filled,
            )
            for each in found.forecast.spectra
        ]
        table = _table(("layer", "largest, ln per step", "above 0", "dimension"), rows)
        parts.append(f"<details><summary>Lyapunov exponents</summary>{table}</details>")
    return _section("Eigenvalues", *parts) if parts else ""


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return _note("The monitor has no findings.")
    texts = [(str(finding), finding.advice) for finding in findings[:MOST_FINDINGS]]
    items = [f"<li>{escape(text)} <small>{escape(advice)}</small></li>" for text, advice in texts]
    more = len(findings) - MOST_FINDINGS
    rest = _note(f"{more} more findings are in diagnosis.json.") if more > 0 else ""
    return f"<p>What the monitor found, numbered as in the figures:</p><ol>{''.join(items)}</ol>{rest}"


def _suggestions(suggestions: Any) -> str:
    texts = [f"{each.name}: {each.reason}." for each in suggestions.tried]
    return "".join(map(_note, [*texts, *suggestions.missing]))


def _lengths(lengths: Sequence[Any]) -> str:
    if len(lengths) < 2:
        return _note("The source has sequences of this length only.")
    rows = [(str(each.steps), factor(each.rate), number(each.factor), each.verdict) for each in lengths]
    return _table(("steps of a sequence", "× a step", "× over it", "the gradient"), rows)


def _made(found: Any) -> str:
    start, config = found.start, found.start.config
    seeds = ", ".join(str(config.seed + i) for i in range(min(config.seeds, 20)))
    facts: dict[str, Any] = {
        "seeds": seeds + ", ..." * (config.seeds > 20),
        "parameters": start.n_parameters,
        "steps of a sequence": start.steps_back + 1,
    }
    options = {part.name: getattr(config, part.name) for part in dataclasses.fields(config)}
    return (
        _code(command(config))
        + _facts(facts | _machine(start.machine))
        + (f"<details><summary>All options</summary>{_facts(options)}</details>")
    )


def command(config: Config) -> str:
    """The command that makes this report; where an option has none, the Python.

    Parameters
    ----------
    config : Config
        What was asked for.

    Returns
    -------
    str
        One line.
    """
    given: dict[str, Any] = {}
    for name in ("cell", "init", *(part.name for part in dataclasses.fields(config))):  # the first decide on the rest
        value = getattr(config, name)
        if name != "source" and value != getattr(configure(config.source, **given), name):
            given[name] = value
    if config.gate_bias is not None or any(isinstance(value, (dict, list, tuple)) for value in given.values()):
        options = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"gradcore.diagnosis.study(gradcore.diagnosis.configure({config.source!r}{options}))"
    options = "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())
    dashes = "-- " * config.source.startswith("-")
    return f"gradcore diagnose{options} --out DIR {dashes}{shlex.quote(config.source)}"


def _machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name.replace("num_threads", "threads").replace("isa", "instruction set"): v for name, v in machine.items()},
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(filter(None, parts)) + "\n</section>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _code(text: str) -> str:
    return f'<div class="code"><button type="button">Copy</button><pre><code>{escape(text)}</code></pre></div>'


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    columns = head.count("<th ")
    style = f' style="min-width: {72 * columns}px"' if columns > MOST_COLUMNS else ""
    table = f"<table{style}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>' if style else table


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{escape(_said(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _said(value: Any) -> str:
    """A value of JSON's types in words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{str(name).replace('_', ' ')} {_said(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return number(value) if isinstance(value, float) else str(value)


def _place(name: str) -> str:
    return f"<!-- figure {name} -->"


def _figure(name: str, panel: Panel, panels: dict[str, Panel], note: str = "") -> str:
    """A figure with its caption, its legend and the table of its numbers."""
    panels[name] = panel
    keys = "".join(f"<li>{_swatch(key)}<span>{escape(key.label)}</span></li>" for key in panel.keys)
    below = f"<small>{escape(note)}</small>" if note else ""
    left_out = _note("Every few rows; to_dict() and diagnosis.json have all of them.") if panel.left_out else ""
    return (
        f"<figure>\n<figcaption>{escape(panel.caption)}{below}</figcaption>\n"
        f'<div class="plot" role="img" aria-label="{escape(panel.caption)}">{_place(name)}</div>\n'
        f'<ul class="keys">{keys}</ul>\n'
        f"<details><summary>The numbers</summary>{_table(panel.header, panel.rows)}{left_out}</details>\n</figure>"
    )


def _swatch(key: Key) -> str:
    color = COLORS.get(key.role, "")
    dashes = {"dashed": "6 4", "dotted": "2 4", "dashdot": "9 3 2 3"}
    dash = f' stroke-dasharray="{dashes[key.form]}"' if key.form in dashes else ""
    mark = f'<path d="M1 6H25" stroke="{color}" stroke-width="2.5"{dash}/>'
    if key.form == "dot":
        mark = f'<circle cx="13" cy="6" r="5" fill="{color}"/>'
    elif key.form == "square":
        mark = f'<path d="M8 6h10" stroke="{color}" stroke-width="10"/>'
    elif key.form == "cross":
        mark = f'<path d="M9 2l8 8M9 10l8-8" stroke="{color}" stroke-width="2"/>'
    elif key.form == "scale":
        mark = "".join(
            f'<path d="M{16 * i} 6h16.5" stroke="{shade}" stroke-width="12"/>' for i, shade in enumerate(RAMP)
        )
    width = 64 if key.form == "scale" else 26
    return f'<svg width="{width}" height="12" aria-hidden="true">{mark}</svg>'
