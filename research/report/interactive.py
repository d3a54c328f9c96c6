"""Interactive charts: a slider for the budget, runs that say what they are.

Vega is written into the page, so that it needs no network. Without `altair` (the extra `report`)
the page has its still figures alone.
"""

import base64
import contextlib
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from research.errors import BadInput, StorageError
from research.io import files
from research.io.humanize import flops_text, quantity, significant
from research.report.style import BLUE, GREEN, ORANGE
from research.runs.schema import AXES, shown_columns
from research.scaling import Fit
from research.scaling.compute_optimal import PER_TOKEN

STEPS = 41  # positions of the slider
FACTS = ("run", "group", "params", "tokens", "flops", "lr", "seed")  # beside the scores
MOST = 2000  # runs in a chart
COUNT = "flops_6nd"
LARGEST = 16 << 20  # bytes of a script that is kept
# The type of the still figures, in their size.
LOOK = {
    "font": "DejaVu Sans, Verdana, system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal",
             "gridColor": "#dddddd", "domainColor": "#1b1b1b", "titlePadding": 8},
}  # fmt: skip
# Vega is most of a page, and two thirds smaller packed.
UNPACK = """const vega = (async () => {
  const packed = Uint8Array.from(atob("%s"), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
})();"""
# The words of the position that the slider is at stand above the chart.
DRAW = """vega.then(() => vegaEmbed("#%(name)s", %(spec)s, {"renderer": "svg", "actions": false}))
  .then(({spec, view}) => {
    const told = document.getElementById("%(name)s").previousElementSibling;
    const tell = (_, at) => { told.textContent = spec.usermeta.words[at]; };
    view.addSignalListener("position", tell);
    tell("position", view.signal("position"));
  }).catch(console.error);"""


def render_charts(charts: Mapping[str, Any]) -> str:
    """HTML with Vega and every chart, by the id of its element; empty without altair."""
    if not (vega := _vega()):
        return ""
    parts = [
        f'<div class="chart"><output class="told"></output><div id="{name}"></div></div>'
        for name in charts
    ]
    script = [UNPACK % base64.b64encode(gzip.compress(vega.encode(), 9, mtime=0)).decode()]
    for name, chart in charts.items():
        spec = json.dumps(chart.to_dict()).replace("<", "\\u003c")
        script.append(DRAW % {"name": name, "spec": spec})
    scripts = "".join(f"<script>{part}</script>" for part in script)
    return "\n".join([*parts, scripts])


def _vega() -> str:
    """The script of Vega, which takes seconds to bundle and is kept for the next page; "" without
    altair."""
    try:
        version = metadata.version("vl-convert-python")
        import vl_convert
    except ImportError:
        return ""
    with contextlib.suppress(OSError, BadInput, StorageError, AttributeError):
        known = files.read_json(files.cache("vega") / f"{version}.json", LARGEST)
        if files.as_digested(known):
            return str(known["script"])
    bundle: Any = vl_convert.javascript_bundle  # its stub asks for what it has a default for
    script = bundle()
    with contextlib.suppress(OSError, StorageError):
        files.write_json(
            files.cache("vega") / f"{version}.json", files.digested({"script": script})
        )
    return script


def column_chart(
    rows: Sequence[Mapping[str, Any]], fit: Fit, column: str, unit: str
) -> dict[str, Any]:
    """Runs and the law of one column, and a slider along it; {} without altair."""
    x = [float(row[column]) for row in rows]
    grid = np.geomspace(min(x), 30 * max(x), STEPS)
    loss, band, run = fit.at(column, grid.tolist())
    noun = AXES.get(column, column)
    points = []
    for i, value in enumerate(grid):
        words = (
            f"{noun}: {quantity(value)}\nloss {significant(loss[i])}\n"
            f"95 % interval of the law {_interval_text(band[i])}\n"
            f"95 % interval of a run {_interval_text(run[i])}"
        )
        low, high = np.clip(band[i], 0.5 * loss.min(), 2 * loss.max())
        points.append({"step": i, "x": value, "loss": loss[i], "low": low, "high": high,
                       "words": words})  # fmt: skip
    return _slider_chart(rows, points, column, noun, unit)


def budget_chart(
    rows: Sequence[Mapping[str, Any]], document: Mapping[str, Any], unit: str
) -> dict[str, Any]:
    """Runs and the compute-optimal loss by budget, and a slider for the budget: N*, D*, loss; and
    the optimum that counts inference, where the document of the fit has it."""
    points, section = [], document.get("inference") or {"tokens": 0.0, "optima": []}
    used = {row["flops"]: row["same_loss"] for row in section["optima"]}
    for i, p in enumerate(p for p in document["predictions"] if p.get("params")):
        budget = PER_TOKEN * p["params"] * p["tokens"]
        words = f"budget C = 6 N D: {flops_text(budget)} FLOPs"
        for name, key in (("N*", "params"), ("D*", "tokens"), ("D*/N*", "tokens_per_param")):
            words += f"\n{name} {quantity(p[key])} ({_quantity_interval(p['intervals'][key])})"
        if cheap := used.get(p["flops"]):
            words += (
                f"\nas good, with {quantity(section['tokens'])} tokens of inference: N "
                f"{quantity(cheap['params'])} ({_quantity_interval(cheap['intervals']['params'])})"
                f", D {quantity(cheap['tokens'])}"
            )
        point = {"step": i, "x": budget}
        if p["loss"] is not None:
            low, high = p["intervals"]["loss"]
            words += f"\nloss {significant(p['loss'])} ({_interval_text((low, high))})"
            # An open end leaves the picture, and does not make it.
            low, high = max(low or 0.0, p["loss"] / 2), min(high or math.inf, p["loss"] * 2)
            point |= {"loss": p["loss"], "low": low, "high": high}
        points.append({**point, "words": words})
    # The dots by the same count as the law, whatever the table's own FLOPs are.
    counted = [{**row, COUNT: PER_TOKEN * row["params"] * row["tokens"]} for row in rows]
    return _slider_chart(counted, points, COUNT, f"{AXES['flops']} = 6 N D", unit) if points else {}


def _slider_chart(
    rows: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    column: str,
    noun: str,
    unit: str,
) -> dict[str, Any]:
    try:
        import altair as alt
    except ImportError:
        return {}
    slider = alt.param(
        name="position",
        value=len(points) // 2,
        bind=alt.binding_range(min=0, max=len(points) - 1, step=1, name=f"{noun}: "),
    )
    shown = [k for k in FACTS if any(row.get(k) is not None for row in rows)]
    shown += [column.name for column in shown_columns(rows, "summary")]
    dots = [{k: row.get(k) for k in {*shown, column}} for row in rows[:MOST]]
    along = alt.Scale(type="log", nice=False, padding=8)
    written = "replace(format(datum.value, '~s'), 'G', 'B')"  # billions, as people say
    if "flops" in column:  # B and T would be read as parameters and tokens
        written = "replace(format(datum.value, '.2~e'), 'e+', 'e')"
    along_x = [point["x"] for point in points] + [row[column] for row in rows]
    values = _round_values(min(along_x), max(along_x))
    ticks = alt.Axis(labelExpr=written, values=values, labelOverlap="greedy", labelSeparation=6)
    x = alt.X("x:Q", scale=along, axis=ticks, title=noun)
    y = alt.Y(
        "loss:Q",
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=alt.Axis(format="~g", tickCount=8),
        title=f"held-out loss ({unit})",
    )
    law = alt.Chart(alt.Data(values=list(points)))
    here = law.transform_filter("datum.step == position")
    runs = (
        alt.Chart(alt.Data(values=dots))
        .mark_circle(size=60, color=BLUE, opacity=0.9)
        .encode(
            x=alt.X(f"{column}:Q", scale=along, axis=ticks, title=noun),
            y=y,
            tooltip=[alt.Tooltip(f"{k}:{'N' if k in ('run', 'group') else 'Q'}") for k in shown],
        )
    )
    layers = [
        law.mark_area(color=GREEN, opacity=0.15).encode(
            x=x, y=alt.Y("low:Q", title=""), y2="high:Q"
        ),
        law.mark_line(color=GREEN).encode(x=x, y=y),
        runs,
        here.mark_rule(color=ORANGE).encode(x=x),
        here.mark_point(color=ORANGE, filled=True, size=90).encode(x=x, y=y),
    ]
    words = [point["words"] for point in points]
    chart = alt.layer(*layers).properties(
        width="container", height=330, usermeta={"words": words}, config=LOOK
    )
    return {"explore": chart.add_params(slider)}


def _round_values(low: float, high: float) -> list[float]:
    """The labels of a logarithmic axis: 1, 2, 5, 10, …, and fewer where it spans decades."""
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [x for power in powers for step in steps if low <= (x := step * 10.0**power) <= high]


def _interval_text(pair: Sequence[float | None] | np.ndarray) -> str:
    return " to ".join("open" if x is None or not np.isfinite(x) else significant(x) for x in pair)


def _quantity_interval(pair: Sequence[float | None]) -> str:
    return " to ".join("open" if x is None else quantity(x) for x in pair)
