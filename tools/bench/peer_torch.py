"""The sides of PyTorch in a comparison, in the interpreter that has it.

python peer_torch.py nanogpt --repo=CHECKOUT --width=64 --layers=2 --batch=16
python peer_torch.py gru --width=128 --layers=2 --batch=16
python peer_torch.py cnn --batch=64

nanogpt is the model of a checkout of nanoGPT, compiled, with its own optimizer, updated as its
train.py does: a batch of random windows made on the host for every step, gradients clipped to norm
1, the loss read every ten steps. gru is torch.nn.GRU between an embedding and a head, cnn the
network of 225,034 parameters in channels-last memory, compiled; both with AdamW or Adam. All use as
many threads as the process may use cores, or the GPU if there is one.
"""

import argparse
import contextlib
import os
import sys

import torch
from torch import nn
from torch.nn import functional
from turns import serve

CLIP, LOGGED = 1.0, 10


def windows(batch: int, context: int, vocab: int, device: str):
    """A function that makes the inputs and targets of a step, as nanoGPT's get_batch does."""
    text = torch.randint(0, vocab, (1 << 20,), generator=torch.Generator().manual_seed(0))

    def draw():
        at = torch.randint(len(text) - context - 1, (batch,)).tolist()
        x = torch.stack([text[i : i + context] for i in at])
        y = torch.stack([text[i + 1 : i + 1 + context] for i in at])
        if device == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)

    return draw


def nanogpt(args: argparse.Namespace, device: str):
    sys.path.insert(0, os.path.abspath(args.repo))
    from model import GPT, GPTConfig

    shape = {"n_layer": args.layers, "n_head": args.heads, "n_embd": args.width}
    shape |= {"block_size": args.context, "vocab_size": args.vocab}
    net = GPT(GPTConfig(**shape, dropout=0.0, bias=False)).to(device)
    optimizer = net.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    draw = windows(args.batch, args.context, args.vocab, device)
    return net, torch.compile(net), optimizer, draw, lambda run, x, y: run(x, y)[1], CLIP


class GRU(nn.Module):
    def __init__(self, vocab: int, width: int, layers: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.recurrent = nn.GRU(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, x):
        return self.head(self.recurrent(self.embed(x))[0])


def _nats(run, x, y):
    logits = run(x)
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def gru(args: argparse.Namespace, device: str):
    net = GRU(args.vocab, args.width, args.layers).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    # Not compiled: the recurrence is one call of a library, which a compiler does not look into.
    return net, net, optimizer, windows(args.batch, args.context, args.vocab, device), _nats, CLIP


def cnn(args: argparse.Namespace, device: str):
    width = 32
    net = nn.Sequential(
        *(nn.Conv2d(1, width, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(5 * 5 * 2 * width, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    net = net.to(device).to(memory_format=torch.channels_last)
    images = torch.rand(4000, 1, 28, 28).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (4000,))

    def draw():
        at = torch.randint(0, len(images), (args.batch,))
        return images[at].to(device), labels[at].to(device)

    return net, torch.compile(net), torch.optim.Adam(net.parameters(), 1e-3), draw, _nats, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=["nanogpt", "gru", "cnn"])
    parser.add_argument("--repo")
    shape = {"width": 128, "layers": 2, "batch": 16, "heads": 4, "context": 128, "vocab": 256}
    for name, value in shape.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # In float32 on CPU; on a GPU as nanoGPT trains there, in bfloat16 with TF32 products.
    precision = contextlib.nullcontext()
    if device == "cuda":
        precision = torch.autocast("cuda", dtype=torch.bfloat16)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    sys.stdout, out = sys.stderr, sys.stdout  # nanoGPT prints
    program = {"nanogpt": nanogpt, "gru": gru, "cnn": cnn}[args.program]
    net, run, optimizer, draw, loss, clip = program(args, device)
    sys.stdout = out
    x, y = draw()
    steps_taken = 0

    def step():
        nonlocal x, y, steps_taken
        with precision:
            value = loss(run, x, y)
        x, y = draw()  # while a GPU is at it
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps_taken += 1
        if steps_taken % LOGGED == 0:
            value.item()
        return value

    serve(step, lambda value: value.item(), params=sum(p.numel() for p in net.parameters()),
          device=device)  # fmt: skip


if __name__ == "__main__":
    main()
