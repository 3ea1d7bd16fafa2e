"""Say whether a run has been trained on a recording, and at which steps.

Follows from the order of examples, which is a pure function of seed and position: nothing was
logged. Runs that this one began from (--init-from, --branch-from) are asked as well. Every epoch
up to the step is searched: about ten seconds for a million slots. Examples that took the place of
damaged ones are not found: metrics.jsonl counts them (`replaced`), and the log names what was lost.
"""


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("workdir", metavar="RUN", help="the run's folder")
    parser.add_argument("id", metavar="ID", help="a record id, as `data_pipelines` wrote it")
    parser.add_argument("--step", type=int, metavar="N", help="up to here; default: the newest")
    parser.add_argument("--data", default="", help="the run's shards, if they have moved")


def run(options) -> int:
    """Answers in lines of text."""
    from uniwav_jax.tasks.trained_on import describe, trained_on

    print(describe(trained_on(options.workdir, options.id, options.step, shards=options.data)))
    return 0
