"""Measure a run on labelled shards: WORKDIR/evaluation.json, WORKDIR/evaluation.png and a table.

Linear probes of phones, speakers and labels beside log-mel and the untrained encoder, validation
losses, codebook perplexity, resynthesis and infilling. What the shards have no labels for is left
out with a sentence. --against DIR puts a model of a local Hugging Face directory (HuBERT, WavLM,
data2vec-audio, wav2vec2, an export) through the same probes on the same audio, its frames aligned
with ours. Fields of the config's evaluation section can be set:
--config.evaluation.seeds=5 --config.evaluation.infillings=32

With --step all, evaluation.json holds the newest step and evaluation_steps.json every one.
"""

import os
import pathlib

from data_pipelines.files import write_json
from uniwav_jax.errors import UserError


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--data", required=True, help="labelled shards: DIR, or DIR,DIR")
    parser.add_argument(
        "--validation",
        default="",
        metavar="SHARDS",
        help="for losses and perplexity; default: those that the run validated on, or --data",
    )
    parser.add_argument(
        "--step", default="newest", metavar="N", help="a checkpoint's step, or all; default: newest"
    )
    parser.add_argument(
        "--exclude-speaker",
        action="append",
        default=[],
        metavar="NAME",
        help="train no probe on this speaker, and test labels on it as well",
    )
    parser.add_argument(
        "--against",
        metavar="DIR",
        help="a local Hugging Face directory: probe its model as well; nothing is downloaded",
    )
    parser.set_defaults(fields=[])


def run(options) -> int:
    """Evaluates, writes the files and prints the table."""
    step = parse_step(options.step)
    # OpenBLAS's threads wait for each other by spinning: on two busy cores an eigendecomposition
    # of 720 x 720 took 9.0 s with two threads and 0.1 s with one. Read when NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from uniwav_jax.tasks import report
    from uniwav_jax.tasks.evaluation import evaluate
    from uniwav_jax.training.telemetry import read_rows

    workdir = pathlib.Path(options.workdir)
    results = evaluate(
        workdir,
        options.data,
        step=step,
        validation=options.validation,
        exclude_speakers=options.exclude_speaker,
        overrides=options.fields,
        against=options.against,
    )
    if step == "all":
        write_json(workdir / "evaluation_steps.json", results)
    report.picture(workdir / "evaluation.png", results, read_rows(workdir / "metrics.jsonl"))
    write_json(workdir / "evaluation.json", results[-1])
    print(report.table(results[-1]))
    print(f"\n{workdir / 'evaluation.json'}\n{workdir / 'evaluation.png'}")
    return 0


def parse_step(text: str) -> int | str | None:
    """A step, "all", or None for "newest".

    Raises:
      UserError: anything else.
    """
    if text in ("all", "newest"):
        return "all" if text == "all" else None
    if not text.isdecimal():
        raise UserError(f"--step {text}: write the step of a checkpoint, all, or newest.")
    return int(text)
