"""A trained language model, to be asked."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import generate as command
from research.data import tokenizers
from research.errors import BadInput
from research.inference import generate, sampling_flags
from research.inference.load import OpenedRun, open_run
from research.parallel import jax_settings


class LanguageModel:
    """`model` (see `research.models.Model`) with its `params`; `path` is its run, `step` that of
    its checkpoint."""

    def __init__(self, opened: OpenedRun):
        self.path, self.step, self.config = opened.path, opened.step, opened.config
        self.model, self.params = opened.model, opened.params
        self._words, self._of_ids = tokenizers.from_json(opened.tokenizer), opened.of_ids

    def encode(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of a text; ids as they are. Raises BadInput for text where the run was trained
        on ids, of which nothing tells the words."""
        if not isinstance(text, str | Sequence | np.ndarray):
            raise BadInput(f"{text!r}: expected a text, or the ids of tokens")
        if not isinstance(text, str):
            return [int(i) for i in text]
        if self._of_ids:
            raise BadInput("the model was trained on the ids of tokens: give ids, not text")
        return [int(i) for i in self._words.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        text: Any = self._words.decode([int(i) for i in ids])
        return text.decode(errors="replace") if isinstance(text, bytes) else text

    def logits(self, text: str | Sequence[int]) -> np.ndarray:
        """float32 [T, vocabulary]: of the token after each of T. Raises BadInput for no tokens, for
        more than the model reads, and for ids beyond its vocabulary."""
        ids = self.encode(text)
        generate.check_ids(self.model, ids)
        most = self.model.max_length
        if not ids or (most is not None and len(ids) > most):
            raise BadInput(f"{len(ids)} tokens: expected 1 to {most or 'any number'}")
        tokens = np.array([ids], np.int32)
        hidden = self.model.apply(self.params, tokens)  # type: ignore[arg-type]
        return np.asarray(self.model.unembed(self.params, hidden), np.float32)

    def generate(
        self,
        prompt: str | Sequence[int],
        tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str | list[int]:
        """`prompt` and how it goes on, as text; as ids where the run was trained on ids. Sampling
        is that of `isoflop generate`, which also says what numbers it takes; others raise
        BadInput."""
        how: dict = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        sampling_flags.check_numbers({"tokens": tokens, **how}, "")
        ids = self.encode(prompt)
        (sample,) = generate.generate(self.model, self.params, ids, tokens, **how)
        out = [*ids, *map(int, sample)]
        return out if self._of_ids else self.decode(out)

    def __repr__(self) -> str:
        return f"LanguageModel({self.path}, step {self.step})"


def load(run: str | os.PathLike[str]) -> LanguageModel:
    """See `isoflop.load_model`."""
    jax_settings.prepare()
    return LanguageModel(open_run(command.chosen(os.fspath(run))))
