"""GPT-2's shape at 124M and 350M parameters on one GPU, in bfloat16, context 1,024: MFU, and the
same of nanoGPT, compiled, in turn.

python -m tools.bench.gpu [--nanogpt=CHECKOUT --torch_python=INTERPRETER]
python -m tools.bench.gpu --compile=h100:1      no card, but its compiler: which batch fits

The batch is the largest of BATCHES that both have memory for; a step is one update of that batch.
MFU is of the FLOPs of accounting's `flops_exact_full`, for both, and of the peak that
hardware.MACHINES names for the card. Written for a machine that we did not have: nothing here has
run on a GPU yet, but its programs compile for one.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tools.bench.turns import Program, in_turn, times_faster

HERE = Path(__file__).parent
CONTEXT, VOCAB = 1024, 50304
CASES = {"124M": (768, 12, 12), "350M": (1024, 24, 16)}  # width, layers, heads
BATCHES = (64, 32, 16, 8, 4)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanodo", help="not used here")
    parser.add_argument("--nanogpt", default="")
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--compile", metavar="TARGET", help="compile for a card that is not here")
    args = parser.parse_args()
    if args.compile:
        return compile_all(args.case or CASES, args.compile)
    # The programs lie in the memory of the card side by side.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax

    from research.parallel import device_mesh
    from research.planning import benchmark

    device = jax.devices()[0]
    if device.platform == "cpu":
        print("error: no GPU here; make bench measures a CPU", file=sys.stderr)
        return 2
    mesh = device_mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, 1)
    peak, how = benchmark.peak_flops(mesh, "bfloat16")
    print(f"{device.device_kind}: {peak:.4g} FLOP/s in bfloat16 ({how})")
    data = random_tokens()
    for case in args.case or CASES:
        for batch in BATCHES:
            commands = {
                "ours": [sys.executable, "-m", "tools.bench.ours", *flags(case, batch, data)]
            }
            if args.nanogpt and args.torch_python:
                commands["nanogpt"] = peer(args, case, batch)
            with contextlib.ExitStack() as stack:
                if programs := started(stack, commands):
                    medians = in_turn(programs, args.blocks, args.seconds)
                    break
        else:
            print(f"{case}: no memory for a batch of {BATCHES[-1]}")
            continue
        flops = json.loads(subprocess.check_output(
            [sys.executable, "-c", FLOPS, *flags(case, batch, data)], text=True
        ))  # fmt: skip
        for name, times in medians.items():
            ms = statistics.median(times)
            mfu, rate = flops / (ms / 1e3) / peak, batch * CONTEXT / (ms / 1e3)
            print(
                f"{case}, batch {batch}, {name}: {ms:.1f} ms, {rate:,.0f} tokens/s, {mfu:.1%} MFU"
            )
        if "nanogpt" in medians:
            print(f"  {times_faster(medians['ours'], medians['nanogpt']):.2f} times faster")
    return 0


FLOPS = """
import sys
from research.config import cli
from research.config.loading import validated
from research.models import accounting
from research.training.make_run import make_run
run = make_run(validated(cli.parse_config(cli.config_parser(""), sys.argv[1:])[1]))
print(accounting.step_flops(run.model, run.batch))
"""


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
