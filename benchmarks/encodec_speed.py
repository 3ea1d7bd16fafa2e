"""Speed of EnCodec at the published size, in JAX, at once and in chunks, and in PyTorch.

    python -m benchmarks.encodec_speed [--seconds 30] [--batch 1] [--threads 1]

The network has random weights, which change nothing in the time. Every line is the fastest of three
runs after one that compiles: seconds of audio a CPU-second, which others on the machine hardly
change, and a second on the clock. PyTorch's threads wait for each other by computing: with more
than one its CPU-seconds on a busy machine count the wait.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from uniwav_jax.features import encodec
from uniwav_jax.features.encodec import chunked

RUNS = 3


def main() -> None:
    """Prints a line for each program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's")
    options = parser.parse_args()

    import torch
    from transformers import EncodecConfig, EncodecModel

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        codec = jax.device_put(encodec.load(pathlib.Path(folder)))
    samples = options.seconds * codec.sample_rate
    waveform = 0.1 * np.random.default_rng(0).normal(size=(options.batch, samples))
    waveform = waveform.astype(np.float32)
    encode, decode = jax.jit(encodec.Encodec.encode), jax.jit(encodec.Encodec.decode)
    latents = np.asarray(encode(codec, waveform))
    sound, hidden = torch.tensor(waveform)[:, None], torch.tensor(latents).transpose(1, 2)
    programs = {
        "encode, JAX": lambda: jax.block_until_ready(encode(codec, waveform)),
        "encode, JAX in chunks": lambda: list(chunked.encode(codec, waveform)),
        "encode, PyTorch": lambda: model.encoder(sound),
        "decode, JAX": lambda: jax.block_until_ready(decode(codec, latents)),
        "decode, JAX in chunks": lambda: list(chunked.decode(codec, latents)),
        "decode, PyTorch": lambda: model.decoder(hidden),
    }
    print(f"{'seconds of audio a second of':28}{'CPU':>8}{'clock':>8}")
    with torch.no_grad():
        for name, program in programs.items():
            rates = [options.seconds * options.batch / spent for spent in fastest(program)]
            print(f"{name:28}{rates[0]:8.1f}{rates[1]:8.1f}", flush=True)


def fastest(program: Callable[[], object]) -> tuple[float, float]:
    """The least CPU-seconds and seconds of a few runs."""
    program()
    spent = []
    for _ in range(RUNS):
        cpu, clock = time.process_time(), time.perf_counter()
        program()
        spent.append((time.process_time() - cpu, time.perf_counter() - clock))
    return tuple(map(min, zip(*spent, strict=True)))


if __name__ == "__main__":
    main()
