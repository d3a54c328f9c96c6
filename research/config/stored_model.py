"""Whether what a run wrote of its model is a valid model: it may come from elsewhere."""

from collections.abc import Mapping

from research.config import registry
from research.config.schema import FACTS, PLUGS
from research.config.validation import divides, value_problems


def model_problems(described: Mapping[str, object]) -> list[str]:
    """The errors of a model alone, as `Model.described` returns it: with the fields set by its
    data."""
    rows, name = registry.table(*PLUGS["model"]), described.get("name")
    if not isinstance(name, str) or name not in rows:
        return [f"model.name: {name!r:.50} is unknown; expected one of {', '.join(rows)}"]
    known, out = registry.fields(*rows[name]), []
    for key, value in described.items():
        if key in known:
            value = list(value) if isinstance(value, tuple) else value
            out += value_problems(f"model.{key}", value, known[key])
        elif key in FACTS or key == "pad":
            numbers = value if isinstance(value, list) else [value]
            if not all(isinstance(n, int) and n >= 0 for n in numbers):
                out.append(f"model.{key}: {value!r:.50}; expected whole numbers")
        elif key != "name":
            out.append(f"model.{key}: no such key")
    flat = {f"model.{key}": value for key, value in described.items()}
    return out or [*divides(flat, rows[name][0])]
