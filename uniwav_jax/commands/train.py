"""Train a model on shards; the same command goes on from the newest checkpoint.

Any field of the config can be set: --config.training.steps=2000 --config.optimizer.clip=0.5

Exit status: 0 done; 2 a mistake in what was asked for; 3 the run stopped itself (non-finite
gradients, a collapsed codebook); 130 Ctrl-C, after saving a checkpoint.
"""

from uniwav_jax import config as configs
from uniwav_jax.errors import UserError


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--config", required=True, help="configs/NAME.py[:ARGUMENT]")
    parser.add_argument("--data", required=True, help="shards: DIR, or DIR:0.7,DIR:0.3")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--validation", default="", help="shards to validate on; default: --data")
    parser.add_argument(
        "--exclude-speaker", action="append", default=[], metavar="NAME", help="leave a speaker out"
    )
    parser.add_argument(
        "--steps-this-run", type=int, metavar="N", help="stop with a checkpoint after N steps"
    )
    parser.add_argument(
        "--profile", default="", metavar="A:B", help="trace steps A to B into WORKDIR/profile"
    )
    parser.set_defaults(fields=[])


def run(options) -> int:
    """Resolves the config and trains."""
    config = configs.load_config(options.config, options.fields)
    with config.unlocked():
        config.data.shards = options.data
        config.data.validation = options.validation
        config.data.exclude_speakers += tuple(options.exclude_speaker)
    if options.steps_this_run is not None and options.steps_this_run < 1:
        raise UserError(f"--steps-this-run {options.steps_this_run} must be at least 1.")
    from uniwav_jax.training.train import train

    train(config, options.workdir, steps_this_run=options.steps_this_run, profile=options.profile)
    return 0
