"""How many times faster a training step is here than a peer's, on the same machine in turn.

python -m tools.bench.peers --nanodo=CHECKOUT --nanogpt=CHECKOUT --torch_python=INTERPRETER

Every program keeps a process of its own, with all cores, and they work in turn: a block of steps
here, one there, and so on (see turns). A ratio is that of the medians over the blocks. Ours is the
training loop with its data; what the peers run is said in peer_nanodo.py and peer_torch.py. The
last line is JSON: for each peer the geometric mean and the least of "times faster" over its cases.
Without --nanogpt and --torch_python, or without --nanodo, what needs them is left out.
"""

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path

from experiments.bench import CASES, flags
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
    for case, peers in commands(args).items():
        times, facts = timed(case, peers, args.blocks, args.seconds)
        ours = times["ours"]
        print(f"{case}, {facts['ours']['params']:,} parameters: {words(ours)}", flush=True)
        for name in peers:
            ratio = times_faster(ours, times[name])
            ratios.setdefault(name, []).append(ratio)
            params = facts[name]["params"]
            print(
                f"  {name}, {params:,} parameters: {words(times[name])}; {ratio:.2f} times faster"
            )
    print(json.dumps({
        name: {"geomean": round(statistics.geometric_mean(r), 3), "min": round(min(r), 3)}
        for name, r in ratios.items()
    }))  # fmt: skip
    return 0


def timed(
    case: str, peers: dict[str, list[str]], blocks: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """Milliseconds per step of the blocks of ours and the peers, and what each says of itself."""
    ours = [sys.executable, "-m", "tools.bench.ours", *flags(CASES[case])]
    with contextlib.ExitStack() as stack:
        programs = {}
        for name, command in {"ours": ours, **peers}.items():
            programs[name] = Program(command)
            stack.callback(programs[name].close)
        times = in_turn(programs, blocks, seconds)
        return times, {name: program.facts for name, program in programs.items()}


def words(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return f"{middle:.2f} ms a step (quartiles {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
