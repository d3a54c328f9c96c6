"""The scores of a trained model on the tasks of the suite."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research import data
from research.data import Dataset, tokenizers
from research.data.byte_tokenizer import Tokenizer
from research.errors import BadInput
from research.inference import suite_items
from research.inference.load import OpenedRun
from research.inference.scoring import Scorer
from research.inference.suite_items import TokenItem

CountBytes = Callable[[np.ndarray, np.ndarray], int]


def held_out_text(opened: OpenedRun, digest: object) -> Dataset:
    """The data that a run was trained on, whose `digest` it recorded. Raises BadInput where they
    are not there, or others by now."""
    section: Mapping[str, Any] = opened.config["data"]
    found = data.load(**{key: value for key, value in section.items() if key != "seed"})
    if found.digest != digest:
        raise BadInput(
            f"cloze: {section.get('path', section['name'])} holds something else than it did when "
            f"{opened.path.name} was trained"
        )
    return found


@dataclass(frozen=True)
class Suite:
    """The tasks of this library: so many items of each, those of a seed."""

    items: int = 500
    seed: int = 0

    def recipe(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """What decides a score beside the parameters."""
        made = {"suite": suite_items.SUITE, "items": self.items, "seed": self.seed}
        return made | ({"data": row.get("data_digest")} if _is_cloze(task) else {})

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
