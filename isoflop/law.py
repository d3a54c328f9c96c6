"""A law that was fitted to a table: what the document of `isoflop fit` says, and its figures."""

import dataclasses
import difflib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isoflop.table import Table, rows_of
from research import scaling
from research.errors import BadInput
from research.tables import numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTED = ("params", "params_interval", "tokens", "tokens_interval", "loss", "interval",
             "run_interval")  # fmt: skip


class Law:
    """`document` is that of fit.json (docs/fitting.md lists its fields), `analysis` what it was
    written from."""

    def __init__(self, law: str, rows: Sequence[dict[str, Any]], options: Mapping[str, Any],
                 analysis: scaling.Analysis):  # fmt: skip
        self.name, self.analysis, self.document = law, analysis, analysis.document
        self._rows, self._options = rows, dict(options)

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted parameters by name; of an average those of the law that stands for it, of
        minima the constants of N*(C) and D*(C)."""
        return dict(self.document["params"])

    @property
    def intervals(self) -> dict[str, list[float | None]]:
        """Their 95 % intervals; None is an end that the data leave open."""
        return dict(self.document["intervals"])

    @property
    def warnings(self) -> list[str]:
        """What the data do not show."""
        return list(self.document["warnings"])

    def predict(
        self,
        flops: float | Sequence[float] | None = None,
        **columns: float | Sequence[float],
    ) -> Table:
        """Predictions, a row each. For training budgets `flops`: the compute-optimal params and
        tokens with `params_interval` and `tokens_interval`, and the loss with its `interval` (95 %,
        of the law) and `run_interval` (of one run), None where the law predicts no loss. Or for
        columns of the law, as params=1e9, tokens=2e10: the loss there. Raises BadInput for what
        the law does not predict."""
        if (flops is None) == (not columns):
            raise BadInput("predict: expected budgets (flops=1e21), or columns of the law")
        if flops is not None:
            return self._at_budgets(_amounts("flops", flops))
        if self.analysis.fit is None or self.name == "auto":
            raise BadInput(f"predict: {self.name} predicts budgets; give flops=…")
        law = self.analysis.fit.law
        if unknown := sorted(set(columns) ^ set(law.columns)):
            wrong = "missing" if unknown[0] in law.columns else "no column of it"
            raise BadInput(f"predict: {law.name} reads {', '.join(law.columns)} (or give flops=…); "
                           f"{unknown[0]}: {wrong}")  # fmt: skip
        given = {name: _amounts(name, value) for name, value in columns.items()}
        length = max(len(values) for values in given.values())
        given = {name: v * length if len(v) == 1 else v for name, v in given.items()}
        if any(len(values) != length for values in given.values()):
            raise BadInput("predict: the columns have different lengths")
        found = zip(*self.analysis.fit.predict(given), strict=True)
        rows = [
            {**dict(zip(given, point, strict=True)), law.response: float(at),
             "interval": of_law.tolist(), "run_interval": of_run.tolist()}
            for point, (at, of_law, of_run) in zip(zip(*given.values(), strict=True), found,
                                                   strict=True)
        ]  # fmt: skip
        return Table(rows, shown=list(rows[0]))

    def _at_budgets(self, flops: list[float]) -> Table:
        options = {**self._options, "predict_flops": flops}
        found = scaling.analyze(self.name, self._rows, options, checks_too=False)
        rows = []
        for row in found.document["predictions"]:
            ends = {f"{name}_interval": row["intervals"].get(name) for name in ("params", "tokens")}
            unknown = {} if row.get("loss") is not None else dict.fromkeys(PREDICTED[-2:])
            rows.append({**row, **ends, **unknown})
        return Table(rows, shown=("flops", *PREDICTED))

    def figures(self) -> "dict[str, Figure]":
        """matplotlib figures by their names, to be changed and saved."""
        from research.report import fit_figures

        return fit_figures.draw_figures(self.analysis)

    def plot(
        self, name: str | None = None, *, style: str = "page", width: float | None = None
    ) -> "Figure":
        """One of `figures`, by default the first, in a style ("page", "paper", "talk") and so many
        inches wide. Raises BadInput if there is none of that name."""
        from research.report import fit_figures
        from research.report.style import looking

        names = fit_figures.figure_names(self.analysis)
        name = name or next(iter(names), None)
        if name not in names:
            raise BadInput(f"plot: no figure {name!r}; there are {', '.join(names) or 'none'}")
        with looking(style, width):
            return fit_figures.draw_figures(self.analysis, name)[name]

    def to_json(self) -> str:
        """The document, as fit.json holds it."""
        return json.dumps(self.document, indent=2)

    def __repr__(self) -> str:
        from research.report import fit_text

        return fit_text.fit_summary(self.document)

    def _repr_html_(self) -> str:
        lines = [html.escape(line) for line in repr(self).splitlines()]
        warnings = [line for line in lines if line.startswith("warning: ")]
        items = "".join(f"<li>{line.removeprefix('warning: ')}</li>" for line in warnings)
        text = "".join(f"<p>{line}</p>" for line in lines if line not in warnings)
        return text + (f"<p>Warnings:</p><ul>{items}</ul>" if items else "")


def _amounts(name: str, value: Any) -> list[float]:
    """Amounts of a column, from one or a sequence of them."""
    many = isinstance(value, Iterable) and not isinstance(value, str)
    amounts = [numbers.parse_number(x) for x in (value if many else [value])]
    if not amounts or not all(x is not None and x > 0 for x in amounts):
        raise BadInput(f"predict: {name}={value!r}; expected a number above 0, or some")
    return [x for x in amounts if x is not None]


def fit(runs: Any, law: str, compare: str | None, options: Mapping[str, Any]) -> Law:
    """See `isoflop.fit`."""
    rows, known = rows_of(runs), [field.name for field in dataclasses.fields(scaling.Options)]
    if unknown := [name for name in options if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        raise BadInput(f"{unknown[0]}: no such option of a fit; {hint}")
    for name in ("predict", "predict_flops"):
        if isinstance(options.get(name), int | float):
            options = {**options, name: [options[name]]}
    return Law(law, rows, options, scaling.analyze(law, rows, options, compare_by=compare))
