"""What can be known without jax of a config whose numbers follow shape, size or length by rules."""

from collections.abc import Iterator, Mapping, Sequence

# The optimizers whose learning rate, decay and epsilon a rule says how to scale.
COVERS = {
    "mup": ("adam", "adamw", "lion", "sgd"),
    "complete_p": ("adam", "adamw", "lion"),
    "spectral": ("muon",),
}
LANGUAGE_MODELING = "language_modeling"  # the task whose logits are of the vocabulary
FOLLOWS_DEPTH = ("complete_p", "spectral")


OF_SIZE = ("step_law", "deepseek", "fitted")  # rates that know size and length
ABSOLUTE = ("step_law", "deepseek", "fitted")  # batches that need no batch.size
NEEDS = {"complete_p": ("b1", "b2", "eps"), "marin": ("b2", "eps")}  # of the optimizer


def problems(flat: Mapping[str, object], table: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Of the rules in a flattened config; `table` is its family's literal TRANSFER."""
    if flat.get("optim.transfer.rule", "none") != "none":
        yield from _transfer(flat, table)
    yield from _horizon(flat)
    rate, batch, size = (flat.get(k) for k in ("optim.lr_rule", "batch.rule", "batch.size"))
    if rate in OF_SIZE:
        for path in ("optim.transfer.rule", "optim.horizon_rule.rule"):
            if (other := flat.get(path, "none")) != "none":
                yield (
                    f"optim.lr_rule: {rate} follows size and length itself, and {path} is {other}; "
                    "expected one of both, the other constant or none"
                )
    if batch in ABSOLUTE and size is not None:
        yield f"batch.size: {size} is given, but batch.rule = {batch} sets it; expected none"
    if "fitted" in (rate, batch) and flat.get("optim.recipe", "") is None:
        yield (
            "optim.recipe: none, but a rule is fitted; expected the recipe.json of experiments.fit "
            "--law=recipe"
        )


def _horizon(flat: Mapping[str, object]) -> Iterator[str]:
    rule = str(flat.get("optim.horizon_rule.rule", "none"))
    if rule == "none":
        return
    for key in ("tokens", "batch"):
        path = f"optim.horizon_rule.{key}"
        if flat.get(path, 0) is None:
            yield f"{path}: none; {rule} needs that at which the numbers of the config hold"
    lacks = [k for k in NEEDS.get(rule, ()) if f"optim.optimizer.{k}" not in flat]
    optimizer = flat.get("optim.optimizer.name")
    if optimizer is not None and (optimizer == "muon" or lacks) and rule in NEEDS:
        yield (
            f"optim.horizon_rule.rule: {rule} is a rule of Adam's numbers, not of {optimizer}; "
            "expected power_lines, token_horizon or none, or adam or adamw"
        )


def _transfer(flat: Mapping[str, object], table: Sequence[tuple[str, str]]) -> Iterator[str]:
    rule, family = str(flat["optim.transfer.rule"]), flat["model.name"]
    optimizer = flat.get("optim.optimizer.name")
    if optimizer is not None and optimizer not in COVERS[rule]:
        known = [name for name, covered in COVERS.items() if optimizer in covered]
        yield (
            f"optim.transfer.rule: {rule} does not say how {optimizer} follows a model's shape; "
            f"expected {' or '.join([*known, 'none'])}"
            f"{'' if known else f', or an optimizer of {rule}: ' + ', '.join(COVERS[rule])}"
        )
    if not table:
        yield f"optim.transfer.rule: {rule}, but {family} has no TRANSFER; expected none"
        return
    roles = [role for _, role in table]
    tied = flat.get("model.tie_embeddings") is True and flat.get("task.name") == LANGUAGE_MODELING
    if tied and "final_vector" not in roles:
        yield (
            f"optim.transfer.rule: {rule} divides the logits by the width, which no parameter of a "
            f"{family} with tied embeddings can carry; expected model.tie_embeddings = false, or "
            "none"
        )
    wanted = {"width": True, "depth": rule in FOLLOWS_DEPTH, "head_size": "query" in roles}
    for key, needed in wanted.items():
        path = f"optim.transfer.{key}"
        if needed and flat.get(path, 0) is None:
            yield f"{path}: none; {rule} needs that at which the numbers of the config hold"
    width, head = flat.get("optim.transfer.width"), flat.get("optim.transfer.head_size")
    if wanted["head_size"] and isinstance(width, int) and isinstance(head, int) and width % head:
        yield f"optim.transfer.head_size: {head} does not divide optim.transfer.width = {width}"
