"""Write a config with a sweep for data of your own.

  python -m experiments.init --out=DIR --data=corpus.txt
  python -m experiments.init --out=DIR --data=corpus.txt --vocab=1024     (a BPE of 1,024 tokens)
  python -m experiments.init --out=DIR --data=table.csv --target=COLUMN
  python -m experiments.init --out=DIR --data=FOLDER            (one folder for each class)

Text (.txt, .jsonl, .bin) becomes an isoFLOP sweep of language models; a table or images become a
sweep over model size. The file that is written, DIR/experiment.py, is yours to change.
"""

from collections.abc import Sequence

from research.config import cli


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--out", required=True, help="a folder, for experiment.py and its runs")
    parser.add_argument(
        "--data", required=True, help="a file, or a folder with one folder per class"
    )
    parser.add_argument("--target", help="for a table: the column to predict")
    words = "of a text: train a byte-pair encoding of so many tokens; default: bytes"
    parser.add_argument("--vocab", type=int, help=words)
    args = parser.parse_args(argv)

    from research.config import starter

    print(starter.write(args.out, args.data, args.target, args.vocab))
    return 0


if __name__ == "__main__":
    cli.run(main)
