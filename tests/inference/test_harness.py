"""What lm-eval is told of a model is what a plain loop reads, and tasks of lm-eval come to the same
scores as those of the suite with the same items. Needs the package lm-eval, and no network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: the extra evaluate")

from research import models
from research.errors import BadInput
from research.inference import export
from research.inference.harness import Harness, HarnessModel, lm_eval
from research.inference.load import OpenedRun
from research.inference.suite import Suite
from research.inference.suite_items import item
from research.params import nest
from tests.inference.test_huggingface import ELSEWHERE, GPT2, LLAMA, leaves_of
from tests.inference.test_scoring import CONTEXT, plainly, untrained
from tests.models import test_models

pytestmark = [
    pytest.mark.usefixtures("barely_optimized"),
    pytest.mark.filterwarnings("default"),  # those of lm-eval and what it imports are not ours
]

SIDE = Path(__file__).with_name("harness_side.py")
FIELDS = test_models.SMALL | {"vocab": 256, "context": CONTEXT}
PAIRS = [  # (context, continuation); spaces at the end of a context belong to what follows
    ("the cat", " sat"),
    ("", "hello"),
    ("a context that is far longer than what is read", " and on"),
    ("short", " with a continuation that is longer than the context"),
    ("trailing  ", "spaces"),
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return untrained("transformer", FIELDS, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def harness_model(opened):
    return HarnessModel(opened)


def requests(args):
    return [SimpleNamespace(args=arg) for arg in args]


def test_log_likelihoods_are_those_of_a_plain_loop(opened, harness_model):
    found = harness_model.loglikelihood(requests(PAIRS), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        kept = context.rstrip() if context else ""
        rest = context[len(kept) :] + continuation
        expected = plainly(opened, [*kept.encode()], [*rest.encode()])
        assert (value, greedy) == (pytest.approx(expected[0], rel=1e-5), expected[1])
        other = plainly(opened, [*kept.encode()], [*rest.encode()], shift=1)
        assert value != pytest.approx(other[0], rel=1e-4)


def test_rolling_reads_every_token_once_after_a_separator(opened, harness_model):
    texts = ["x", "a text of more than two contexts of sixteen tokens", "exactly sixteen!"]
    found = harness_model.loglikelihood_rolling(requests([(text,) for text in texts]))
    for text, value in zip(texts, found, strict=True):
        assert value == pytest.approx(plainly(opened, [], [*text.encode()])[0], rel=1e-5)
        assert value != pytest.approx(plainly(opened, [65], [*text.encode()])[0], rel=1e-5)


def greedy(opened, prompt, tokens):
    """The likeliest tokens, each after the last CONTEXT."""
    ids = [*prompt] or [0]
    begun = len(ids)
    for _ in range(tokens):
        read = np.array([ids[-CONTEXT:]], np.int32)
        hidden = opened.model.apply(opened.params, read)
        ids.append(int(jnp.argmax(opened.model.unembed(opened.params, hidden)[-1])))
    return ids[begun:]


def test_generated_texts_are_greedy_and_end_where_they_should(opened, harness_model):
    prompts = ["the", "", "a prompt that is longer than the context"]
    asked = [(prompt, {"until": [], "max_gen_toks": 6}) for prompt in prompts]
    expected = [greedy(opened, prompt.encode(), 6) for prompt in prompts]
    texts = [
        bytes(ids[: ids.index(0) if 0 in ids else None]).decode(errors="replace")
        for ids in expected
    ]
    assert harness_model.generate_until(requests(asked)) == texts
    assert len({*texts}) > 1
    i = max(range(3), key=lambda i: len(texts[i]))
    end = texts[i][2]
    until = [(prompts[i], {"until": [end], "max_gen_toks": 6})]
    assert harness_model.generate_until(requests(until)) == [texts[i][: texts[i].index(end)]]
    with pytest.raises(BadInput, match="draws its answers at random"):
        harness_model.generate_until(requests([("x", {"until": [], "do_sample": True})]))


@pytest.fixture
def folder(tmp_path):
    """Tasks of lm-eval in YAML: the items of a task of the suite, and texts that are read whole."""
    lines = [item("brackets", 0, i) for i in range(12)]
    rows = [{"question": x.context, "choices": x.options, "label": x.answer} for x in lines]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "items.jsonl")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        "target_delimiter": "",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1},
    }
    choices = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
               "doc_to_target": "{{label}}", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    whole = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target":
             "{{question}}", "metric_list": [{"metric": "bits_per_byte"}]}  # fmt: skip
    for name, more in (("mine", choices), ("whole", whole)):  # JSON is YAML
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **more}))
    return tmp_path


def test_a_task_of_files_comes_to_the_scores_of_the_suite(opened, folder):
    harness = Harness(["mine", "whole"], str(folder), None)
    found = harness.score(opened, "mine", {})
    own = Suite(items=12, seed=0).score(opened, "brackets", {})
    assert {key: found[key] for key in own} == pytest.approx(own, rel=1e-5)
    other = Suite(items=12, seed=1).score(opened, "brackets", {})
    assert found["bits_per_byte"] != pytest.approx(other["bits_per_byte"], rel=1e-5)
    whole = harness.score(opened, "whole", {})
    assert "accuracy" not in whole
    texts = [item("brackets", 0, i).context.encode() for i in range(12)]
    nats = -sum(plainly(opened, [], [*text])[0] for text in texts)
    expected = nats / np.log(2) / sum(map(len, texts))
    assert whole["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_the_recipe_of_a_task_changes_with_its_documents(folder):
    def recipe(items=None):
        return Harness(["mine"], str(folder), items).recipe("mine", {})

    first = recipe()
    assert recipe() == first
    assert recipe(5) != first
    lines = (folder / "items.jsonl").read_text().splitlines()
    (folder / "items.jsonl").write_text("\n".join(reversed(lines)))
    assert recipe()["documents"] != first["documents"]


def test_tasks_that_there_are_not_or_that_cannot_be_read_are_refused(folder):
    with pytest.raises(BadInput, match="--tasks: nothere: neither a task of the suite nor one"):
        Harness(["nothere"], str(folder), None)
    (folder / "items.jsonl").unlink()
    with pytest.raises(BadInput, match="--tasks: mine: lm-eval"):
        Harness(["mine"], str(folder), None)


def test_a_name_that_the_suite_has_is_refused(folder):
    Harness(["mine"], str(folder), None, ["copy"])  # the twin
    with pytest.raises(BadInput, match="--tasks: mine: a task of the suite, and one of "):
        Harness(["mine"], str(folder), None, ["copy", "mine"])


def test_of_a_run_on_ids_nothing_can_be_asked(opened, tmp_path):
    of_ids = OpenedRun(
        tmp_path, 1, opened.model, opened.params, "", {"data": {"path": "train.bin"}}
    )
    with pytest.raises(BadInput, match="whose words are unknown"):
        HarnessModel(of_ids)


# Against lm-eval's own backend, of the same model as `transformers` opens it.

LONG = 64  # tokens of context
WORDS = "the cat sat on the mat and looked at the moon, which was round and far away; "
QUESTIONS = [  # (context, answers): short, empty, ending in a space, longer than the context
    ("the cat", [" sat", " stood", " was not there"]),
    ("", ["hello", "a", "and so on"]),
    ("trailing  ", ["spaces", "tabs"]),
    (WORDS * 2, ["and then it slept", "."]),
    ("é, ü and ñ", [" are two bytes", "!"]),
]
TEXTS = ["x", WORDS[:LONG], WORDS[: LONG + 1], WORDS * 3, "one line\nand another\n"]
PROMPTS = ["the cat", "x", WORDS[:40], "1 + 1 =", "é"]


def tasks_of_files(folder):
    """Tasks of lm-eval in YAML, of all three kinds of request."""
    rows = {
        "choose": [{"question": q, "choices": a, "label": 0} for q, a in QUESTIONS],
        "read": [{"question": text} for text in TEXTS],
        "say": [{"question": text, "label": "a"} for text in PROMPTS],
    }
    kinds = {
        "choose": {"output_type": "multiple_choice", "doc_to_text": "{{question}}",
                   "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}",
                   "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
        "read": {"output_type": "loglikelihood_rolling", "doc_to_text": "",
                 "doc_to_target": "{{question}}",
                 "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}]},
        "say": {"output_type": "generate_until", "doc_to_text": "{{question}}",
                "doc_to_target": "{{label}}", "metric_list": [{"metric": "exact_match"}],
                "generation_kwargs": {"until": ["\n", "q"], "max_gen_toks": 20,
                                      "do_sample": False}},
    }  # fmt: skip
    for name, documents in rows.items():
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, documents)))
        data = {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}
        task = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test",
                "target_delimiter": "", "metadata": {"version": 1}}  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task | kinds[name]))
    return [*rows]


def flat(answers):
    """The numbers and the texts of the answers of a task, in order."""
    if isinstance(answers, list | tuple):
        return [x for answer in answers for x in flat(answer)]
    return [answers]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_backend_of_lm_eval_says_the_same_of_an_exported_model(shape, tmp_path):
    python = os.environ.get(ELSEWHERE, sys.executable)
    probe = [python, "-I", "-c", "import torch, transformers, accelerate, lm_eval"]
    if subprocess.run(probe, capture_output=True).returncode:
        words = f"no lm_eval[hf] with transformers and torch; {ELSEWHERE}=PYTHON names one"
        pytest.skip(words)
    fields = shape | {"vocab": 256, "context": LONG}
    about = {"name": "a", "run": "0123456789ab", "step": 7, "loss": 1.25, "loss_unit": "nats"}
    about |= {"weights": "params", "params": 1234, "model": fields, "config": {"seed": 3}}
    leaves = leaves_of(fields)
    folder = export.write_hf(export.Export(about, leaves, ""), tmp_path / "hf")
    (tasks := tmp_path / "tasks").mkdir()
    names = tasks_of_files(tasks)

    def asked(leaves):
        opened = OpenedRun(tmp_path, 1, models.build(**fields), nest(leaves), "", {})
        harness = Harness(names, str(tasks), None)
        found = lm_eval.simple_evaluate(
            model=HarnessModel(opened),
            tasks=[harness.tasks[name] for name in names],
            task_manager=harness.manager,
            bootstrap_iters=0,
            log_samples=True,
        )
        answers = {k: flat([x["resps"] for x in found["samples"][k]]) for k in names}
        return answers, found["results"]

    own, results = asked(leaves)
    out = tmp_path / "out.json"
    argv = [python, "-I", str(SIDE), str(folder), str(tasks), str(out), *names]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(out.read_text())
    other, _ = asked(leaves_of(fields, seed=1))
    for name in ("choose", "read"):
        said = flat(theirs["answers"][name])
        assert len(said) == len(own[name]) >= len(TEXTS)
        assert own[name] == pytest.approx(said, rel=1e-5)  # whether greedy is True or False
        assert own[name] != pytest.approx(other[name], rel=1e-2)
    assert own["say"] == flat(theirs["answers"]["say"]) != other["say"]
    assert len({*own["say"]}) > 2 < max(map(len, own["say"]))
    for name in names:
        for metric, value in theirs["results"][name].items():
            assert results[name][metric] == pytest.approx(value, rel=1e-5), metric
