"""Columns of a table as somebody else named them: `--columns=loss=val loss,tokens=tokens (B)*1e9`.

A column is another one, or a product or quotient of columns and numbers, of which each may be in a
logarithm or an exponent: ln(ppl), 10^log10_params. Where only a header says the unit, as in
"params (M)" or "total_gflops", it is applied, and said.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from research.errors import BadInput
from research.tables.numbers import MULTIPLIERS, PF_DAY, parse_any_number
from research.tables.states import is_missing

Row = dict[str, Any]
UNNAMED = "unnamed"  # a row that the table gives no name: what it is called depends on its place
GROUP_LABEL = (
    "comparable"  # of what is comparable with a row, where rows are not all (comparable.py)
)
COUNTS = ("params", "flops", "tokens", "unique_tokens")  # how columns of numbers begin
MOST_SCALED = {"params": 1e15, "tokens": 1e17, "unique_tokens": 1e17, "flops": 1e32}
_BRACKETS = re.compile(r"[(\[]\s*(?:in\s+)?([^()\[\]]+?)\s*[)\]]\s*$")
_FLOPS = re.compile(r"(?P<prefix>[kmgtpezy]?)(?:flops?|fl|macs?)", re.IGNORECASE)
_RATE = re.compile(r"fl(?:ops?)?(?:\s*/|[\s_]*per|_)[\s_]*s(?:ec|$|[^a-z])|flop/?ps", re.IGNORECASE)
_SHORT = ("k", "m", "b", "mn", "bn")  # said in lower case at the end of a header: tokens_b
OF_COUNTS = re.compile(r"(?P<prefix>[kmbgt])(?:params?|parameters?|tokens?|toks?)", re.IGNORECASE)
_OF_PARAMS = re.compile(
    r"params?[\s_.-]*(?:[(\[].*|non|no|with|without|excl|incl|total|all|active|trainable|matmul|"
    r"emb|head|count|kaplan|chinchilla|in|[kmbt]$|millions?|billions?)(?:[\W_].*|emb.*|$)",
    re.IGNORECASE,
)
_DAYS = re.compile(r"pf(?:lops?)?(?:/s)?[\s_-]*days?", re.IGNORECASE)
LOG = re.compile(r"(?P<base>log_?10|log_?2|ln|log)(?=[\s_.(])", re.IGNORECASE)
BASES = {"log10": "10", "log2": "2", "ln": "e"}
_INVERSE = re.compile(r"(10|2|e)\s*(?:\^|\*\*)\s*")
_FUNCTION = re.compile(r"(ln|log10|log2|exp)\s*\(\s*")
FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "ln": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "exp": math.exp,
    "e": math.exp,
    "10": lambda x: 10.0**x,
    "2": lambda x: 2.0**x,
}


class Unit(NamedTuple):
    factor: float
    words: str


class Term(NamedTuple):
    sign: str  # * or /
    what: str | float  # a column or a number
    function: str = ""  # one of FUNCTIONS


def is_count(name: str) -> bool:
    """Whether a column, by its name, counts parameters, tokens or FLOPs: params, flops_6nd. MLflow
    and Optuna begin the name of every setting with params, as in params.lr and params_lr."""
    if not name.startswith(COUNTS):
        return False
    return name == "params" or not name.startswith("params") or bool(_OF_PARAMS.fullmatch(name))


def name_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """The columns of a table, for a message."""
    names = sorted({str(name) for row in rows for name in row} - {UNNAMED, GROUP_LABEL})
    return f"there are {', '.join(names)}"


def missing_columns(missing: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a message says of columns that no row has: each with the one that may be meant, and all
    that there are, once."""
    there = sorted({str(name) for row in rows for name in row} - {UNNAMED, GROUP_LABEL})
    said = [f"no column {name!r}{did_you_mean(name, there)}" for name in missing]
    return [*said[:-1], f"{said[-1]}; {name_columns(rows)}"] if said else []


def did_you_mean(name: str, there: Sequence[str]) -> str:
    """The column whose last part is `name`, as of "width" "model.width"; or else one like it."""
    ends = [column for column in there if re.split(r"[./]", column)[-1] == name]
    close = ends or difflib.get_close_matches(name, there, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def header_unit(name: str, of: str) -> Unit | None:
    """The unit that the header of a count says, of one of COUNTS: "params (M)", "tokens_b",
    "mparams", "n_params_millions", "total_gflops". None where it says none, or one that multiplies
    by 1."""
    compute = of.startswith("flops")
    if compute and _DAYS.search(name):
        return Unit(PF_DAY, "PF-days")
    brackets = _BRACKETS.search(name)
    if brackets and (number := parse_any_number(brackets[1])) is not None and number > 1:
        return Unit(number, brackets[1])
    words = words_of(name)
    for word in [brackets[1].strip(), *words] if brackets else words:
        if compute and (found := _FLOPS.fullmatch(word)):
            if _RATE.search(name):
                return None
            factor = MULTIPLIERS[found["prefix"].lower()]
            factor *= 2.0 if "mac" in word.lower() else 1.0  # a multiplication and an addition
            if factor != 1:  # else brackets may say it: FLOPs (P)
                return Unit(factor, word)
        if not compute and (found := OF_COUNTS.fullmatch(word)):
            return Unit(MULTIPLIERS[found["prefix"].lower()], found["prefix"])
    for word in ([brackets[1].strip()] if brackets else []) + words[::-1]:
        last = word == words[-1] and (word.isupper() or (not compute and word in _SHORT))
        said = len(word) > 2 or last or bool(brackets and word == brackets[1].strip())
        if said and word != "%" and MULTIPLIERS.get(word.lower(), 1) > 1:
            return Unit(MULTIPLIERS[word.lower()], word)
    return None


def words_of(name: str) -> list[str]:
    """The words of a header, of which "nParamsM" has three."""
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))


def rename(
    rows: Sequence[Row], columns: Mapping[str, str], places: Sequence[str] = ()
) -> tuple[list[Row], list[str]]:
    """The rows with `columns` (our name: theirs, or an expression of theirs), and what there is to
    say. Raises BadInput for a column that does not exist, and for words where a factor needs a
    number."""
    notes: list[str] = []
    out = [dict(row) for row in rows]
    there = sorted({str(name) for row in rows[:1000] for name in row}, key=len, reverse=True)
    for ours, text in columns.items():
        flag = f"--columns={ours}={text}"
        if (name := _unquoted(text)) in there:
            factor = _unit_to_apply(rows, ours, name, notes)
            if factor == 1:
                for new, row in zip(out, rows):
                    new[ours] = row.get(name)
                continue
            terms = [Term("*", name), Term("*", factor)]
        else:
            terms = _terms(text, there, flag, rows)
            notes += _unit_left_out(ours, text, terms)
        for i, (new, row) in enumerate(zip(out, rows)):
            new[ours] = _product(row, terms, f"{flag}: {_place(places, i)}")
    return out, notes


def _unit_to_apply(rows: Sequence[Row], ours: str, name: str, notes: list[str]) -> float:
    """The factor that the header of a column says, 1 where it says none or the cells are scaled
    already."""
    if ours == "flops" and _RATE.search(name):
        raise BadInput(
            f"--columns={ours}={name}: a rate, of which a run has as many as it takes seconds; "
            f"--columns='{ours}={name}*seconds' with the column of those, '{name}*1' as it is"
        )
    if ours in MOST_SCALED and (log := LOG.match(name)):
        base = BASES.get(log["base"].lower().replace("_", ""), "10")
        raise BadInput(
            f"--columns={ours}={name}: a logarithm, by its name; --columns='{ours}={base}^{name}' "
            f"takes what it is of, '{ours}={name}*1' the cells as they are"
        )
    if ours not in MOST_SCALED or ours == name or not (unit := header_unit(name, ours)):
        return 1.0
    values = [x for row in rows if (x := parse_any_number(row.get(name))) is not None and x > 0]
    written = any(isinstance(row.get(name), str) and re.search(r"[a-zA-Z]\s*$", row[name].strip())
                  and parse_any_number(row[name]) is not None for row in rows)  # fmt: skip
    if written or not values or max(values) * unit.factor > MOST_SCALED[ours]:
        notes.append(
            f"the header {name!r} says {unit.words}, and its cells look scaled already: they are "
            f"taken as they are; if not, --columns='{ours}={name}*{unit.factor:g}'"
        )
        return 1.0
    notes.append(
        f"{ours} is {name!r} times {unit.factor:g}, as its header says; if not, "
        f"--columns='{ours}={name}*1'"
    )
    return unit.factor


def _unit_left_out(ours: str, text: str, terms: Sequence[Term]) -> list[str]:
    """What to say of a product of columns whose headers say a unit, and of no number."""
    if ours not in MOST_SCALED or any(not isinstance(term.what, str) for term in terms):
        return []
    for _, name, function in terms:
        if not function and (unit := header_unit(str(name), ours)):
            return [
                f"{ours}={text} takes the cells of {name!r} as they are, whose header says "
                f"{unit.words}: if it is to count, --columns='{ours}={text}*{unit.factor:g}'; if "
                f"not, '{ours}={text}*1'"
            ]
    return []


def _terms(text: str, there: Sequence[str], flag: str, rows: Sequence[Row]) -> list[Term]:
    """The terms of an expression; a name is the longest column that fits, since names may hold the
    signs themselves."""
    out: list[Term] = []
    sign, rest = "*", text.strip()
    while True:
        found, function, rest = _one_term(rest, there)
        if found is None:
            either = f", nor {text!r}" if out else ""
            guess = did_you_mean(text, there)
            raise BadInput(f"{flag}: no column {rest!r}{either}{guess}; {name_columns(rows)}")
        out.append(Term(sign, found, function))
        if not rest:
            return out
        sign, rest = rest[0], rest[1:].strip()
        if sign not in "*/×" or not rest:
            raise BadInput(f"{flag}: expected a column, times or divided by columns or numbers")
        sign = "/" if sign == "/" else "*"


def _one_term(text: str, there: Sequence[str]) -> tuple[str | float | None, str, str]:
    """The first column or number of the text, the function that it is in, and what follows."""
    found, rest = _name_or_number(text, there)
    if isinstance(found, str):
        return found, "", rest
    if inverse := _INVERSE.match(text):
        inner, after = _name_or_number(text[inverse.end() :], there)
        if isinstance(inner, str):
            return inner, inverse[1], after
    if function := _FUNCTION.match(text):
        inner, after = _name_or_number(text[function.end() :], there, ")")
        if inner is not None and after.startswith(")"):
            return inner, function[1], after[1:].strip()
    return found, "", rest


def _name_or_number(
    text: str, there: Sequence[str], before: str = ""
) -> tuple[str | float | None, str]:
    """The column or number that a text begins with, and what follows it: a sign, nothing, or
    `before`."""
    if text[:1] in ("`", '"', "'") and (end := text.find(text[0], 1)) > 0:
        name = text[1:end]
        return (name if name in there else None), text[end + 1 :].strip() if name in there else name
    for name in there:  # the longest first
        follows = text[len(name) :].lstrip()
        if name and text.startswith(name) and (not follows or follows[0] in "*/×" + before):
            return name, follows
    head = re.match(rf"[^*/×{before}]+", text)
    number = parse_any_number(head[0]) if head else None
    if head is None or number is None:
        return None, text
    return number, text[head.end() :].strip()


def _product(row: Row, terms: Sequence[Term], where: str) -> float | str | None:
    value = 1.0
    for sign, term, function in terms:
        if isinstance(term, str):
            cell = row.get(term)
            if is_missing(cell):
                return None
            number = parse_any_number(cell)
            if number is None and len([t for t in terms if isinstance(t.what, str)]) == 1:
                return str(cell)  # what is wrong with a column is said when it is needed
            if number is None:
                raise BadInput(f"{where}: {term} is {str(cell)[:60]!r}, expected a number")
        else:
            number = term
        if function:
            try:
                number = FUNCTIONS[function](number)
            except (ValueError, OverflowError):  # of nothing, or beyond all numbers
                return math.nan
        if sign == "/" and number == 0:
            return None
        value = value / number if sign == "/" else value * number
    return value


def _place(places: Sequence[str], i: int) -> str:
    return places[i] if i < len(places) else f"row {i + 1}"


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "`\"'" else text


def split_pairs(text: str) -> Iterator[str]:
    """The parts of a list that is joined by commas, which quotes may hold too."""
    for part in re.findall(r"(?:`[^`]*`|\"[^\"]*\"|'[^']*'|[^,])+", text):
        if part.strip():
            yield part
