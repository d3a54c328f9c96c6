"""What this machine has: devices, memory, packages, caches, and what is missing for which command.

python -m experiments.doctor
"""

from collections.abc import Sequence

from research.config import cli


def main(argv: Sequence[str]) -> int:
    cli.parser(__doc__).parse_args(argv)

    from research.planning import doctor  # jax from here on

    print(doctor.describe())
    return 0


if __name__ == "__main__":
    cli.run(main)
