"""Export a trained model as safetensors with a manifest, signed or encrypted where wanted.

  python -m experiments.export --run=WORKDIR/runs/<id> --out=DIR
  python -m experiments.export --run=… --out=DIR --sign=private.pem --encrypt --key_file=FILE
  python -m experiments.export --run=… --out=DIR --format=hf     (for Hugging Face transformers)
  python -m experiments.export --check=DIR --verify=public.pem --key_file=FILE
  python -m experiments.export --export=DIR --out=OTHER --key_file=FILE     (decrypted)

--run is a run, or the workdir of one. A key is 32 bytes in a file that only you can read, or 64
hexadecimal digits in ISOFLOP_EXPORT_KEY; it is never given on the command line. docs/export.md says
how to make keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from research.config import cli
from research.errors import BadInput, printable
from research.io import encryption

UNUSED = {  # flags that would be passed over
    "run": ("verify",),
    "export": ("step",),
    "check": ("step", "sign", "encrypt", "format"),
}
FORMATS = ("isoflop", "hf")


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--run", metavar="DIR", help="the run to export")
    parser.add_argument("--step", type=int, help="checkpoint of that run (default: the latest)")
    parser.add_argument("--export", metavar="DIR", help="an export to write again, e.g. decrypted")
    parser.add_argument("--check", metavar="DIR", help="an export to verify")
    parser.add_argument("--out", metavar="DIR", help="a new folder")
    words = "hf: a folder that Hugging Face transformers opens; or isoflop, as without it"
    parser.add_argument("--format", choices=FORMATS, help=words)
    parser.add_argument("--sign", metavar="FILE", help="sign with this private key (P-256, PEM)")
    parser.add_argument("--verify", metavar="FILE", help="require a signature by this public key")
    parser.add_argument("--encrypt", action="store_true", help="encrypt the export")
    parser.add_argument("--key_file", metavar="FILE", help="the encryption key")
    args = parser.parse_args(argv)
    sources = [name for name in ("run", "export", "check") if getattr(args, name)]
    if len(sources) != 1 or (args.out is None) != (sources == ["check"]):
        raise BadInput("expected one of --run=DIR or --export=DIR with --out=DIR, or --check=DIR")
    values = ((flag, getattr(args, flag)) for flag in UNUSED[sources[0]])
    if unused := [flag for flag, value in values if value is not None and value is not False]:
        raise BadInput(*(f"--{flag}: of no use with --{sources[0]}" for flag in unused))
    if args.format == "hf" and args.encrypt:
        raise BadInput("--encrypt: of no use with --format=hf, which is for others to open")
    if args.run and args.key_file and not args.encrypt:
        raise BadInput("--key_file: of what is encrypted; expected --encrypt too")
    key = encryption.load_key(args.key_file) if args.encrypt or args.key_file else None

    from research.inference import export  # jax from here on

    if args.run:
        model = export.from_run(args.run, args.step)
    else:
        model = export.read(args.export or args.check, key, args.verify)
    written = f"{args.check}: as it was written"
    if args.out and args.format == "hf":
        written = export.write_hf(model, args.out, args.sign)
    elif args.out:
        written = export.write(model, args.out, key if args.encrypt else None, args.sign)
    print(format_summary(model.about), written, sep="\n")
    return 0


def format_summary(about: Mapping[str, Any]) -> str:
    """An export in a line."""
    loss = f", loss {about['loss']:.4f}" if about["loss"] is not None else ""
    average = " (averaged)" if about["weights"] == "average" else ""
    return printable(f"{about['name']} {about['run']}, step {about['step']}{average}{loss}")


if __name__ == "__main__":
    cli.run(main)
