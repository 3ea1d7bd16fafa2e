"""Tables of runs whose laws are known."""

import numpy as np
import pyarrow
import pyarrow.parquet

A_FRAME = 8.0


def table(noise: float = 0.002, seed: int = 0, **columns) -> pyarrow.Table:
    """6 sizes x 6 amounts; encoder and decoder losses of different laws, halves in four ratios."""
    rng = np.random.default_rng(seed)
    n, d = np.meshgrid(np.geomspace(1e5, 1e7, 6), np.geomspace(1e6, 1e8, 6), indexing="ij")
    n, d = n.ravel(), d.ravel()
    share = np.resize([0.5, 0.6, 0.7, 0.8], n.size)
    encoder, decoder = share * n, (1 - share) * n

    def noisy(loss):
        return loss * np.exp(noise * rng.standard_normal(n.size))

    encoder_loss = noisy(0.9 + 25 * n**-0.30 + 60 * d**-0.30)
    decoder_loss = noisy(0.4 + 15 * n**-0.25 + 30 * d**-0.28)
    content = {
        "run_id": [f"run-{row:02}" for row in range(n.size)],
        "parameters": n.round().astype(int),
        "encoder_parameters": encoder.round().astype(int),
        "decoder_parameters": decoder.round().astype(int),
        "frames": d.round().astype(int),
        "unique_frames": np.minimum(d, 2e7).round().astype(int),
        "flops": A_FRAME * n * d,
        "loss": encoder_loss + decoder_loss,
        "encoder_loss": encoder_loss,
        "decoder_loss": decoder_loss,
        "moving_target_loss": rng.uniform(1, 3, n.size),
    }
    return pyarrow.table({**content, **columns})


def write(folder, content: pyarrow.Table):
    """FOLDER/results.parquet."""
    path = folder / "results.parquet"
    pyarrow.parquet.write_table(content, path)
    return path
