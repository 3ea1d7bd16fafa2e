"""Repeat one step of a run and look into it.

Restores the checkpoint before the step, repeats the run up to it, and prints the size of every
activation, gradient and update, the first tensor that is not finite, and the examples with the
highest loss. RUN/replay/step-N holds the same as report.json, and the batch as WAV files. The run
itself is not changed. To leave the examples out: train --branch-from RUN@STEP --skip-slots A:B.
"""


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--step", type=int, required=True, help="counted as in metrics.jsonl")
    parser.add_argument("--data", default="", help="the run's shards, if they have moved")


def run(options) -> int:
    """Replays and prints."""
    from uniwav_jax.tasks.replay import replay, table

    report = replay(options.workdir, options.step, shards=options.data)
    print(table(report))
    print(f"\n{report['folder']}")
    return 0
