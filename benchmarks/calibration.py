"""The prediction of step times, held against published figures of dense Transformers.

    python -m benchmarks.calibration

MaxText publishes what its decoder-only models of 16 to 128 billion parameters reach on v5e and v5p
(configs/v5e/README.md and configs/v5p/README.md of AI-Hypercomputer/maxtext, with the batch, remat
policy and mesh of each in the script beside it). The same formula that `compile` uses is fed with
what these programs compute and move. The largest error is `predict.BAND`.
"""

import dataclasses

from uniwav_jax.compile import chips, predict

TOKENS = 2_048  # of a sequence
HEAD = 256


@dataclasses.dataclass(frozen=True)
class Published:
    """One row of the tables: a model, how it was run, and its MFU."""

    name: str
    topology: str
    width: int
    heads: int
    hidden: int
    layers: int
    sequences: int  # a chip
    tensor: int
    recomputed: bool
    mfu: float


ROWS = (
    Published("16B", "v5e:16x16", 4_096, 64, 28_672, 32, 6, 1, True, 0.6110),
    Published("32B", "v5e:16x16", 8_192, 64, 28_672, 32, 4, 1, True, 0.6686),
    Published("64B", "v5e:16x16", 8_192, 64, 28_672, 64, 2, 1, True, 0.5990),
    Published("32B", "v5p:4x4x4", 8_192, 64, 28_672, 32, 7, 4, False, 0.7147),
    Published("64B", "v5p:4x4x4", 8_192, 64, 28_672, 64, 3, 4, False, 0.7031),
    Published("128B", "v5p:4x4x8", 8_192, 128, 57_344, 64, 1, 8, False, 0.6868),
)


def predicted(row: Published) -> tuple[float, float]:
    """(MFU without overlap, MFU if all overlaps) of a published run."""
    topology = chips.parse(row.topology)
    inner = row.heads * HEAD
    layer = 4 * row.width * inner + 3 * row.width * row.hidden
    weights = row.layers * layer
    tokens = row.sequences * TOKENS
    squares = row.layers * 4 * TOKENS * inner  # a token and forward pass
    model = tokens * (6 * weights + 3 * squares)
    # The kernel makes its logits again; "full" makes everything again.
    again = tokens * (2 * weights + squares if row.recomputed else 0) + tokens * squares / 2
    fsdp = topology.chips // row.tensor
    memory = 3 * 2 * 2 * weights / row.tensor + 26 * weights / topology.chips
    memory += tokens * row.layers * 2 * 3 * 2 * (6 * row.width + 2 * inner + 3 * row.hidden)
    step = predict.predict(
        topology,
        topology.chips * (model + again),
        memory,
        _wire(row, topology, weights, tokens, fsdp),
        0.0,
    )
    peak = topology.chip.peak_flops
    return model / step.seconds / peak, model / step.overlapped / peak


def _wire(row: Published, topology, weights: int, tokens: int, fsdp: int) -> float:
    """Seconds: bfloat16 weights gathered twice, gradients scattered once; tensor sums."""
    links = topology.chip.interconnect
    # Tensor takes one direction of the torus, fsdp what is left.
    fsdp_links = links if row.tensor == 1 else links * 2 / 3
    seconds = 3 * 2 * weights / row.tensor * (fsdp - 1) / fsdp / fsdp_links
    if row.tensor > 1:
        summed = 4 * row.layers * tokens * row.tensor * row.width * 2
        seconds += 2 * (row.tensor - 1) / row.tensor * summed / (links / 3)
    return seconds


def table() -> list[str]:
    """Markdown."""
    lines = [
        "| model | topology | published MFU | predicted | step time's error | if all overlaps |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        plain, overlapped = predicted(row)
        lines.append(
            f"| {row.name} | {row.topology} | {row.mfu:.1%} | {plain:.1%} | "
            f"{row.mfu / plain - 1:+.0%} | {overlapped:.1%} ({row.mfu / overlapped - 1:+.0%}) |"
        )
    return lines


def largest_error() -> float:
    """Of the predicted step time without overlap, either way."""
    return max(abs(row.mfu / predicted(row)[0] - 1) for row in ROWS)


if __name__ == "__main__":
    print("\n".join(table()))
    print(f"\nlargest error {largest_error():.0%}")
