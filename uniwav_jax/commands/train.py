"""Train a model on shards; the same command goes on from the newest checkpoint.

Any field of the config can be set: --config.training.steps=2000 --config.optimizer.clip=0.5

--config configs/large.py:features=encodec,encodec_weights=DIR trains on the latents of an EnCodec
in a local Hugging Face directory, which encode-shards has written beside the audio; with
,latents=computed on those of the crop alone, computed in the step.

On several processes, --processes, --process and --coordinator say who takes part; all of them see
the same workdir. SIGTERM to one makes all of them save the same step and end.

Exit status: 0 done; 2 a mistake in what was asked for; 3 the run stopped itself (non-finite
gradients, a collapsed codebook, the end of its chip-hours); 4 a step hung; 5 another process was
lost; 75 SIGTERM and 130 Ctrl-C, after saving a checkpoint. After 4, 5, 75 and 130 the same command
goes on.
"""

from uniwav_jax import config as configs
from uniwav_jax.commands.several import add_several_arguments
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
        "--exclude", default="", metavar="FILE", help="leave out these record ids and speaker:NAMEs"
    )
    parser.add_argument(
        "--steps-this-run", type=int, metavar="N", help="stop with a checkpoint after N steps"
    )
    parser.add_argument(
        "--profile", default="", metavar="A:B", help="trace steps A + 1 to B into WORKDIR/profile"
    )
    start = parser.add_argument_group("starting from another run, or going on for longer")
    start.add_argument(
        "--init-from", metavar="RUN[@STEP]", help="take its parameters, slots and statistics"
    )
    start.add_argument(
        "--init-reset",
        default="",
        metavar="NAMES",
        help="of teacher,codebooks,statistics: begin anew, not from there",
    )
    start.add_argument(
        "--init-parameters", default="", metavar="REGEX", help="take only matching parameters"
    )
    start.add_argument(
        "--branch-from", metavar="RUN[@STEP]", help="go on from its whole state, as another run"
    )
    start.add_argument(
        "--skip-slots",
        action="append",
        default=[],
        metavar="A:B",
        help="a branch leaves out these slots of the order of examples",
    )
    start.add_argument("--extend-to", type=int, metavar="N", help="lengthen the run to N steps")
    add_several_arguments(parser)
    parser.set_defaults(fields=[])


def run(options) -> int:
    """Resolves the config and trains."""
    config = configs.load_config(options.config, options.fields)
    with config.unlocked():
        config.data.shards = options.data
        config.data.validation = options.validation or config.data.validation
        config.data.exclude = options.exclude or config.data.exclude
        config.data.exclude_speakers += tuple(options.exclude_speaker)
    if options.steps_this_run is not None and options.steps_this_run < 1:
        raise UserError(f"--steps-this-run {options.steps_this_run} must be at least 1.")
    from uniwav_jax.parallel import processes
    from uniwav_jax.training.train import train

    start = start_of(options)
    with config.unlocked():
        config.data.skip_slots += tuple(skipped(text) for text in options.skip_slots)
    processes.join(options.processes, options.process, options.coordinator, config.parallel)
    train(
        config,
        options.workdir,
        start=start,
        extend_to=options.extend_to,
        steps_this_run=options.steps_this_run,
        profile=options.profile,
        expect_devices=options.expect_devices,
    )
    return 0


def start_of(options):
    """The `Start` that the arguments ask for, or None.

    Raises:
      UserError: arguments that do not fit together.
    """
    from uniwav_jax.training import start

    if options.init_from and options.branch_from:
        raise UserError("--init-from and --branch-from exclude each other; choose one.")
    if not options.init_from and (options.init_reset or options.init_parameters):
        raise UserError("--init-reset and --init-parameters belong to --init-from RUN.")
    if not options.branch_from and options.skip_slots:
        raise UserError("--skip-slots belongs to --branch-from RUN@STEP.")
    if options.init_from:
        reset = tuple(name.strip() for name in options.init_reset.split(",") if name.strip())
        return start.Start(start.INIT, options.init_from, reset, options.init_parameters)
    return start.Start(start.BRANCH, options.branch_from) if options.branch_from else None


def skipped(text: str) -> tuple[int, int]:
    """ "A:B" -> (A, B)."""
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal()):
        raise UserError(f"--skip-slots {text}: write A:B, two places in the order of examples.")
    return int(first), int(end)
