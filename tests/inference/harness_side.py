"""What lm-eval's own backend for Hugging Face says of an exported folder, in a Python that has both
and may lack Isoflop: `python harness_side.py FOLDER TASKS OUT.json NAME…`, of tasks in the folder
TASKS."""

import json
import sys
from pathlib import Path

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

folder, tasks, out, *names = sys.argv[1:]
torch.set_num_threads(1)
model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4)
found = lm_eval.simple_evaluate(
    model=model,
    tasks=names,
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
    bootstrap_iters=0,
    log_samples=True,
)
said = {name: [sample["resps"] for sample in found["samples"][name]] for name in names}
numbers = {name: {k: v for k, v in found["results"][name].items() if isinstance(v, float)}
           for name in names}  # fmt: skip
Path(out).write_text(json.dumps({"answers": said, "results": numbers}))
