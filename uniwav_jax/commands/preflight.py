"""Look whether a run could begin here: what `train` checks before it computes anything.

Config and versions and data the same on all processes, as many devices as expected, shards that
can be read, an all-reduce over all devices with its bandwidth, free memory, room for a checkpoint.
Prints a table; anything wrong is one sentence on all processes, and exit status 2.
"""

from uniwav_jax import config as configs
from uniwav_jax.commands.several import add_several_arguments


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--config", required=True, help="configs/NAME.py[:ARGUMENT]")
    parser.add_argument("--data", required=True, help="shards: DIR, or DIR:0.7,DIR:0.3")
    parser.add_argument("--validation", default="", help="shards to validate on; default: --data")
    parser.add_argument("--workdir", help="a run's folder, whose disk needs room for a checkpoint")
    add_several_arguments(parser)
    parser.set_defaults(fields=[])


def run(options) -> int:
    """Looks, and prints the table."""
    config = configs.load_config(options.config, options.fields)
    with config.unlocked():
        config.data.shards = options.data
        config.data.validation = options.validation or config.data.validation
    from uniwav_jax.parallel import preflight, processes
    from uniwav_jax.training import opening, record

    processes.join(options.processes, options.process, options.coordinator, config.parallel)
    facts = record.start_facts(config, {})
    processes.check_same("start-up", facts, config.parallel.barrier_seconds)
    configs.check(config)
    opened = opening.open_run(config, options.workdir, options.expect_devices)
    if processes.index() == 0:
        versions = ", ".join(f"{name} {number}" for name, number in record.versions().items())
        hours, fingerprint = opened.mixture.epoch_hours, opened.mixture.fingerprint
        print(preflight.table(opened.found))
        print(f"data       {hours:.2f} hours, fingerprint {fingerprint[:12]}")
        print(f"versions   {versions}")
    return 0
