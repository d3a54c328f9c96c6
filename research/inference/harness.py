"""Tasks of EleutherAI's lm-eval, asked of a trained run in this process.

Imported only where tasks of lm-eval are asked for; needs the package, and neither torch nor
transformers.
"""

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.data import tokenizers
from research.errors import BadInput, first_line
from research.inference.load import OpenedRun
from research.inference.scoring import Scorer
from research.io import files

lm_eval: Any = importlib.import_module("lm_eval")
TemplateLM: Any = importlib.import_module("lm_eval.api.model").TemplateLM
FIRST = ("acc", "exact_match")  # the metrics that are the score of a task, where it has them
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
MOST_TOKENS = 256  # of an answer, where a task says nothing of it


class HarnessModel(TemplateLM):
    """A trained run as lm-eval asks models. Raises BadInput for a run on ids, which have no
    words."""

    def __init__(self, opened: OpenedRun):
        super().__init__()
        if opened.of_ids:
            raise BadInput(f"the text of run {opened.path.name} was ids, whose words are unknown")
        self.words = tokenizers.from_json(opened.tokenizer)
        self.scorer = Scorer(opened, self.words.separator)

    @property
    def eot_token_id(self) -> int:
        return self.words.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list:
        del add_special_tokens  # the separator stands between documents, and in no text
        return self.words.encode(string).tolist()

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_: Any) -> list:
        return [tuple(x) for x in self.scorer.score([(a, b) for _, a, b in requests])]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        texts = [request.args[0] for request in requests]
        scores = self.scorer.score([([], self.tok_encode(text)) for text in texts])
        return [score.log_likelihood for score in scores]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Greedy texts up to the first of the words that end one. Raises BadInput for a task that
        samples."""
        prompts, limits = [], []
        for request in requests:
            context, how = request.args
            if how.get("do_sample") or (how.get("temperature") or 0) > 0:
                raise BadInput("the task draws its answers at random; expected greedy ones")
            until = how.get("until") or []
            ends = [until] if isinstance(until, str) else list(until)
            prompts.append(self.tok_encode(context))
            limits.append((int(how.get("max_gen_toks") or MOST_TOKENS), ends))

        def over(i: int, said: Sequence[int]) -> bool:
            most, ends = limits[i]
            ended = len(said) >= most or (len(said) > 0 and said[-1] == self.words.separator)
            return ended or any(end in self._text(said) for end in ends)

        said = self.scorer.continuations(prompts, over)
        return [self._until(ids, ends) for ids, (_, ends) in zip(said, limits, strict=True)]

    def _text(self, ids: Sequence[int]) -> str:
        return self.words.decode([i for i in ids if i != self.words.separator]).decode(
            errors="replace"
        )

    def _until(self, ids: Sequence[int], ends: Sequence[str]) -> str:
        text = self._text(ids)
        return text[: min((text.find(end) for end in ends if end and end in text), default=None)]


class Harness:
    """The tasks of lm-eval by these names, of its own and of the YAML files in `include_path`;
    `items`: of each the first so many, None: all. Raises BadInput for names that it does not
    know, for tasks whose documents cannot be had, and where a YAML file has one of the names
    `taken` that are asked, too, and are others' tasks."""

    def __init__(
        self,
        names: Sequence[str],
        include_path: str | None,
        items: int | None,
        taken: Sequence[str] = (),
    ):
        make = importlib.import_module("lm_eval.tasks").TaskManager
        self.manager = make(include_path=include_path, include_defaults=False)
        if twice := [name for name in taken if name in self.manager.all_tasks]:
            words = f"a task of the suite, and one of {include_path}; expected another name there"
            raise BadInput(*(f"--tasks: {name}: {words}" for name in twice))
        if any(name not in self.manager.all_tasks for name in names):
            self.manager = make(include_path=include_path)
        if unknown := [name for name in names if name not in self.manager.all_tasks]:
            words = "neither a task of the suite nor one of lm-eval"
            raise BadInput(*(f"--tasks: {name}: {words}" for name in unknown))
        self.items = items
        try:
            self.tasks: dict[str, Any] = self.manager.load(list(names))["tasks"]
        except Exception as error:
            words = f"--tasks: {', '.join(names)}: lm-eval: {first_line(error)}"
            raise BadInput(words) from error

    def recipe(self, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the score of a task beside the parameters."""
        del row
        made = self.tasks[task]
        config = json.dumps(made.dump_config(), default=str, sort_keys=True)
        docs = json.dumps(list(made.eval_docs)[: self.items], default=str, sort_keys=True)
        return {
            "lm_eval": lm_eval.__version__,
            "task": files.digest(ADDRESS.sub("", config).encode()),
            "documents": files.digest(docs.encode()),
            "items": self.items,
        }

    def score(self, opened: OpenedRun, task: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The score of a task. Raises BadInput where it cannot be asked of this run."""
        del row
        found = lm_eval.simple_evaluate(
            model=HarnessModel(opened),
            tasks=[self.tasks[task]],
            task_manager=self.manager,
            limit=self.items,
            bootstrap_iters=0,
            log_samples=True,
        )
        return _summary(found["results"][task], found["samples"][task], self.tasks[task])


def _summary(results: Mapping[str, Any], samples: Sequence[Mapping], task: Any) -> dict[str, Any]:
    """Accuracy is the metric of FIRST, else the first of which more is better."""
    metrics = {str(key).partition(",")[0]: x for key, x in results.items() if _number(x)}
    high = task.higher_is_better()
    names = [*FIRST, *(name for name in metrics if high.get(name))]
    out: dict[str, Any] = {"items": len(samples)}
    if name := next((name for name in names if name in metrics), None):
        out |= {"metric": name, "accuracy": float(metrics[name])}
        values = [float(sample[name]) for sample in samples if _number(sample.get(name))]
        if len(values) > 1:
            out["standard_error"] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    if "bits_per_byte" in metrics:
        out["bits_per_byte"] = float(metrics["bits_per_byte"])
    if task.OUTPUT_TYPE == "multiple_choice":
        out |= _of_choices(samples)
    if len(out) == 1:
        raise BadInput(f"none of its metrics is a score: {', '.join(metrics) or 'it has none'}")
    return out


def _of_choices(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Chance, and bits per byte of the right answer, of questions with several answers."""
    out = {"chance": float(np.mean([1 / len(sample["filtered_resps"]) for sample in samples]))}
    nats, size = 0.0, 0
    for sample in samples:
        right = sample["target"]
        if not isinstance(right, int) or not 0 <= right < len(sample["filtered_resps"]):
            return out
        nats -= float(sample["filtered_resps"][right][0])
        size += len(_arguments(sample, right)[1].encode())
    return out | ({"bits_per_byte": nats / np.log(2) / size} if size else {})


def _arguments(sample: Mapping[str, Any], i: int) -> tuple[str, str]:
    """(context, continuation) of an answer of a sample, as lm-eval logs them."""
    arguments = sample["arguments"]
    if isinstance(arguments, Mapping):
        entry = arguments[f"gen_args_{i}"]
        return entry["arg_0"], entry["arg_1"]
    return arguments[i][0], arguments[i][1]


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
