"""The command line: arguments to calls."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys


def run(arguments: list[str] | None = None) -> int:
    """Parses the arguments and runs the command; returns the exit status."""
    options = parser().parse_args(arguments)
    return options.command(options)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="python -m data_pipelines",
        description="From audio files to the shards that training reads.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    write = commands.add_parser(
        "write",
        help="write a corpus as shards",
        description="Writes a corpus as shards. An interrupted write goes on when the same command "
        "is run again; a finished one is not redone.",
    )
    _add_corpora(write.add_subparsers(required=True, metavar="CORPUS"))
    return top


def _add_corpora(corpora: argparse._SubParsersAction) -> None:
    synthetic = _add_corpus(
        corpora, "synthetic", _synthetic, "speech by espeak-ng, with phone labels", source=False
    )
    synthetic.add_argument("--minutes", type=float, default=75.0, help="of audio (default 75)")
    synthetic.add_argument("--voices", type=int, default=12, help="training voices (default 12)")
    synthetic.add_argument("--seed", type=int, default=0, help="of sentences, rates, pitches")


def _add_corpus(corpora, name, build, text, source=True) -> argparse.ArgumentParser:
    sub = corpora.add_parser(name, help=text, description=f"Writes shards of {text}.")
    sub.set_defaults(command=_write, build=build)
    if source:
        sub.add_argument("--source", required=True, metavar="FOLDER", help="where the audio lies")
    sub.add_argument("--out", required=True, metavar="SHARDS", help="a new or unfinished folder")
    sub.add_argument("--sample-rate", type=int, default=16000, help="in Hz (default 16000)")
    sub.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all CPUs)"
    )
    sub.add_argument("--records-per-shard", type=int, default=1024, help="(default 1024)")
    sub.add_argument("--name", help="of the corpus")
    return sub


def _write(options: argparse.Namespace) -> int:
    from data_pipelines import shards

    written = shards.write(
        options.build(options),
        options.out,
        sample_rate=options.sample_rate,
        worker_count=options.workers,
        records_per_shard=options.records_per_shard,
        progress=sys.stderr.isatty(),
    )
    print(f"{'written' if written else 'already written'}: {pathlib.Path(options.out)}")
    return 0


def _synthetic(options: argparse.Namespace):
    from data_pipelines.corpora import synthetic

    return synthetic.corpus(
        minutes=options.minutes,
        voices=options.voices,
        seed=options.seed,
        name=options.name or "synthetic",
    )
