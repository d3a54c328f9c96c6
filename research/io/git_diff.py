"""How a checkout differs from its commit: without secrets, and bounded in size."""

import re
from collections.abc import Callable, Sequence

from research.io import host

LARGEST = 1 << 18  # characters
# What may decide a run; of everything else the names alone are kept.
CODE = ("*.py", "*.toml", "*.json", "*.sh", "*.lock", ":!docs", ":!tests")
PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color")  # no command of the repository is run
REMOVED = "[removed]"
SECRETS = (  # as people leave them in code; what takes their place follows the first group
    re.compile(
        r"""(?i)((?:key|token|secret|passw\w*|credential)\w*["']?\s*[:=]\s*["'])[^"'\n]{8,}"""
    ),
    re.compile(r"(\b)(?:hf_|sk-|gh[pousr]_|github_pat_|xox[a-z]-|glpat-|AKIA|AIza)[\w-]{12,}"),
    re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]+"),
)


def read(git: Callable[..., str], commit: str, changed: Sequence[str]) -> str:
    """The difference of a checkout, of which `git(*args)` prints what git does, from its commit,
    after the `changed` files."""
    diff = git("diff", *PLAIN, "HEAD", "--", *CODE)
    lines = [f"# the working tree differs from commit {commit}", *changed, "", diff]
    return bounded(without_secrets("\n".join(lines)))


def without_secrets(text: str) -> str:
    """`text` without the values of secret environment variables, and without what looks like one:
    quoted values of names like theirs, keys of known services, passwords in addresses."""
    text = host.redact_secrets(text)
    for pattern in SECRETS:
        text = pattern.sub(rf"\1{REMOVED}", text)
    return text


def bounded(text: str) -> str:
    """At most LARGEST characters, and a line that says how many were left out."""
    left = len(text) - LARGEST
    return text if left <= 0 else f"{text[:LARGEST]}\n# {left:,} more characters were not kept\n"
