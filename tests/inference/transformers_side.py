"""What Hugging Face `transformers` says of folders, in a Python that has it and may lack Isoflop:
`python transformers_side.py JOB.json OUT.npz`. The job has "make", of configs of theirs to be
written as random models, and "open", of folders; each is then opened and asked."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

job = json.loads(Path(sys.argv[1]).read_text())
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
tokens, out = torch.tensor(job["tokens"]), {}
for folder, config in job.get("make", {}).items():
    torch.manual_seed(len(folder))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    kind = getattr(torch, config.get("dtype", "float32"))
    model.to(kind).save_pretrained(folder, max_shard_size=config.get("shard", "5GB"))
for folder in job["open"]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out[f"{folder} logits"] = model(tokens).logits.numpy()
        how = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        said = model.generate(tokens[:1, :4], attention_mask=torch.ones(1, 4).long(), **how)
        out[f"{folder} greedy"] = said[0, 4:].numpy()
    out[f"{folder} class"] = np.array(type(model).__name__)
for folder, text in job.get("encode", {}).items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text)
    out[f"{folder} ids"] = np.array(ids)
    out[f"{folder} end"] = np.array(tokenizer.eos_token_id)
    out[f"{folder} text"] = np.array(tokenizer.decode(ids))
np.savez(sys.argv[2], **out)
