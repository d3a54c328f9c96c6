"""GPT-2's shape at 124M and 350M parameters on one GPU, in bfloat16, context 1,024: MFU, and the
same of nanoGPT, compiled, in turn; then many small runs, vmapped and one by one.

python -m tools.bench.gpu [--nanogpt=CHECKOUT --torch_python=INTERPRETER]
python -m tools.bench.gpu --compile=h100:1      no card, but its compiler: which batch fits

Both programs lie in the memory of the card side by side. The first batch that is tried is the
largest of BATCHES by which ours takes SHARE of it, by the estimate, and then smaller ones until
both have memory for theirs; a step is one update of that batch. MFU is of the FLOPs of accounting's
`flops_exact_full`, for both, and of the peak that hardware.MACHINES names for the card. What our
program took at most, by the allocator, is told beside what the compiler said that it would take.

`groups`: the runs of gpt2_groups.py as `experiments.sweep --grouping=force` and `=off` train them,
their programs compiled before. The last line is JSON. Nothing is fetched. Written for a machine
that we did not have: nothing here has run on a GPU yet, but its programs compile for one.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.bench.turns import Program, in_turn, times_faster

HERE = Path(__file__).parent
CONTEXT, VOCAB = 1024, 50304
CASES = {"124M": (768, 12, 12), "350M": (1024, 24, 16)}  # width, layers, heads
BATCHES = (64, 32, 16, 8, 4)
SHARE = {"alone": 0.7, "beside nanogpt": 0.4}  # of the card's memory


def flags(case: str, batch: int, data: str) -> list[str]:
    width, layers, heads = CASES[case]
    changes = {
        "model.width": width,
        "model.depth": layers,
        "model.hidden": 4 * width,
        "model.heads": heads,
        "model.kv_heads": heads,
        "model.dtype": "bfloat16",
        "data.path": data,
        "data.vocab": VOCAB,
        "data.tokenizer": "bytes",
        "data.context": CONTEXT,
        "batch.size": batch,
        "eval.examples": 8,
        "eval.batch": 8,
    }
    return ["--config=configs/lm_gpt2.py", *(f"--config.{k}={v}" for k, v in changes.items())]


def peer(args: argparse.Namespace, case: str, batch: int) -> list[str]:
    width, layers, heads = CASES[case]
    shape = {"width": width, "layers": layers, "heads": heads, "batch": batch}
    shape |= {"context": CONTEXT, "vocab": VOCAB}
    program = [args.torch_python, str(HERE / "peer_torch.py"), "nanogpt", f"--repo={args.nanogpt}"]
    return program + [f"--{name}={value}" for name, value in shape.items()]


def started(stack: contextlib.ExitStack, commands: dict[str, list[str]]) -> dict[str, Program]:
    """All programs, or none where one of them has no memory for its batch."""
    out = {}
    for name, command in commands.items():
        try:
            out[name] = Program(command)
        except SystemExit:
            return {}
        stack.callback(out[name].close)
    return out


def compiled(case: str, target: str) -> tuple[int, dict]:
    """The largest of BATCHES whose dispatch fits, by the compiler of `target`, and what `isoflop
    plan` says of it; of the smallest where none does. Raises SystemExit where it does not compile.
    """
    found: dict = {}
    for batch in BATCHES:
        command = [sys.executable, "-m", "experiments.plan", *flags(case, batch, "none.bin")]
        command += [f"--vocab={VOCAB}", f"--compile={target}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.stdout.startswith("{"):
            raise SystemExit(f"{case}, batch {batch}: {done.stderr.strip()}")
        found = json.loads(done.stdout)
        if found["compiled"]["bytes"]["total"] <= found["available"]:
            return batch, found
    return BATCHES[-1], found


def compile_all(cases: Iterable[str], target: str) -> int:
    """What the compiler says of every case; 1 where something lies or moves as nobody asked."""
    errors = []
    for case in cases:
        batch, found = compiled(case, target)
        total, seconds = found["compiled"]["bytes"]["total"], found["compiled"]["seconds"]
        fits = "of" if total <= found["available"] else "and does not fit in"
        print(
            f"{case}, {found['params']:,} parameters, batch {batch}: {total / 1e9:.3g} GB {fits} "
            f"{found['available'] / 1e9:.3g}, compiled in {seconds:.0f} s; at most "
            f"{found['mfu']:.1%} MFU",
            flush=True,
        )
        errors += found["compiled"]["errors"]
    print(*errors, sep="\n", end="\n" if errors else "")
    return 1 if errors else 0


def first_batch(case: str, data: str, room: float) -> tuple[int, float]:
    """The largest of BATCHES by which the estimate is at most `room` bytes, or the smallest, and
    the FLOPs of a step of one example."""
    from research.config import cli
    from research.config.loading import validated
    from research.models import accounting
    from research.parallel import device_mesh
    from research.planning import memory
    from research.training.make_run import make_run

    mesh = device_mesh.abstract_mesh(dict.fromkeys(device_mesh.AXES, 1))
    for batch in BATCHES:
        _, config, _ = cli.parse_config(cli.config_parser(""), flags(case, batch, data))
        run = make_run(validated(config))
        if batch == BATCHES[-1] or memory.estimate(run, mesh, "gpu").total <= room:
            return batch, accounting.step_flops(run.model, run.batch) / batch
    raise AssertionError


def timed(case: str, args: argparse.Namespace, data: str, card: dict[str, Any]) -> dict[str, Any]:
    """What is measured of a case on a `card` of {"peak": FLOP/s, "memory": bytes}; nothing where
    there is no memory for any batch."""
    beside = bool(args.nanogpt and args.torch_python)
    share = SHARE["beside nanogpt" if beside else "alone"]
    first, flops = first_batch(case, data, share * card["memory"])
    for batch in (b for b in BATCHES if b <= first):
        commands = {"ours": [sys.executable, "-m", "tools.bench.ours", *flags(case, batch, data)]}
        if beside:
            commands["nanogpt"] = peer(args, case, batch)
        with contextlib.ExitStack() as stack:
            if not (programs := started(stack, commands)):
                continue
            medians = in_turn(programs, args.blocks, args.seconds)
            out: dict[str, Any] = {"batch": batch}
            facts = programs["ours"].facts
            out |= {k: facts[k] for k in ("params", "peak_bytes", "compiled_bytes") if k in facts}
        for name, times in medians.items():
            ms = statistics.median(times)
            out[name] = {"ms": ms, "mfu": flops * batch / (ms / 1e3) / card["peak"]}
            print(
                f"{case}, batch {batch}, {name}: {ms:.1f} ms, "
                f"{batch * CONTEXT / (ms / 1e3):,.0f} tokens/s, {out[name]['mfu']:.1%} MFU",
                flush=True,
            )
        if "peak_bytes" in out:
            taken, said = out["peak_bytes"], out["compiled_bytes"]
            print(f"  ours took {taken / 1e9:.3g} GB; the compiler: {said / 1e9:.3g} GB")
        if beside:
            out["times_faster"] = times_faster(medians["ours"], medians["nanogpt"])
            print(f"  {out['times_faster']:.2f} times faster", flush=True)
        return out
    print(f"{case}: no memory for a batch of {BATCHES[-1]}")
    return {}


def groups(config: str) -> dict[str, float]:
    """Seconds of a sweep whose programs are compiled, from its command to its table, vmapped and
    not."""
    from tools.bench import sweep

    out = {}
    for grouping in ("off", "force"):
        with tempfile.TemporaryDirectory() as folder:
            how = ["--executor=inline", f"--grouping={grouping}"]
            out[grouping] = sweep.ours(config, Path(folder), how, warm=True)[0]
        print(f"{Path(config).stem}, grouping={grouping}: {out[grouping]:.1f} s", flush=True)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanodo", help="not used here")
    parser.add_argument("--nanogpt", default="")
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--compile", metavar="TARGET", help="compile for a card that is not here")
    args = parser.parse_args()
    if args.compile:
        return compile_all(args.case or CASES, args.compile)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # here and in the programs
    import jax

    from research.parallel import device_mesh
    from research.planning import benchmark

    device = jax.devices()[0]
    if device.platform == "cpu":
        print(
            "error: jax finds no GPU here; it needs the extra `cuda`, which may come from a folder "
            "of wheels (pip install --no-index --find-links=FOLDER); make bench measures a CPU",
            file=sys.stderr,
        )
        return 2
    mesh = device_mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, 1)
    peak, how = benchmark.peak_flops(mesh, "bfloat16")
    print(f"{device.device_kind}: {peak:.4g} FLOP/s in bfloat16 ({how})", flush=True)
    # Of the card jax takes a share at most, three quarters by default, and says how much that is.
    card = {"peak": peak, "memory": (device.memory_stats() or {}).get("bytes_limit", 60e9)}
    data = random_tokens()
    found: dict[str, Any] = {"device": device.device_kind}
    found |= {case: timed(case, args, data, card) for case in args.case or CASES}
    found["groups"] = groups(str(HERE / "gpt2_groups.py"))
    print(json.dumps(found))
    return 0


def random_tokens() -> str:
    """A file of random token ids, of the vocabulary's size."""
    import numpy as np

    from research.io import files

    path = files.cache("bench") / f"random-{VOCAB}.bin"
    if not path.exists():
        ids = np.random.default_rng(0).integers(0, VOCAB, 1 << 24, dtype=np.uint16)
        files.write_atomic(path, ids.tobytes())
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
