"""Generate a gap of an audio file from what surrounds it.

Samples outside the gap stay the original ones, with cross-fades of 10 ms on both sides.
"""

from uniwav_jax.commands.sampling import add_sampling_arguments, draw, sampling_options


def add_arguments(parser) -> None:
    """The command's arguments."""
    add_sampling_arguments(parser)
    parser.add_argument("--from", dest="start", type=float, required=True, help="gap's start, s")
    parser.add_argument("--to", dest="end", type=float, required=True, help="gap's end, s")


def run(options) -> int:
    """Reads, infills, writes."""
    from uniwav_jax.tasks.audio import read_audio, write_wav
    from uniwav_jax.tasks.generation import infill
    from uniwav_jax.tasks.pretrained import load

    pretrained = load(options.workdir, options.step)
    rate = pretrained.config.features.sample_rate
    waveform = read_audio(options.input, rate)
    result = infill(
        pretrained,
        waveform,
        options.start,
        options.end,
        options.seed,
        **sampling_options(options),
    )
    write_wav(options.output, result, rate)
    if options.picture:
        log_mel = pretrained.inference.log_mel
        draw(options.picture, log_mel, waveform, result, options.start, options.end)
    print(f"{options.start} to {options.end} s generated in {options.output}")
    return 0
