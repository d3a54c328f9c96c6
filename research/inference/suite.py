"""The scores of a trained model on the tasks of the suite."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import data
from research.data import Dataset, evaluation_files, tokenizers
from research.data.byte_tokenizer import Tokenizer
from research.errors import BadInput
from research.inference import suite_items
from research.inference.load import OpenedRun
from research.inference.scoring import Scorer
from research.inference.suite_items import TokenItem
from research.runs.settings import NONE

CountBytes = Callable[[np.ndarray, np.ndarray], int]


def held_out_text(opened: OpenedRun, digest: object) -> Dataset:
    """The data that a run was trained on, whose `digest` it recorded, with what it was measured by
    as held out: the headline of its other sets, where it has one. Raises BadInput where they are
    not there, or others by now."""
    section: Mapping[str, Any] = opened.config["data"]
    found = data.load(**{key: value for key, value in section.items() if key != "seed"})
    changed = found.digest != digest and section.get("path", section["name"])
    if headline := _headline(opened.config["eval"]):
        held = evaluation_files.read(headline["path"], section, found)
        changed = changed or (held.digest != headline["digest"] and headline["path"])
        found = dataclasses.replace(found, heldout=held.split, count_bytes=held.count_bytes)
    if changed:
        was = f"than it did when {opened.path.name} was trained"
        raise BadInput(f"{changed} holds something else {was}")
    return found


def _headline(section: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The set of the resolved section `eval` that the run is measured by; None: what its data hold
    out."""
    sets, name = section.get("sets") or [], section.get("headline")
    return next((one for one in sets if one["name"] == name), None)


@dataclass(frozen=True)
class Suite:
    """The tasks of this library: so many items of each, those of a seed."""

    items: int = 500
    seed: int = 0

    def recipe(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """What decides a score beside the parameters."""
        made = {"suite": suite_items.SUITE, "items": self.items, "seed": self.seed}
        if not _is_cloze(task):
            return made
        written = row.get("eval.sets")  # JSON, of a run that has any
        sets = json.loads(str(written)) if written not in (None, NONE) else []
        headline = _headline({"sets": sets, "headline": row.get("eval.headline")})
        text = {"set": headline["digest"]} if headline else {}
        return made | {"data": row.get("data_digest"), **text}

    def score(self, opened: OpenedRun, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Accuracy, its standard error and bits per byte of the right answer (none where the bytes
        of tokens are unknown). Raises BadInput where the task cannot be asked of the run."""
        tokenizer = tokenizers.from_json(opened.tokenizer)
        count: CountBytes | None = tokenizer.count_bytes
        numbers = range(self.items)
        if _is_cloze(task):
            text = held_out_text(opened, row.get("data_digest"))
            count = text.count_bytes
            items = [suite_items.cloze_item(text.heldout, self.seed, i) for i in numbers]
        elif opened.of_ids:
            raise BadInput(f"the text of run {opened.path.name} was ids, whose words are unknown")
        else:
            items = [_encoded(task, self.seed, i, tokenizer) for i in numbers]
        scorer = Scorer(opened, tokenizer.separator)
        pairs = [(item.context, option) for item in items for option in item.options]
        found = np.array([x.log_likelihood for x in scorer.score(pairs)])
        of_item = np.split(found, np.cumsum([len(item.options) for item in items])[:-1])
        return summary(items, of_item, count) | {"chance": suite_items.TASKS[task].chance}


def _is_cloze(task: str) -> bool:
    return suite_items.TASKS[task].make is None


def summary(
    items: Sequence[TokenItem], found: Sequence[np.ndarray], count: CountBytes | None
) -> dict[str, Any]:
    """The scores of items whose options have these log-likelihoods, in nats."""
    right = [int(np.argmax(x)) == item.answer for x, item in zip(found, items, strict=True)]
    accuracy = float(np.mean(right))
    error = math.sqrt(accuracy * (1 - accuracy) / (len(items) - 1))
    out = {"accuracy": accuracy, "standard_error": error}
    if count is not None:
        nats = -sum(float(x[item.answer]) for x, item in zip(found, items, strict=True))
        out["bits_per_byte"] = nats / math.log(2) / sum(_bytes(item, count) for item in items)
    return out


def _encoded(task: str, seed: int, index: int, tokenizer: Tokenizer) -> TokenItem:
    """An item in token ids: what follows the tokens of the context alone, in those of both."""
    item = suite_items.item(task, seed, index)
    context = np.asarray(tokenizer.encode(item.context), np.int32)
    whole = (tokenizer.encode(item.context + option) for option in item.options)
    options = tuple(np.asarray(ids, np.int32)[len(context) :] for ids in whole)
    return TokenItem(context, options, item.answer)


def _bytes(item: TokenItem, count: CountBytes) -> int:
    right = item.options[item.answer]
    return count(np.concatenate([item.context[-1:], right[:-1]]), right)
