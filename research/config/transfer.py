"""What can be known without jax of a config that asks for a rule of transfer."""

from collections.abc import Iterator, Mapping, Sequence

# The optimizers whose learning rate, decay and epsilon a rule says how to scale.
COVERS = {
    "mup": ("adam", "adamw", "lion", "sgd"),
    "complete_p": ("adam", "adamw", "lion"),
    "spectral": ("muon",),
}
LANGUAGE_MODELING = "language_modeling"  # the task whose logits are of the vocabulary
FOLLOWS_DEPTH = ("complete_p", "spectral")


def problems(flat: Mapping[str, object], table: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Of a flattened config with a rule, and the family's literal TRANSFER."""
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
