"""The command line: arguments to calls."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable

from data_pipelines import interrupts, paths
from data_pipelines.errors import UserError

# Name, what --source is, what it is called, how it is laid out.
_FORMATS = (
    (
        "kaldi",
        "FOLDER",
        "a Kaldi data directory",
        "--source holds wav.scp and, if known, segments, text, utt2spk, utt2lang. Relative paths "
        "start there or at the current folder. Commands (ending in |) are refused.",
    ),
    (
        "nemo",
        "FILE",
        "a NeMo manifest",
        "--source holds a JSON object a line: audio_filepath (relative to it), duration and, if "
        "known, offset, text, speaker, lang.",
    ),
    (
        "lhotse",
        "FILE_OR_FOLDER",
        "Lhotse cuts",
        "--source is a CutSet, cuts.jsonl or cuts.jsonl.gz, or a Shar folder. Phones are taken "
        "from the alignment `phone`.",
    ),
    (
        "webdataset",
        "TAR_OR_FOLDER",
        "WebDataset tars",
        "The tars hold key.flac (or wav, ogg, mp3) and key.json (text, speaker, language, label, "
        "licence), key.txt (text), key.cls (label).",
    ),
    (
        "hf",
        "NAME_OR_FOLDER",
        "a Hugging Face data set",
        "--source is a name on the hub, a folder of parquet files, or one that save_to_disk wrote.",
    ),
)


def run(arguments: list[str] | None = None) -> int:
    """Parses the arguments and runs the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # What follows is Apache Beam's.
    ours, beam = arguments, []
    if "--" in arguments:
        ours, beam = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser().parse_args(ours, argparse.Namespace(beam=beam))
    if beam and not getattr(options, "runner", None):
        raise UserError(f"{beam[0]} after -- is for Apache Beam: name a --runner")
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
        "is run again; of a finished one only files that were removed are written again.",
    )
    shards = write.add_subparsers(required=True, metavar="CORPUS")
    _add_corpora(functools.partial(_add_write, shards))
    plans = commands.add_parser(
        "plan",
        help="say what writing a corpus will take",
        description="Says what writing a corpus will take, before anything is written: records, "
        "hours, disk, CPU-hours, requests to an object store.",
    )
    planned = plans.add_subparsers(required=True, metavar="CORPUS")
    _add_corpora(functools.partial(_add_plan, planned))
    build = commands.add_parser(
        "tfds-build",
        help="build a corpus as a data set of TensorFlow Datasets",
        description="Builds a corpus as the data set uniwav/NAME of TensorFlow Datasets, in "
        "ArrayRecord, for other programs; what a finished build holds is not built again.",
    )
    data_sets = build.add_subparsers(required=True, metavar="CORPUS")
    _add_corpora(functools.partial(_add_tfds_build, data_sets))
    _add_inspect(commands)
    _add_verify(commands)
    _add_migrate(commands)
    _add_mount(commands)
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


def _add_migrate(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "migrate",
        help="bring a shard folder of an older format up to date",
        description="Turns a shard folder of an older format into the present one, in place. The "
        "audio is not touched and the fingerprint stays, so that runs trained on it go on; only "
        "shards written anew hold long recordings in segments.",
    )
    sub.set_defaults(command=_migrate)
    sub.add_argument("shards", metavar="SHARDS", help="a shard folder")


def _add_mount(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser(
        "mount",
        help="print the script that mounts shards of an object store",
        description="Prints the shell script that mounts a folder of an object store for reading, "
        "by gcsfuse or mount-s3; it is not run.",
    )
    sub.set_defaults(command=_mount)
    sub.add_argument("shards", metavar="URL", help="gs://BUCKET/PATH or s3://BUCKET/PATH")
    sub.add_argument("--at", required=True, metavar="FOLDER", help="where the shards will appear")
    sub.add_argument(
        "--cache",
        metavar="FOLDER",
        help="on a local disk that has room for all the shards: keeps what was read",
    )


def _add_corpora(add: Callable[..., argparse.ArgumentParser]) -> None:
    folder = add("folder", "any tree of wav, flac, ogg, mp3 files")
    folder.add_argument(
        "--manifest",
        metavar="CSV",
        help="a CSV with the column path (relative to --source) and any of speaker, text, "
        "language, label, split (train, validation, test), domain, licence, phones (a TextGrid or "
        "CTM, relative to the CSV); only the files in it are written",
    )
    folder.add_argument("--licence", default="unknown", help="SPDX name (default unknown)")
    folder.add_argument("--attribution", default="", help="whom to name")
    _add_formats(add)
    for name, text in (
        ("librispeech", "LibriSpeech in its official layout"),
        ("librilight", "Libri-Light, cut at pauses to at most 60 s"),
        ("ljspeech", "LJ Speech"),
    ):
        add(name, text)
    tfds = add(
        "tfds",
        "a data set of TensorFlow Datasets, prepared in ArrayRecord",
        source="NAME_OR_FOLDER",
    )
    tfds.add_argument("--data-dir", metavar="FOLDER", help="where the data sets lie, for a NAME")
    for field in ("audio", "text", "speaker", "language"):
        tfds.add_argument(
            f"--{field}", metavar="FEATURE", help="(default: the usual names are looked for)"
        )
    tfds.add_argument("--licence", help="SPDX name (default: what the data set says)")
    tfds.add_argument("--attribution", help="whom to name (default: what the data set says)")
    synthetic = add("synthetic", "speech by espeak-ng, with phone labels", source=None)
    synthetic.add_argument("--minutes", type=float, default=75.0, help="of audio (default 75)")
    synthetic.add_argument("--voices", type=int, default=12, help="training voices (default 12)")
    synthetic.add_argument("--seed", type=int, default=0, help="of sentences, rates, pitches")
    # The usual hour or two would be one shard, and so one worker's.
    synthetic.set_defaults(records_per_shard=128)


def _add_formats(add: Callable[..., argparse.ArgumentParser]) -> None:
    added = {}
    for name, source, text, layout in _FORMATS:
        added[name] = add(name, text, source=source)
        added[name].epilog = layout
        added[name].add_argument("--licence", help="SPDX name (default: the data's, or unknown)")
        added[name].add_argument("--attribution", help="whom to name")
    voice = add("commonvoice", "Mozilla Common Voice, one language")
    voice.add_argument("--tsv", help="which clips: a table in --source (default validated.tsv)")
    hf = added["hf"]
    hf.add_argument("--config", help="of the data set, if it has several")
    hf.add_argument("--split", help="only this one, or a part such as train[:10%%]")
    hf.add_argument(
        "--streaming",
        metavar="FOLDER",
        help="read the set as a stream and keep its encoded audio in this folder, which takes less "
        "room than the package's cache; it is yours to remove",
    )
    for field, usual in (("audio", "audio"), ("text", "text"), ("speaker", "speaker_id")):
        hf.add_argument(f"--{field}-column", metavar="NAME", help=f"(default {usual})")
    hf.add_argument("--language-column", metavar="NAME", help="(default: none)")


def _add_write(corpora, name, text, source="FOLDER") -> argparse.ArgumentParser:
    sub = corpora.add_parser(name, help=text, description=f"Writes shards of {text}.")
    sub.set_defaults(command=_write, adapter=name)
    _add_common(sub, source)
    sub.add_argument("--out", required=True, metavar="SHARDS", help="a new or unfinished folder")
    sub.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all CPUs)"
    )
    _add_shard_size(sub)
    sub.add_argument(
        "--runner",
        help="of Apache Beam, to write with it instead of --workers: DirectRunner, DataflowRunner, "
        "FlinkRunner, SparkRunner; its pipeline options follow at the end, after --",
    )
    return sub


def _add_plan(corpora, name, text, source="FOLDER") -> argparse.ArgumentParser:
    sub = corpora.add_parser(name, help=text, description=f"Says what writing {text} will take.")
    sub.set_defaults(command=_plan, adapter=name)
    _add_common(sub, source)
    _add_shard_size(sub)
    sub.add_argument(
        "--hours", type=float, help="of audio, to plan for more or less of the same kind"
    )
    sub.add_argument(
        "--crop-seconds",
        type=float,
        default=15.36,
        help="length of the training crops whose reads are counted (default 15.36)",
    )
    return sub


def _add_shard_size(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--records-per-shard", type=int, default=1024, help="(default 1024; synthetic 128)"
    )


def _add_tfds_build(corpora, name, text, source="FOLDER") -> argparse.ArgumentParser:
    sub = corpora.add_parser(name, help=text, description=f"Builds {text}.")
    sub.set_defaults(command=_tfds_build, adapter=name)
    _add_common(sub, source)
    sub.add_argument("--out", required=True, metavar="FOLDER", help="where the data sets lie")
    return sub


def _add_common(sub: argparse.ArgumentParser, source: str | None) -> None:
    if source:
        sub.add_argument("--source", required=True, metavar=source, help="where the audio lies")
    sub.add_argument("--sample-rate", type=int, default=16000, help="in Hz (default 16000)")
    sub.add_argument("--name", help="of the corpus")


def _write(options: argparse.Namespace) -> int:
    with interrupts.deferred():
        from data_pipelines import index, shards

    run = None
    if options.runner:
        from data_pipelines import beam

        run = beam.runner(options.runner, options.beam)
    written = shards.write(
        _corpus(options),
        options.out,
        sample_rate=options.sample_rate,
        worker_count=options.workers,
        records_per_shard=options.records_per_shard,
        progress=sys.stderr.isatty(),
        run=run,
    )
    out = paths.of(options.out)
    print(f"{'written' if written else 'already written'}: {out}")
    with paths.reached(out):
        rejects = index.read_summary(out)["rejects"]
    if rejects:
        counts = ", ".join(f"{len(found):,} {reason}" for reason, found in rejects.items())
        print(f"left out: {counts}; `python -m data_pipelines inspect {out}` names them")
    return 0


def _plan(options: argparse.Namespace) -> int:
    with interrupts.deferred():
        from data_pipelines import planning

    plan = planning.plan(
        _corpus(options),
        sample_rate=options.sample_rate,
        records_per_shard=options.records_per_shard,
        crop_seconds=options.crop_seconds,
        hours=options.hours,
    )
    print(plan.describe())
    return 0


def _tfds_build(options: argparse.Namespace) -> int:
    with interrupts.deferred():
        from data_pipelines import tfds_builder

    folder, built = tfds_builder.build(
        _corpus(options), options.out, sample_rate=options.sample_rate
    )
    print(f"{'built' if built else 'already built'}: {folder}")
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


def _migrate(options: argparse.Namespace) -> int:
    with interrupts.deferred():
        from data_pipelines import migrations

    migrated = migrations.migrate(options.shards)
    print(f"{'migrated' if migrated else 'nothing to migrate'}: {options.shards}")
    return 0


def _mount(options: argparse.Namespace) -> int:
    from data_pipelines import mount

    print(mount.script(options.shards, options.at, options.cache), end="")
    return 0


def _corpus(options: argparse.Namespace):
    """Calls ``corpus`` of the adapter with the options that bear its arguments' names."""
    corpus = importlib.import_module(f"data_pipelines.corpora.{options.adapter}").corpus
    taken = inspect.signature(corpus).parameters
    given = {key: value for key, value in vars(options).items() if value is not None}
    with paths.reached(given.get("source", "")):
        return corpus(**{key: value for key, value in given.items() if key in taken})
