"""Numbers as people write them: 20M, 1.5 B, 20,000,000, 1_000_000, 2.5×10^9, 45 %.

Text is read with a decimal point; `with_point` brings a table with decimal commas there first.
"""

import math
import re

MULTIPLIERS = {
    "": 1.0,
    **dict.fromkeys(("k", "thousand", "thousands"), 1e3),
    **dict.fromkeys(("m", "mm", "mn", "mio", "million", "millions", "mega"), 1e6),
    **dict.fromkeys(
        ("b", "bn", "g", "mrd", "md", "milliard", "milliards", "billion", "billions", "giga"), 1e9
    ),
    **dict.fromkeys(("t", "tn", "trillion", "trillions", "tera"), 1e12),
    **dict.fromkeys(("p", "peta", "quadrillion"), 1e15),
    **dict.fromkeys(("e", "exa", "quintillion"), 1e18),
    **dict.fromkeys(("z", "zetta", "sextillion"), 1e21),
    **dict.fromkeys(("y", "yotta"), 1e24),
    "%": 0.01,
}
PF_DAY = 8.64e19  # FLOPs of a day at 1 PFLOP/s
WHAT = r"(?:params?|parameters?|tokens?|toks?|flops?|fl)"  # may follow a number
_PLAIN = r"[+-]?(?:\d[\d_]*\.?\d*|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<base>{_PLAIN}(?:e[+-]?\d+)?)\s*"
    r"(?:(?P<power>[x×*·⋅]\s*10\s*(?:\^|\*\*|e)?\s*\{?(?P<exponent>[+-]?\d+)\}?))?\s*"
    rf"(?P<suffix>%|[a-z]*?)\s*(?P<what>{WHAT})?",
    re.IGNORECASE,
)
_POWER = re.compile(r"(?P<base>10|2)\s*(?:\^|\*\*)\s*\{?(?P<exponent>[+-]?\d+)\}?")
_PF_DAYS = re.compile(
    rf"({_PLAIN}(?:e[+-]?\d+)?)\s*(?:PF|PFLOPs?(?:/s)?)[\s-]*days?", re.IGNORECASE
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?!\d)")
_ONE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}(?!\d)[^.,]*")
_COMMA = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)?,\d+(?![\d,.])")
_POINTS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+(?![\d.,])")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺−", "0123456789-+-")
_SPACES = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'’](?=\d{3}(?!\d))")  # 20 000 000, 20'000'000


def parse_number(value: object) -> float | None:
    """A finite number, whether as one or as text; None for anything else."""
    number = parse_any_number(value)
    return number if number is not None and math.isfinite(number) else None


def parse_any_number(value: object) -> float | None:
    """A number, which may be infinite or NaN; None for what is none, such as True or a date."""
    if isinstance(value, bool) or value is None:
        return None
    if not isinstance(value, str):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None
    try:
        return float(value)
    except ValueError:
        return _as_written(value)


def _as_written(text: str) -> float | None:
    text = text.strip().lstrip("~≈ ")
    raised = text.translate(_SUPERSCRIPTS)
    if text != raised and re.search(r"10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]", text):  # 10⁹, not 109
        raised = re.sub(r"10(?=[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺])", "10^", text).translate(_SUPERSCRIPTS)
    plain = _SPACES.sub("", raised)
    if grouped := _THOUSANDS.match(plain):
        plain = grouped[0].replace(",", "") + plain[grouped.end() :]
    if plain in ("∞", "+∞", "-∞"):
        return -math.inf if plain[0] == "-" else math.inf
    try:
        if power := _POWER.fullmatch(plain):
            return float(power["base"]) ** int(power["exponent"])
        if days := _PF_DAYS.fullmatch(plain):
            return float(days[1]) * PF_DAY
        found = _NUMBER.fullmatch(plain)
        if not found or (suffix := found["suffix"].lower()) not in MULTIPLIERS:
            return None
        if suffix == "e" and not found["what"]:  # cut off, as in 1.35e
            return None
        return float(found["base"]) * 10.0 ** int(found["exponent"] or 0) * MULTIPLIERS[suffix]
    except (OverflowError, ValueError):
        return None


def may_be_decimal_comma(text: object) -> bool:
    """Whether the comma of "3,978" may be a decimal one as well as one of thousands."""
    return isinstance(text, str) and bool(_ONE_GROUP.fullmatch(text.strip()))


def has_decimal_comma(text: object) -> bool:
    """Whether the text is a number only where the comma is a decimal one: "3,97", "1.000.000"."""
    if not isinstance(text, str) or parse_any_number(text) is not None:
        return False
    return parse_number(with_point(text)) is not None


def groups_thousands(text: object) -> bool:
    """Whether commas group thousands beyond doubt: "1,000,000", "1,000.5"."""
    if not isinstance(text, str) or not (found := _THOUSANDS.match(text.strip())):
        return False
    return found[0].count(",") > 1 or text.strip()[found.end() :].startswith(".")


def with_point(text: str) -> str:
    """A number with a decimal comma (and points between thousands) as one with a decimal point;
    any other text as it is."""
    stripped = text.strip()
    for pattern in (_COMMA, _POINTS):
        if found := pattern.match(stripped):
            head = found[0].replace(".", "").replace(",", ".")
            if parse_any_number(head + stripped[found.end() :]) is not None:
                return head + stripped[found.end() :]
    return text
