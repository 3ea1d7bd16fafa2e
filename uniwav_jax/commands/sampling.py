"""The sampling arguments that the generating commands share."""


def add_sampling_arguments(parser) -> None:
    """--workdir, --step, --input, --output, --picture and how the field is integrated."""
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--step", type=int, help="checkpoint; default: the newest")
    parser.add_argument("--input", required=True, help="an audio file")
    parser.add_argument("--output", required=True, help="the WAV file to write")
    parser.add_argument("--picture", metavar="PNG", help="draw input and output here")
    parser.add_argument("--evaluations", type=int, metavar="N", help="of the vector field (32)")
    parser.add_argument("--guidance", type=float, metavar="A", help="guidance strength (0.7)")
    parser.add_argument("--solver", choices=("midpoint", "euler"), help="default: midpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")


def sampling_options(options) -> dict:
    """What `Generator` takes; None means the config's value."""
    return {name: getattr(options, name) for name in ("evaluations", "guidance", "solver")}


def draw(path: str, log_mel, original, generated, first: float, last: float) -> None:
    """Log-mel of two waveforms, one below the other; `first` to `last` seconds are marked."""
    import pathlib

    import numpy as np

    from uniwav_jax.training.pictures import spectrograms

    panels = {
        title: np.asarray(log_mel(waveform[None]))[0]
        for title, waveform in (("input", original), ("output", generated))
    }
    rate = log_mel.sample_rate / log_mel.hop
    seconds = np.arange(len(panels["input"])) / rate
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    spectrograms(pathlib.Path(path), panels, rate, (first <= seconds) & (seconds < last))
