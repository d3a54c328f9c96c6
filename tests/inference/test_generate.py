"""Decoding with a state is the same function as reading everything; sampling keeps its promises."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isoflop.model import LanguageModel
from research import models
from research.errors import BadInput
from research.inference import generate
from research.inference.generate import Sampling
from research.inference.load import OpenedRun
from research.runs.directory import RunDirectory
from research.runs.table import read_table
from research.training.loop import train_run
from research.training.make_run import make_run
from tests.models import test_gru, test_models
from tests.params import slow_but

pytestmark = pytest.mark.usefixtures("barely_optimized")

GREEDY = {"temperature": 0.0}
FAMILIES = {
    **{f"transformer {c}": ("transformer", test_models.SMALL | c) for c in test_models.VARIANTS},
    "gru": ("gru", test_gru.SMALL),
    "gru tied": ("gru", test_gru.SMALL | {"tie_embeddings": True, "unroll": 3}),
}
TEXT = np.random.default_rng(3).integers(0, 61, (2, 16), np.int32)
PROMPT = [3, 1, 4, 1, 5]


def made(name, **changes):
    family, fields = FAMILIES[name]
    model = models.build(family, **fields | changes)
    params = model.init(jax.random.key(0), TEXT)
    # At first a model is nearly indifferent; sharper logits make the draws of the tests differ.
    table = params["embed"] if model.spec.tie_embeddings else params["head"]
    table.update({k: 3 * v for k, v in table.items()})
    return model, params


@pytest.fixture(scope="module", params=["transformer {}", "gru"])
def either(request):
    return made(request.param)


def read_at_once(model, params, ids):
    """Logits [B, T, V] without a state."""
    return model.unembed(params, model.apply(params, ids)).reshape(*ids.shape, -1)


at_once = jax.jit(read_at_once, static_argnums=0)


def read_in_parts(model, params, ids, parts, shift=0):
    """The same with a state that takes up `parts` tokens at a time; `shift` is a wrong position."""
    decode = jax.jit(model.decode)
    state, out, at = model.init_cache(len(ids), 16 + shift), [], 0
    for n in parts:
        hidden, state = decode(params, ids[:, at : at + n], state, at + shift * (at > 0))
        out.append(model.unembed(params, hidden).reshape(len(ids), n, -1))
        at += n
    return jnp.concatenate(out, axis=1)


OFTEN = ("gru", "gru tied", "transformer {}")  # in the default tests


@pytest.mark.parametrize("name", slow_but(OFTEN, FAMILIES))
def test_logits_with_a_state_are_those_without(name):
    model, params = made(name)
    whole = read_at_once(model, params, TEXT)
    scale = float(jnp.abs(whole).max())
    # bfloat16 is compared loosely: a sum of another length may be rounded otherwise.
    near = 1e-5 * scale if model.spec.dtype == "float32" else 0.02 * scale
    for parts in ([5] + [1] * 11, [1] * 16, [6, 10]):
        np.testing.assert_allclose(read_in_parts(model, params, TEXT, parts), whole, atol=near)
    if name.startswith("transformer"):
        wrong = read_in_parts(model, params, TEXT[:, :14], [5] + [1] * 9, shift=2)
        assert jnp.abs(wrong - whole[:, :14]).max() > 2 * near


def test_a_state_that_forgets_would_be_caught(either):
    model, params = either
    whole = read_at_once(model, params, TEXT)
    _, state = model.decode(params, TEXT[:, :5], model.init_cache(2, 16), 0)
    fresh = model.init_cache(2, 16)
    for start, same in ((state, True), (fresh, False)):
        hidden, _ = model.decode(params, TEXT[:, 5:6], start, 5)
        out = model.unembed(params, hidden)
        assert np.allclose(out, whole[:, 5], atol=1e-4) == same


def likeliest(model, params, ids):
    """The argmax after `ids`, read without a state; what is read after them changes nothing."""
    room = model.max_length or 48
    padded = np.array([[*ids, *[0] * (room - len(ids))]], np.int32)
    return int(jnp.argmax(at_once(model, params, padded)[0, len(ids) - 1]))


def greedy_without_state(model, params, prompt, tokens):
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(likeliest(model, params, ids))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["transformer {}", "gru"])
def test_greedy_is_the_argmax_of_everything_read_anew(name):
    model, params = made(name)
    ids = generate.generate(model, params, PROMPT, 8, **GREEDY)
    assert ids.shape == (1, 8)
    assert ids[0].tolist() == greedy_without_state(model, params, PROMPT, 8)
    other = generate.generate(model, params, [*PROMPT[:-1], 60], 8, **GREEDY)
    assert ids.tolist() != other.tolist()


def test_the_seed_decides_everything(either):
    model, params = either
    first, again, other = (generate.generate(model, params, PROMPT, 30, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_sample_does_not_depend_on_how_many_there_are(either):
    model, params = either
    three = generate.generate(model, params, PROMPT, 12, seed=1, samples=3)
    one = generate.generate(model, params, PROMPT, 12, seed=1)
    np.testing.assert_array_equal(three[:1], one)
    assert (three[0] != three[1]).any()
    longer = generate.generate(model, params, PROMPT, 14, seed=1)
    np.testing.assert_array_equal(longer[:, :12], one)


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_what_leaves_one_token_is_greedy(how, either):
    model, params = either
    greedy = generate.generate(model, params, PROMPT, 12, **GREEDY, seed=1)
    np.testing.assert_array_equal(
        generate.generate(model, params, PROMPT, 12, **how, seed=2), greedy
    )
    free = generate.generate(model, params, PROMPT, 12, seed=2)
    assert (free != greedy).any()


LOGITS = jnp.log(jnp.array([0.05, 0.4, 0.1, 0.3, 0.15]))  # by rank: 1, 3, 4, 2, 0
DRAWS = 4000


def drawn(temperature=1.0, top_k=0, top_p=1.0):
    """How often each of the five tokens is drawn."""
    how = Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
    keys = jax.random.split(jax.random.key(0), DRAWS)
    ids = generate._sample_token(jnp.tile(LOGITS[None], (DRAWS, 1)), how, keys, jnp.int32(0))
    return np.bincount(ids, minlength=5) / DRAWS


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [0.05, 0.4, 0.1, 0.3, 0.15]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.05, 0.4, 0.1, 0.3, 0.15]),
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7, 0]),  # 0.4 is not enough, 0.7 is
        ({"top_p": 0.75}, [0, 8 / 17, 0, 6 / 17, 3 / 17]),
        ({"top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 3 / 7, 0]),  # 0.7 of the 0.85 that top_k left
        ({"top_p": 0.3}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, np.array([0.05, 0.4, 0.1, 0.3, 0.15]) ** 2 / 0.285),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_should_and_none_that_is_left_out(how, expected):
    found = drawn(**how)
    assert (found[np.array(expected) == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_of_equal_tokens_the_first_is_the_greedy_one():
    how = Sampling(jnp.float32(0), jnp.int32(0), jnp.float32(1))
    order, kept = generate.filter_logits(jnp.zeros((1, 5)), how)
    assert int(order[0, 0]) == 0
    assert np.isfinite(np.asarray(kept[0])).tolist() == [True] + [False] * 4


def test_past_the_context_the_last_half_of_it_is_read_anew():
    model, params = made("transformer {}")
    ids = generate.generate(model, params, PROMPT, 40, **GREEDY)[0].tolist()
    text, begin = list(PROMPT), 0
    for i, token in enumerate(ids):
        if len(text) - begin > 16:
            begin = len(text) - 8
        assert token == likeliest(model, params, text[begin:]), i
        text.append(token)
    assert begin > 0


@pytest.mark.parametrize("length", [15, 16, 17, 40])
def test_a_prompt_may_be_longer_than_the_context(length):
    model, params = made("transformer {}")
    prompt = np.random.default_rng(0).integers(0, 61, length)
    ids = generate.generate(model, params, prompt, 3, **GREEDY)
    seen = prompt if length <= 16 else prompt[-8:]
    assert ids[0, 0] == greedy_without_state(model, params, seen, 1)[0]


def test_a_gru_never_reads_anew():
    model, params = made("gru")
    assert model.max_length is None
    ids = generate.generate(model, params, PROMPT, 40, **GREEDY)[0].tolist()
    assert ids == greedy_without_state(model, params, PROMPT, 40)


def test_a_text_of_many_stretches_compiles_three_programs():
    model, params = made("transformer {}", rotary_theta=1234.0)
    generate._prefill.clear_cache()
    generate._decode_tokens.clear_cache()
    for how in ({}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.9, "seed": 9}):
        generate.generate(model, params, PROMPT, 60, **how)
    assert generate._prefill._cache_size() == 2  # the prompt, and half a context
    assert generate._decode_tokens._cache_size() == 1


def test_bad_prompts_and_other_models_are_rejected():
    model, params = made("transformer {}")
    with pytest.raises(BadInput, match="prompt is empty"):
        generate.generate(model, params, [], 3)
    for ids in ([3, 61], [-1]):
        with pytest.raises(BadInput, match="expected ids below 61"):
            generate.generate(model, params, ids, 3)
    classifier = models.build("transformer", **test_models.SMALL, classes=3, pad=0)
    with pytest.raises(BadInput, match="no next token"):
        generate.generate(classifier, params, PROMPT, 3)


# The command


def call(*args, **env):
    command = [sys.executable, "-m", "experiments.generate", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | env, timeout=120
    )


@pytest.fixture(scope="module")
def no_jax(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nojax")
    (folder / "jax.py").write_text("raise RuntimeError('jax was imported')")
    return str(folder)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    """A workdir of two runs, of which the longer one is the better."""
    workdir = tmp_path_factory.mktemp("generate")
    for steps in (12.0, 40.0):
        run = make_run(tiny({"horizon.amount": steps}))
        with RunDirectory(workdir, run.id) as directory:
            train_run(run, directory)
    return workdir


@pytest.mark.slow
def test_the_best_run_of_a_workdir_writes_on(workdir):
    rows = {r["run"]: r["loss"] for r in read_table(workdir)}
    best, worst = min(rows, key=rows.get), max(rows, key=rows.get)
    done = call(f"--runs={workdir}", "--prompt=the ", "--tokens=40")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the ")
    assert f"run {best} of 2" in done.stderr
    assert "40 tokens in" in done.stderr
    direct = call(f"--runs={workdir / 'runs' / best}", "--prompt=the ", "--tokens=40")
    assert direct.stdout == done.stdout
    other = call(f"--runs={workdir}", f"--run={worst}", "--prompt=the ", "--tokens=40")
    assert other.returncode == 0
    assert other.stdout != done.stdout


@pytest.mark.slow
def test_the_command_writes_what_the_library_does(workdir):
    from research.inference.load import open_run

    (path, *_) = (workdir / "runs").iterdir()
    source = open_run(path)
    how = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "seed": 3, "samples": 2}
    ids = generate.generate(source.model, source.params, list("é".encode()), 20, **how)
    flags = [f"--{name}={value}" for name, value in how.items()]
    done = call(f"--runs={path}", "--prompt=é", "--tokens=20", *flags, PYTHONUTF8="1")
    texts = [bytes([*"é".encode(), *sample]).decode(errors="replace") for sample in ids.tolist()]
    written = "".join(f"{text}\n" for text in texts)
    assert done.stdout == written.replace("\r\n", "\n").replace("\r", "\n")  # as call() reads it


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--temperature=-1"], "--temperature=-1.0: expected a number of at least 0"),
        (["--temperature=nan"], "--temperature=nan: expected a number of at least 0"),
        (["--top_p=0"], "--top_p=0.0: expected a number above 0 and at most 1"),
        (["--top_p=1.1"], "--top_p=1.1: expected"),
        (["--top_k=-1"], "--top_k=-1: expected a whole number of at least 0"),
        (["--tokens=0"], "--tokens=0: expected a whole number of at least 1"),
        (["--tokens=some"], "invalid int value: 'some'"),
        (["--samples=0", "--seed=-1"], "--seed=-1: expected a whole number from 0"),
        (["--prompt="], "--prompt=: expected what the text begins with"),
        (["--run=nothere"], "no finished language model (nothere)"),
        (["--runs=/no/such/folder"], "/no/such/folder"),
        (["--top-k=3"], "--top-k=3: no such flag; did you mean --top_k?"),
    ],
)
def test_bad_flags_are_reported_without_jax(args, words, workdir, no_jax):
    done = call(f"--runs={workdir}", "--prompt=the", *args, PYTHONPATH=no_jax)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_no_language_model_is_rejected_without_jax(workdir, no_jax, tmp_path):
    (path, *_) = (workdir / "runs").iterdir()
    moved = shutil.copytree(path, tmp_path / "runs" / path.name)
    result = json.loads((moved / "result.json").read_text())
    (moved / "result.json").write_text(json.dumps(result | {"task": "regression"}))
    for place in (moved, tmp_path):
        done = call(f"--runs={place}", "--prompt=the", PYTHONPATH=no_jax)
        assert done.returncode == 2
        assert "language" in done.stderr


@pytest.mark.slow
def test_of_a_run_on_token_ids_prompt_and_text_are_ids(tmp_path, tiny):
    path = tmp_path / "ids.bin"
    (np.arange(6000) % 97).astype(np.uint16).tofile(path)
    run = make_run(tiny({"data.path": str(path), "data.vocab": 97, "horizon.amount": 3.0}))
    with RunDirectory(tmp_path, run.id) as directory:
        train_run(run, directory)
    done = call(f"--runs={tmp_path}", "--prompt=5 6", "--tokens=4")
    assert done.returncode == 0, done.stderr
    ids = [int(i) for i in done.stdout.split()]
    assert ids[:2] == [5, 6]
    assert len(ids) == 6
    assert max(ids) < 97
    assert call(f"--runs={tmp_path}", "--prompt=97").returncode == 2
    done = call(f"--runs={tmp_path}", "--prompt=the")
    assert done.returncode == 2
    assert "expected the ids of tokens" in done.stderr


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model: model.logits([1, 61]), "token 61; expected ids below 61"),
        (lambda model: model.logits([-1]), "token -1; expected ids below 61"),
        (lambda model: model.generate([61]), "token 61; expected ids below 61"),
        (lambda model: model.generate([1], tokens=-1), "^tokens=-1: expected a whole number"),
        (lambda model: model.generate([1], tokens=2.5), "^tokens=2.5: expected a whole number"),
        (lambda model: model.generate([1], top_p=3), "^top_p=3: expected a number above 0"),
        (lambda model: model.generate([1], temperature="hot"), "^temperature=hot: expected"),
        (lambda model: model.generate(3), "3: expected a text, or the ids"),
    ],
)
def test_a_model_of_a_notebook_refuses_what_it_cannot_read(ask, words):
    model, params = made("transformer {}")
    opened = OpenedRun(Path("run"), 1, model, params, "", {"data": {"path": "ids.bin"}})
    asked = LanguageModel(opened)
    with pytest.raises(BadInput, match=words):
        ask(asked)
    assert asked.logits([1, 60]).shape == (2, 61)
    assert len(asked.generate([1], tokens=np.int64(2), temperature=0, top_p=1)) == 3
