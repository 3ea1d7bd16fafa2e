"""The command line: arguments to calls."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import sys

from data_pipelines import interrupts


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
    _add_inspect(commands)
    _add_verify(commands)
    return top


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "inspect",
        help="say what a shard folder holds",
        description="Says what a shard folder holds, from its index: hours, speakers, splits, "
        "languages, licences, lengths, rejects by reason, and how much of the training crops "
        "would be padding.",
    )
    sub.set_defaults(command=_inspect)
    sub.add_argument("shards", metavar="SHARDS", help="a shard folder")
    sub.add_argument(
        "--crop-seconds",
        type=float,
        default=2.56,
        help="length of a training crop for the padded fraction (default 2.56)",
    )


def _add_verify(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "verify",
        help="check every byte of a shard folder",
        description="Decodes every record and compares it with the index: checksums, columns, "
        "order, fingerprint. Names each fault; exit status 0 if there is none, else 1.",
    )
    sub.set_defaults(command=_verify)
    sub.add_argument("shards", metavar="SHARDS", help="a shard folder")
    sub.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads (default: all CPUs)"
    )


def _add_corpora(corpora: argparse._SubParsersAction) -> None:
    folder = _add_corpus(corpora, "folder", _folder, "any tree of wav, flac, ogg, mp3 files")
    folder.add_argument(
        "--manifest",
        metavar="CSV",
        help="a CSV with the column path (relative to --source) and any of speaker, text, "
        "language, label, split (train, validation, test), domain, licence, phones (a TextGrid or "
        "CTM, relative to the CSV); only the files in it are written",
    )
    folder.add_argument("--licence", default="unknown", help="SPDX name (default unknown)")
    folder.add_argument("--attribution", default="", help="whom to name")
    for name, text in (
        ("librispeech", "LibriSpeech in its official layout"),
        ("librilight", "Libri-Light, cut at pauses to at most 60 s"),
        ("ljspeech", "LJ Speech"),
    ):
        _add_corpus(corpora, name, _public, text).set_defaults(corpus=name)
    synthetic = _add_corpus(
        corpora, "synthetic", _synthetic, "speech by espeak-ng, with phone labels", source=False
    )
    synthetic.add_argument("--minutes", type=float, default=75.0, help="of audio (default 75)")
    synthetic.add_argument("--voices", type=int, default=12, help="training voices (default 12)")
    synthetic.add_argument("--seed", type=int, default=0, help="of sentences, rates, pitches")
    # The usual hour or two would be one shard, and so one worker's.
    synthetic.set_defaults(records_per_shard=128)


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
    sub.add_argument(
        "--records-per-shard", type=int, default=1024, help="(default 1024; synthetic 128)"
    )
    sub.add_argument("--name", help="of the corpus")
    return sub


def _write(options: argparse.Namespace) -> int:
    with interrupts.deferred():
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


def _inspect(options: argparse.Namespace) -> int:
    with interrupts.deferred():
        from data_pipelines import inspection

    print(inspection.describe(options.shards, options.crop_seconds))
    return 0


def _verify(options: argparse.Namespace) -> int:
    with interrupts.deferred():
        from data_pipelines import verify

    count = 0
    for fault in verify.faults(options.shards, options.workers):
        print(fault)
        count += 1
    print(f"{options.shards}: {f'{count} fault(s)' if count else 'sound'}")
    return 1 if count else 0


def _folder(options: argparse.Namespace):
    from data_pipelines.corpora import folder

    return folder.corpus(
        options.source,
        manifest=options.manifest,
        name=options.name,
        licence=options.licence,
        attribution=options.attribution,
    )


def _public(options: argparse.Namespace):
    module = importlib.import_module(f"data_pipelines.corpora.{options.corpus}")
    return module.corpus(options.source, name=options.name or options.corpus)


def _synthetic(options: argparse.Namespace):
    from data_pipelines.corpora import synthetic

    return synthetic.corpus(
        minutes=options.minutes,
        voices=options.voices,
        seed=options.seed,
        name=options.name or "synthetic",
    )
