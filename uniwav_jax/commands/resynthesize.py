"""Send an audio file through encoder and decoder; every frame is generated, in two passes.

Pass 1 masks every other stripe of 10 frames, pass 2 the others; the sound comes from
Griffin-Lim, or of a run on EnCodec latents from the codec's decoder.
"""

from uniwav_jax.commands.sampling import add_sampling_arguments, draw, sampling_options


def add_arguments(parser) -> None:
    """The command's arguments."""
    add_sampling_arguments(parser)


def run(options) -> int:
    """Reads, resynthesises, writes."""
    from uniwav_jax.tasks.audio import read_audio, write_wav
    from uniwav_jax.tasks.generation import resynthesize
    from uniwav_jax.tasks.pretrained import load

    pretrained = load(options.workdir, options.step)
    rate = pretrained.config.features.sample_rate
    waveform = read_audio(options.input, rate)
    result = resynthesize(pretrained, waveform, options.seed, **sampling_options(options))
    write_wav(options.output, result, rate)
    if options.picture:
        draw(options.picture, pretrained.inference.log_mel, waveform, result, 0, len(result) / rate)
    print(f"{len(result) / rate:.2f} s in {options.output}")
    return 0
