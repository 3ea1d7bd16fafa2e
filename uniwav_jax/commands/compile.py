"""Compile the train step for a topology that is not there: does it fit, how fast, at what cost.

    python -m uniwav_jax compile --config configs/large.py --topology v5e:16x16 --json report.json

TPU topologies are compiled with libtpu (pip install -e '.[tpu]'), without a TPU. GPU topologies are
estimated only, and say so. --topology local compiles for the devices of this machine, and predicts
what is known of them. Any field of the config can be set: --config.training.batch_size=1024

Exit status: 0 the step fits; 1 it does not (the largest batch that does is named); 2 a mistake in
what was asked for.
"""

import json
import pathlib
import sys

from uniwav_jax import config as configs
from uniwav_jax.errors import UserError


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--config", required=True, help="configs/NAME.py[:ARGUMENT]")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="v5e:16x16, v5p:4x4x4, h100:4x8 (hosts x GPUs), or local",
    )
    parser.add_argument("--slices", type=int, default=1, help="so many of that topology")
    parser.add_argument("--json", metavar="FILE", help="write the report there too")
    parser.add_argument("--prices", metavar="FILE", help="dollars a chip-hour; default: ours")
    parser.add_argument(
        "--search",
        action="store_true",
        help="find the cheapest remat policy, the largest batch and the fastest mesh that fit",
    )
    parser.set_defaults(fields=[])


def run(options) -> int:
    """Compiles and prints."""
    import jax

    from data_pipelines.files import atomic_write
    from uniwav_jax.compile import aot, chips, report, search

    local = options.topology == "local"
    if local and options.slices != 1:
        raise UserError("--slices is for TPU topologies; on this machine set parallel.slices.")
    topology = None if local else chips.parse(options.topology, options.slices)
    if local:
        topology = chips.local(jax.devices())
    else:
        aot.prepare()
    config = configs.load_config(options.config, options.fields)
    if topology is not None and topology.slices > 1 and not local:
        with config.unlocked():
            config.parallel.slices = topology.slices
    configs.check(config)
    prices = report.read_prices(options.prices or report.PRICES)
    if options.json and not pathlib.Path(options.json).resolve().parent.is_dir():
        raise UserError(f"--json {options.json}: there is no such folder; make it first.")
    if options.search:
        found = search.search(config, topology, prices, say=_say)
    else:
        found = search.report_of(config, topology, prices)
    print(report.text(found))
    if options.json:
        with atomic_write(pathlib.Path(options.json)) as temporary:
            temporary.write_text(json.dumps(found, indent=2) + "\n")
    if found["fits"] is False:
        print(f"error: {search.advice(config, topology, found, _say)}", file=sys.stderr)
        return 1
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
