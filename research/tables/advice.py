"""The flag that names the columns of a table from elsewhere, by what these are called."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.errors import BadInput
from research.tables.columns import (
    BASES,
    LOG,
    MOST_SCALED,
    OF_COUNTS,
    Unit,
    header_unit,
    rename,
    words_of,
)
from research.tables.numbers import has_decimal_comma, parse_any_number
from research.tables.states import is_missing, names_states

MANY = 100  # rows, by which a column is judged
APART = 0.3  # in logs: tokens that do not go with the size
Rows = Sequence[Mapping[str, Any]]
_NAMES = {  # what others call our columns
    "params": "n params parameters parametercount numparams numparameters nparams modelsize size "
    "nonembeddingparams totalparams paramcount nopt nopts paramsopt optparams optimalparams nstar",
    "tokens": "d tokens token tokenstrained trainingtokens traintokens totaltokens numtokens "
    "ntokens tokensseen datasetsize dopt dopts tokensopt opttokens optimaltokens dstar",
    "flops": "c flops flop compute trainingflops totalflops trainflops totalgflops gflops "
    "computeflops budget computebudget flopsbudget targetflops",
    "loss": "l loss valloss validationloss evalloss finalloss testloss evaluationloss "
    "macroloss evalmacroloss valbpb bpb bitsbyte bitstoken ce crossentropy",
    "accuracy": "acc accuracy valaccuracy evalaccuracy testaccuracy",
    "unique_tokens": "uniquetokens",
    "run": "name runname runid id trial trialid number",
}


def _of(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Of a longer name: the words of which it has one, all of some, and none.
_WORDS = {
    "params": (
        "params|param|parameters|parameter",
        "layer attn attention ffn mlp norm emb embedding embeddings image text vision ratio per "
        "token tokens",
    ),
    "tokens": (
        "tokens|token|toks|tok|samples seen|examples seen|images seen|data size|dataset size",
        "per second sec s batch param params parameter vocab max context length seq step update "
        "layer gpu epoch eval loss lower upper visual special new prompt generated inference input "
        "output",
    ),
    "loss": (
        "loss|losses|nll|xent|bpb|bpc|deviance|perplexity|ppl|cross entropy|bits byte|bits token|"
        "bits char|bits character|log likelihood|loglikelihood|log prob|logprob",
        "weight weights coef coeff lambda scale fn function name type std stderr se sd err error "
        "lower upper ci min max z aux balance load ratio count gap diff delta",
    ),
}
_OF_MUCH = _of("modelsize size number budget ratio")  # by which less is called
_LOGARITHM_OF = _of("perplexity ppl")
_ERROR = re.compile(  # of a classifier: no loss, but it falls like one
    r"(?:(?:top|val|valid|validation|test|eval|imagenet|top-?\d)[\W_]*)+err(?:or)?(?:[\W_]*rate)?|"
    r"error[\W_]*rate",
    re.IGNORECASE,
)
_LIKELY = _of("likelihood loglikelihood prob logprob")
_ACTIVE = _of("active activated")  # of the parameters of a sparse model: those that cost compute
_HELD_OUT = _of("val valid validation eval evaluation test heldout")
_SCORES = _of("acc acc1 acc5 accuracy top1 score mmlu hellaswag arc piqa winogrande lambada gsm8k")
_CONVENTIONS = (1e-4, 1e5)  # of FLOPs over 6 · params · tokens, of which one may be
_ODD = 1e6  # tokens of a parameter, or parameters of a token, that no run has
_RATIOS = ("dn", "tpp", "tokensperparam", "tokensperparameter", "tokensparams", "ratio")
_STEPS = (
    "steps", "step", "trainsteps", "trainingsteps", "numsteps", "nsteps", "maxsteps", "totalsteps",
    "iterations", "iters", "maxiters", "numiters", "niters", "updates",
)  # fmt: skip
_BATCH = ("batchtokens", "tokensperbatch", "tokensperstep", "batchsizetokens", "tokensbatch")
_SEQUENCES = ("batch", "batchsize", "globalbatchsize", "trainbatchsize", "bs", "gbs")
_LENGTH = (
    "seqlen", "sequencelength", "seqlength", "maxseqlen", "context", "contextlength", "contextlen",
    "ctx", "blocksize", "block",
)  # fmt: skip
_LISTED = re.compile(r"\[(\d+) objects: (.*)\]")  # how file_formats shows a list of objects


def advice(rows: Rows, missing: Sequence[str]) -> str:
    """The flag that names the missing columns among those that look like them, and with them the
    tokens and FLOPs of the table, beside what was named already; or else where they may be."""
    pairs = guess_all(rows, missing)
    elsewhere = _of_scores(rows, missing) or _of_lists(rows)
    if elsewhere and (not pairs or ("loss" in missing and "loss" not in pairs)):
        return elsewhere
    axis = next((ours for ours in ("flops", "tokens") if guess(rows, ours)), None)
    if "params" in missing and "params" not in pairs and axis:
        pairs |= {axis: str(guess(rows, axis))}
        return (
            f"; no column is called as parameters are; --law=power --against={axis} "
            f"--columns='{flag(rows, pairs)}' fits a law without them"
        )
    return f"; perhaps --columns='{flag(rows, pairs)}'" if pairs else ""


def flag(rows: Rows, pairs: Mapping[str, str]) -> str:
    """The value of --columns with `pairs`, and with what was named when the table was read."""
    given = {
        ours: text
        for ours, text in dict(getattr(rows, "names", {})).items()
        if ours != "status" or not names_states(text)  # which is found without it
    }
    return ",".join(f"{ours}={text}" for ours, text in {**given, **pairs}.items())


def guess_all(rows: Rows, missing: Sequence[str]) -> dict[str, str]:
    """Expressions for the missing columns by their names; where there are any, also for tokens and
    FLOPs that the table has under another name."""
    there = {name for row in rows[:MANY] for name in map(str, row)}
    pairs = {ours: text for ours in missing if (text := guess(rows, ours))}
    known = {ours: ours for ours in ("params", "tokens", "flops") if ours in there}
    for ours in ("tokens", "params"):
        if ours not in pairs and ours not in known and (pairs or ours in missing):
            text = guess(rows, ours)
            if not text and ("loss" in there or "loss" in pairs):
                text = _derived(rows, ours, {**known, **pairs})
            pairs |= {ours: text} if text else {}
    if pairs and "flops" not in {**known, **pairs} and (flops := guess(rows, "flops")):
        both = {**known, **pairs}.keys() >= {"params", "tokens"}
        pairs |= {"flops": flops} if both and _go_together(rows, {**known, **pairs}, flops) else {}
    return pairs


def guess(rows: Rows, ours: str) -> str | None:
    """The column that by its name is one of ours, with the unit, logarithm or exponent that its
    header says; None where no name says so."""
    there = list(dict.fromkeys(str(name) for row in rows[:MANY] for name in row))
    found = [
        (kind, _mostly_empty(rows, name), worse, i, name)
        for i, name in enumerate(there)
        if (rank := _rank(name, ours)) is not None and _may_be_numbers(rows, name)
        for kind, worse in (rank,)
    ]
    if not found:
        return None
    name = min(found)[-1]
    values = [x for row in rows[:MANY] if (x := parse_any_number(row.get(name))) is not None]
    falls = ours == "loss" and _LIKELY & {*_spelled(name)} and values and max(values) < 0
    return _expression(name, ours) + ("*-1" if falls else "")


def _rank(name: str, ours: str) -> tuple[int, int] | None:
    """How well a name says that a column is ours, the best first; None where it does not."""
    bare = _bare(name, ours)
    unit = None if ours not in MOST_SCALED or LOG.match(name) else header_unit(name, ours)
    spellings = {_letters(bare), _letters(re.split(r"[/.:]", bare)[-1])}
    known = {ours.replace("_", ""), *_NAMES.get(ours, "").split()}
    words = _spelled(bare)
    if ours == "loss" and _ERROR.fullmatch(bare.strip()):
        return 6, len(words)
    held_out = ours == "loss" and bool(_HELD_OUT & {*words})
    trained = ours == "loss" and not held_out and any(word.startswith("train") for word in words)
    if ours == "params" and _ACTIVE & {*words}:
        return -1, len(words)
    if found := (spellings | {_letters(_without(bare, unit))}) & known:
        return 3 * trained, int(found <= _OF_MUCH)
    some, none = _WORDS.get(ours, ("", ""))
    ways = [way.split() for way in some.split("|") if way]
    if not any({*way} <= {*words} for way in ways) or _of(none) & {*words}:
        return None
    worse = 2 * trained + (ours == "loss" and bool(_LOGARITHM_OF & {*words}))
    return 1 + worse + (ours == "loss" and not held_out), len(words)


def _spelled(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _bare(name: str, ours: str) -> str:
    """A header without its logarithm, or else without what stands in brackets."""
    log = LOG.match(name) if ours in MOST_SCALED else None
    return re.sub(r"[(\[]", " ", name[log.end() :]) if log else re.sub(r"[(\[].*", "", name)


def _expression(name: str, ours: str) -> str:
    log = LOG.match(name) if ours in MOST_SCALED else None
    unit = header_unit(name, ours) if ours in MOST_SCALED and not log else None
    quoted = f"`{name}`" if "," in name or "=" in name else name
    words = {*re.findall(r"[a-z]+", name.lower())}
    if ours == "loss" and _LOGARITHM_OF & words and not words & {"log", "ln"}:
        return f"ln({quoted})"
    base = BASES.get(log["base"].lower().replace("_", ""), "10") + "^" if log else ""
    return base + quoted + (f"*{unit.factor:g}" if unit else "")


def _may_be_numbers(rows: Rows, name: str) -> bool:
    cells = [cell for row in rows[:MANY] if not is_missing(cell := row.get(name))]
    return not cells or any(
        parse_any_number(cell) is not None or has_decimal_comma(cell) for cell in cells
    )


def _mostly_empty(rows: Rows, name: str) -> bool:
    return 2 * sum(is_missing(row.get(name)) for row in rows[:MANY]) > len(rows[:MANY])


def _derived(rows: Rows, ours: str, known: Mapping[str, str]) -> str | None:
    """Parameters or tokens from the other and FLOPs, or tokens from steps."""
    other = known.get("tokens" if ours == "params" else "params")
    flops = known.get("flops") or guess(rows, "flops")
    there = list(dict.fromkeys(str(name) for row in rows[:MANY] for name in row))
    if ours == "tokens" and other:
        of = next((name for name in there if _letters(name) in _RATIOS), None)
        if steps := f"{other}*{of}" if of else _of_steps(there):
            return steps
    if not flops or not other:
        return None
    ratios = [c / x / x / 6 for c, x in zip(_values(rows, flops), _values(rows, other)) if c and x]
    # Tokens of a parameter, or parameters of a token; what a row has that is no budget is neither.
    possible = ratios and 1 / _ODD < ratios[0] < _ODD
    return f"{flops}/{other.replace('*', '/')}/6" if possible else None


def _of_steps(there: Sequence[str]) -> str | None:
    """The product of steps and what is in one, where the table has no tokens."""
    named = {_letters(re.split(r"[/.]", name)[-1]): name for name in reversed(there)}

    def first(names: Sequence[str]) -> str | None:
        return next((named[name] for name in names if name in named), None)

    steps, batch = first(_STEPS), first(_BATCH)
    sequences, length = first(_SEQUENCES), first(_LENGTH)
    if steps and batch:
        return f"{steps}*{batch}"
    return f"{steps}*{sequences}*{length}" if steps and sequences and length else None


def _go_together(rows: Rows, pairs: Mapping[str, str], flops: str) -> bool:
    """Whether the FLOPs of the first row with all three may be those of training it."""
    found = (_values(rows, text) for text in (flops, pairs["params"], pairs["tokens"]))
    ratios = [c / n / d / 6 for c, n, d in zip(*found) if c and n and d]
    return bool(ratios) and _CONVENTIONS[0] < ratios[0] < _CONVENTIONS[1]


def _values(rows: Rows, text: str) -> list[float | None]:
    """What an expression of columns is in the first rows."""
    try:
        renamed, _ = rename([dict(row) for row in rows[:MANY]], {"value": text})
    except BadInput:
        return [None] * min(len(rows), MANY)
    return [parse_any_number(row["value"]) for row in renamed]


def unread_tokens(usable: Rows, rows: Rows) -> list[str]:
    """A warning where a law is of the params of the `usable` rows alone, and these had other tokens
    than goes with their params, in a column of another name; `rows`: of the whole table."""
    text = None if any("tokens" in row for row in usable) else guess(usable, "tokens")
    if not text and not any("tokens" in row for row in usable):
        text = _derived(usable, "tokens", {"params": "params"})
    pairs = [
        (parse_any_number(row["params"]), value)
        for row, value in zip(usable, _values(usable, text) if text else ())
        if value and value > 0
    ]
    logs = np.log(np.array(pairs, float)).T
    if len(pairs) < 3 or np.ptp(logs[0]) == 0:
        return []
    slope, level = np.polyfit(logs[0], logs[1], 1)
    if np.ptp(logs[1] - level - slope * logs[0]) < APART:
        return []
    return [
        f"the law is of params alone, and the rows differ in {text}, probably their tokens: "
        f"--columns='{flag(rows, {'tokens': str(text)})}' for a law of both"
    ]


def _of_scores(rows: Rows, missing: Sequence[str]) -> str:
    """Which law a table of scores has."""
    names = dict.fromkeys(str(name) for row in rows[:MANY] for name in row)
    called = [n for n in names if _SCORES & {*re.findall(r"[a-z]+\d*", n.lower())}]
    score = next((n for n in called if _may_be_scores(rows, n)), None)
    if "loss" not in missing or not score:
        return ""
    axes = {ours: text for ours in ("flops", "params", "tokens") if (text := guess(rows, ours))}
    if axes.keys() == {"params", "tokens"}:  # whose product is compute
        against, pairs = "flops", {**axes, "accuracy": score}
    else:
        against = next(iter(axes), "params")
        pairs = {against: axes.get(against, "…"), "accuracy": score}
    return (
        f"; {score!r} is a score by its name: --law=logistic --against={against} "
        f"--columns='{flag(rows, pairs)}'"
    )


def _may_be_scores(rows: Rows, name: str) -> bool:
    """Whether numbers may be fractions or percent, and are not all whole: those count something."""
    found = [x for row in rows[:MANY] if (x := parse_any_number(row.get(name))) is not None]
    return any(x % 1 for x in found) and all(0 <= x <= 100 for x in found)


def _of_lists(rows: Rows) -> str:
    """Where rows hold lists of objects, which may be what is missing."""
    for row in rows[:1]:
        for name, cell in row.items():
            if found := _LISTED.fullmatch(str(cell)):
                return (
                    f"; {name!r} is a list of {found[1]} objects in each row (with {found[2]}): a "
                    f"row for each of these is expected (in pandas: pd.json_normalize(runs, "
                    f"{name!r}, meta=[…]))"
                )
    return ""


def _without(name: str, unit: Unit | None) -> str:
    """The header without the word, or the first letter of one, that says its unit."""
    if not unit:
        return name
    words = [word for word in words_of(name) if word != unit.words]
    glued = [word for word in words if OF_COUNTS.fullmatch(word)]
    return "".join(word[1:] if word in glued else word for word in words)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())
