"""What every key of a config means: the one source of the reference that `make docs` builds.

Training loads none of it. `of` looks a key up by the plug that it belongs to ("data.images.path")
and then by the key alone; a test holds the table to the schema.
"""

# key: (unit, "" where there is none; what it says)
MEANINGS: dict[str, tuple[str, str]] = {
    "name": ("", "what the sweep is called in reports; nothing else depends on it"),
    "seed": ("", "seed of the initialization, and of what a run draws besides the order of data"),
    "size": ("parameters", "target size, which fills the fields of the model by its printed rule; "
             "none: the fields are given"),
    # model
    "model.name": ("", "family of the model"),
    "model.width": ("", "width of the residual stream or of hidden layers"),
    "model.cnn.width": ("channels", "channels of the first convolutions; later ones are multiples"),
    "model.resnet.width": ("channels", "channels of the first stage, doubled by each further one"),
    "model.depth": ("layers", "number of blocks or hidden layers"),
    "model.heads": ("", "attention heads; they divide the width"),
    "model.kv_heads": ("", "heads of keys and values, which divide the heads; with fewer, queries "
                       "share them in groups"),
    "model.hidden": ("", "width of the feed-forward layers"),
    "model.cnn.hidden": ("", "width of the dense layer before the classes"),
    "model.norm": ("", "normalization of the residual stream"),
    "model.positions": ("", "how positions are told: rotary, learned embeddings, or not at all"),
    "model.rotary_theta": ("", "base of the wavelengths of rotary positions"),
    "model.activation": ("", "nonlinearity; swiglu adds a gate to the feed-forward layers"),
    "model.qk_norm": ("", "whether queries and keys are normalized"),
    "model.bias": ("", "whether linear layers have biases"),
    "model.tie_embeddings": ("", "whether the head is the embedding"),
    "model.dtype": ("", "precision of matmuls and activations; parameters and losses are float32"),
    "model.attention": ("", "implementation of attention; auto takes the platform's kernel"),
    "model.remat": ("", "what the backward pass recomputes: nothing, all but matmuls, all but the "
    "projections of the attention (offload: these are kept by the host), or all"),
    "model.unroll": ("layers", "steps of the scan over layers, or of a GRU over tokens, that are "
                     "compiled as one"),
    # data
    "data.name": ("", "kind of the data set"),
    "data.seed": ("", "seed of the order of the training examples"),
    "data.path": ("", "stdlib, packages, a .txt, .jsonl or .bin file"),
    "data.hub.path": ("", "name of a set on the Hugging Face hub, or a local folder"),
    "data.text_classes.path": ("", "stdlib, a folder with one entry for each class, or a .jsonl"),
    "data.table.path": ("", "diabetes, a .csv, .tsv or .parquet file"),
    "data.images.path": ("", "mnist5k, digits, an .npz, IDX files, a folder for each class, or "
                         "hub:NAME"),
    "data.paths": ("", "sources of a mixture, each as `path` of text"),
    "data.weights": ("", "share of the windows drawn from each source, on any scale"),
    "data.linear.weights": ("", "slopes of the line, one for each feature"),
    "data.subset": ("", "configuration of the set on the hub"),
    "data.split": ("", "split of the set on the hub, of which training and held-out data are made"),
    "data.field": ("", "field or column of the text"),
    "data.label_field": ("", "field of the class, of a .jsonl"),
    "data.documents": ("documents", "read at most; none: all"),
    "data.tokenizer": ("", "bytes, bpe (trained on the training text), a file, or a known name"),
    "data.vocab": ("tokens", "size of a trained vocabulary, or of the ids of a .bin"),
    "data.context": ("tokens", "length of a training sequence"),
    "data.heldout": ("", "share of the data that is held out, by a hash of its content"),
    "data.linear.heldout": ("examples", "examples that are held out"),
    "data.teacher.heldout": ("examples", "examples that are held out"),
    "data.undecodable": ("", "what happens to bytes that are not UTF-8"),
    "data.classes": ("classes", "those with the most text; none: all"),
    "data.examples": ("examples", "training examples; none: all"),
    "data.target": ("", "columns that are predicted"),
    "data.columns": ("", "columns that the model reads; none: all others"),
    "data.kind": ("", "whether targets are numbers or classes"),
    "data.standardize": ("", "whether features and numeric targets are standardized, by those of "
                         "training"),
    "data.resize": ("pixels", "side to which images are resized; none: as they are"),
    "data.shift": ("pixels", "random translation of training images, at most"),
    "data.flip": ("", "whether training images are mirrored at random"),
    "data.bias": ("", "intercept of the line"),
    "data.noise": ("", "standard deviation of the noise of the targets"),
    "data.generator_seed": ("", "seed of synthetic data"),
    "data.features": ("", "features and targets of the teacher"),
    "data.exponent": ("", "exponent of the teacher's spectrum, which that of the loss should be"),
    # task
    "task.name": ("", "what is predicted, and its loss"),
    "task.share": ("", "of the tokens, that are masked or changed and asked about"),
    "task.chunk": ("tokens", "whose logits are in memory at once; none: by a rule, 0: all"),
    # batch
    "batch.size": ("examples", "of a step; with rules that follow tokens, that at the base"),
    "batch.grad_accumulation": ("", "parts of a batch that are computed one after the other"),
    "batch.rule": ("", "how the batch follows the length of the run (docs/transfer.md)"),
    # optim
    "optim.optimizer.name": ("", "the optimizer"),
    "optim.optimizer.b1": ("", "decay of the first moment"),
    "optim.optimizer.b2": ("", "decay of the second moment"),
    "optim.optimizer.eps": ("", "added to the root of the second moment"),
    "optim.optimizer.weight_decay": ("", "decoupled decay of matrices, times the learning rate"),
    "optim.optimizer.momentum": ("", "decay of the average of gradients"),
    "optim.optimizer.nesterov": ("", "whether momentum looks one step ahead"),
    "optim.optimizer.adam_scale": ("", "factor of the learning rate of what is not orthogonalized"),
    "optim.optimizer.decay_rate": ("", "exponent by which the decay of the second moment grows"),
    "optim.optimizer.clip_threshold": ("", "size of an update, relative, beyond which it is scaled "
                                       "down"),
    "optim.optimizer.scale_by_params": ("", "whether steps are relative to the size of parameters"),
    "optim.schedule.name": ("", "shape of the learning rate after the warm-up"),
    "optim.schedule.final": ("", "learning rate at the end, over its peak"),
    "optim.schedule.decay": ("", "share of the run over which the rate decays at its end"),
    "optim.schedule.timescale": ("steps", "after the warm-up, over which the rate falls by √2"),
    "optim.lr": ("", "peak learning rate, before the rules of width and horizon"),
    "optim.lr_rule": ("", "how the peak follows the model or the run (docs/transfer.md)"),
    "optim.horizon_rule.rule": ("", "how the numbers of the optimizer follow tokens and batch"),
    "optim.horizon_rule.tokens": ("tokens", "length of the run at which the numbers hold"),
    "optim.horizon_rule.batch": ("examples", "batch at which the numbers hold; none: batch.size"),
    "optim.recipe": ("", "recipe.json of `isoflop fit --law=recipe`, which the rule fitted reads"),
    "optim.clip": ("", "bound on the global norm of the gradient; none: no clipping"),
    "optim.ema": ("", "decay of a moving average of the parameters, which is evaluated"),
    "optim.skip": ("standard deviations", "above the mean of recent losses, from which a step is "
                   "left out; none: no step is"),
    "optim.transfer.rule": ("", "how numbers follow the model's shape (docs/transfer.md)"),
    "optim.transfer.width": ("", "width of the base shape, at which the numbers hold"),
    "optim.transfer.depth": ("layers", "depth of the base shape"),
    "optim.transfer.head_size": ("", "head size of the base shape"),
    "optim.paths": ("", "factors of learning rate and decay by parameter path, or frozen"),
    "optim.warmup.unit": ("", "unit of the warm-up: a share of the run, steps, or tokens"),
    "optim.warmup.amount": ("warmup.unit", "linear warm-up of the learning rate from 0"),
    # init
    "init.run": ("", "directory of a run to start from, or hf: and a folder or name of a model of "
                 "transformers; none: from the initialization"),
    "init.step": ("steps", "checkpoint of that run; none: the last"),
    "init.what": ("", "whether its parameters are taken, its whole state, or its shape alone"),
    # horizon
    "horizon.unit": ("", "unit of the training length"),
    "horizon.amount": ("horizon.unit", "training length"),
    # mesh
    "mesh.data": ("devices", "data parallel; -1 takes what is left"),
    "mesh.fsdp": ("devices", "over which parameters and optimizer state are sharded"),
    "mesh.tensor": ("devices", "over which matrices and heads are split"),
    "mesh.indivisible": ("", "whether a parameter that the mesh does not divide is an error, or on "
                         "every device"),
    # eval, save, log, loop
    "eval.examples": ("examples", "held out, of an evaluation; none: all"),
    "eval.batch": ("examples", "evaluated at once"),
    "eval.every": ("steps", "between evaluations; 0: at the end alone"),
    "eval.at": ("steps", "further evaluations, as in save.at"),
    "eval.sets": ("", "other held-out sets, each in a column loss/NAME"),
    "eval.headline": ("", "the set that the run is measured by; none: the held-out data"),
    "save.every": ("steps", "between checkpoints; 0: at the end alone"),
    "save.at": ("steps", 'further checkpoints, which are kept: ["powers of 2", "10%", 500]'),
    "save.every_minutes": ("minutes", "between checkpoints, whichever comes first; none: by steps"),
    "save.keep": ("checkpoints", "the latest that are kept"),
    "save.best": ("", "metric by which the best state is kept besides; none: it is not"),
    "save.asynchronous": ("", "whether training goes on while a state is written"),
    "save.on_error": ("", "whether a checkpoint that the disk refuses ends the run"),
    "log.every": ("steps", "between records of the training loss"),
    "log.internals": ("", "whether those records have the RMS of parameters, gradients and updates "
                      "by module"),
    "log.trackers": ("", "where records go besides metrics.jsonl"),
    "loop.steps_per_dispatch": ("steps", "sent to the devices at once; auto: about a second"),
    "loop.hang_seconds": ("seconds", "after which what does not end counts as hung; none: never"),
    "loop.hang_first_seconds": ("seconds", "the same for what is done for the first time, and may "
                                "compile"),
}  # fmt: skip


def of(section: str, plug: str | None, key: str) -> tuple[str, str]:
    """(unit, meaning) of a key: `section` "data", `plug` "images" (None: of no plug), `key` "path".
    Raises KeyError for one that has none."""
    path = f"{section}.{key}" if section else key
    special = f"{section}.{plug}.{key}"
    return MEANINGS[special if plug and special in MEANINGS else path]
