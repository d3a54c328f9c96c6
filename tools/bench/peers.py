"""How many times faster a training step is here than a peer's, on the same machine in turn.

python -m tools.bench.peers --nanodo=CHECKOUT --nanogpt=CHECKOUT --torch_python=INTERPRETER

Every program keeps a process of its own, with all cores, and they work in turn: a block of steps
here, one there, and so on (see turns). A ratio is that of the medians over the blocks. Ours is the
training loop with its data; what the peers run is said in peer_nanodo.py and peer_torch.py. Between
them large products are timed, by each library that is there (products.py), and a step's FLOP/s are
compared with the best of them. The last line is JSON: for each peer the geometric mean and the
least of "times faster" over its cases; "limit", of each case the share of the best product; "bf16",
of each case how many times faster it is in bfloat16, where the CPU has products of it (AMX).
Without --nanogpt and --torch_python, or without --nanodo, what needs them is left out.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.bench import CASES, flags
from research.io import host
from tools.bench.turns import Program, in_turn, times_faster

HERE = Path(__file__).parent
GPT2 = {"GPT-2 64/2/16": (64, 2, 16), "GPT-2 128/4/16": (128, 4, 16), "GPT-2 256/4/8": (256, 4, 8)}
TORCH = {"GRU 128/2/16": "gru", "CNN, batch 64": "cnn"}


def commands(args: argparse.Namespace) -> dict[str, dict[str, list[str]]]:
    """What to start, by case and peer."""
    out: dict[str, dict[str, list[str]]] = {}
    torch = [args.torch_python, str(HERE / "peer_torch.py")]
    for case, (width, layers, batch) in GPT2.items():
        shape = [f"--width={width}", f"--layers={layers}", f"--batch={batch}"]
        peers = out[case] = {}
        if args.nanodo:
            command = [sys.executable, str(HERE / "peer_nanodo.py"), f"--repo={args.nanodo}"]
            peers["nanodo"] = [*command, *shape]
        if args.nanogpt and args.torch_python:
            peers["nanogpt"] = [*torch, "nanogpt", f"--repo={args.nanogpt}", *shape]
    if args.torch_python:
        for case, name in TORCH.items():
            batch = "--batch=64" if name == "cnn" else "--batch=16"
            out[case] = {f"torch_{name}": [*torch, name, batch]}
    return {case: peers for case, peers in out.items() if peers and args.case in case}


def products(torch_python: str) -> dict[str, list[str]]:
    """What times the machine's products, by library."""
    out = {name: [sys.executable, str(HERE / "products.py"), name] for name in ("numpy", "xla")}
    if torch_python:
        out["torch"] = [torch_python, str(HERE / "products.py"), "torch"]
    return out


def has_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16."""
    return "amx_bf16" in host.instructions().split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanodo", default="", help="a checkout")
    parser.add_argument("--nanogpt", default="", help="a checkout; needs --torch_python")
    parser.add_argument("--torch_python", default="", help="an interpreter that has PyTorch")
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument("--blocks", type=int, default=9, help="of each program and case")
    parser.add_argument("--seconds", type=float, default=0.6, help="of a block, about")
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    limit, bf16 = {}, {}
    libraries = products(args.torch_python)
    for case, peers in commands(args).items():
        more = {"bf16": [*ours(case), "--config.model.dtype=bfloat16"]}
        more = more if has_bfloat16() and case in GPT2 else {}
        programs = {"ours": ours(case), **peers, **more, **libraries}
        times, facts = timed(programs, args.blocks, args.seconds)
        params = facts["ours"]["params"]
        limit[case], words_of_limit = share_of_best(times, facts, libraries)
        print(
            f"{case}, {params:,} parameters: {words(times['ours'])}; {words_of_limit}", flush=True
        )
        for name in peers | more:
            params, faster = facts[name]["params"], times_faster(times["ours"], times[name])
            if name in peers:
                ratios.setdefault(name, []).append(faster)
                compared = f"{faster:.2f} times faster than it"
            else:
                bf16[case] = round(1 / faster, 3)
                compared = f"{bf16[case]:.2f} times as fast as in float32"
            print(f"  {name}, {params:,} parameters: {words(times[name])}; {compared}")
    found: dict[str, object] = {
        name: {"geomean": round(statistics.geometric_mean(r), 3), "min": round(min(r), 3)}
        for name, r in ratios.items()
    }
    print(json.dumps(found | {"limit": limit} | ({"bf16": bf16} if bf16 else {})))
    return 0


def share_of_best(
    times: dict[str, list[float]], facts: dict[str, dict], libraries: Iterable[str]
) -> tuple[float, str]:
    """The FLOP/s of a step, by its median, as a share of those of the fastest library's product, by
    its median; and the same in words."""
    rates = {
        name: facts[name]["flops"] / statistics.median(times[name]) / 1e6
        for name in ("ours", *libraries)
    }
    best = max(libraries, key=lambda name: rates[name])
    share = rates["ours"] / rates[best]
    others = ", ".join(f"{name} {rates[name]:.0f}" for name in libraries)
    text = f"{rates['ours']:.0f} GFLOP/s, {share:.0%} of a product by {best} ({others})"
    return round(share, 3), text


def ours(case: str) -> list[str]:
    return [sys.executable, "-m", "tools.bench.ours", *flags(CASES[case])]


def timed(
    commands: dict[str, list[str]], blocks: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """Milliseconds per step of the blocks of all programs, and what each says of itself."""
    with contextlib.ExitStack() as stack:
        programs = {}
        for name, command in commands.items():
            programs[name] = Program(command)
            stack.callback(programs[name].close)
        times = in_turn(programs, blocks, seconds)
        return times, {name: program.facts for name, program in programs.items()}


def words(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return f"{middle:.2f} ms a step (quartiles {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
