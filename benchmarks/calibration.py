"""The prediction of step times, held against published figures of dense Transformers.

    python -m benchmarks.calibration

MaxText publishes what its decoder-only models of 16 to 1024 billion parameters reach on v5e and
v5p, on up to 32 slices. All rows of both tables stand here, with the models, batches, remat
policies and meshes of the commit that published them: 76bd53b (2023-12-15) of
AI-Hypercomputer/maxtext, configs/{v5e,v5p}/README.md and the scripts beside them, base.yml,
pyconfig.py; MFU as its train.py counts it. (Later commits have other models under the same names.
Its main README gives other figures for four of the v5p runs, later 67.76 % for 32B, and
two rows of a model without a script.)

What these programs move and send is counted by the functions that `compile` uses: `traffic`,
`predict.wire_seconds`, `predict.predict`. What they compute is counted here, as their models are.
The largest error is `predict.BAND`.

Beside them stand our own steps on one H100, as `benchmarks.step` timed them: `predict.GPU_BAND`.
"""

import dataclasses
import functools
import math
import pathlib

import numpy as np

from uniwav_jax import config as configs
from uniwav_jax.compile import chips, predict, report, traffic

ROOT = pathlib.Path(__file__).resolve().parents[1]

TOKENS = 2_048  # of a sequence
HEAD = 256  # width of a head
VOCABULARY = 32_768  # whose embedding makes the logits too


@dataclasses.dataclass(frozen=True)
class Published:
    """Rows of the tables: a model, how it was run, and its MFU on so many slices.

    Attributes:
      scale: `global_parameter_scale`, billions of parameters.
      topology: of a slice.
      sequences: a chip.
      tensor: of the mesh; fsdp is the rest of the slice.
      remat: "full", or "dots", which MaxText calls minimal.
      mfu: slices -> share of the peak.
    """

    scale: int
    topology: str
    sequences: int
    tensor: int
    remat: str
    mfu: dict[int, float]


TABLES = (
    Published(
        *(16, "v5e:16x16", 6, 1, "full"),
        {1: 0.6110, 2: 0.5937, 4: 0.5914, 8: 0.5827, 16: 0.5656, 32: 0.5465},
    ),
    Published(
        *(32, "v5e:16x16", 4, 1, "full"),
        {1: 0.6686, 2: 0.6481, 4: 0.6410, 8: 0.6367, 16: 0.6226, 32: 0.6040},
    ),
    Published(
        *(64, "v5e:16x16", 2, 1, "full"),
        {1: 0.5990, 2: 0.5666, 4: 0.5585, 8: 0.5496, 16: 0.5329, 32: 0.5018},
    ),
    Published(
        *(128, "v5e:16x16", 1, 16, "full"),
        {1: 0.5606, 2: 0.5582, 4: 0.5493, 8: 0.5293, 16: 0.5086, 32: 0.4625},
    ),
    Published(32, "v5p:4x4x4", 8, 4, "dots", {1: 0.7147, 2: 0.6943}),
    Published(64, "v5p:4x4x4", 4, 4, "dots", {1: 0.7031, 2: 0.6726}),
    Published(128, "v5p:4x4x8", 2, 8, "dots", {1: 0.6868, 2: 0.6634}),
    Published(128, "v5p:4x8x8", 2, 8, "dots", {1: 0.6883, 2: 0.5966}),
    Published(256, "v5p:8x8x8", 2, 8, "dots", {1: 0.6709, 2: 0.6299}),
    Published(512, "v5p:8x8x8", 2, 16, "full", {1: 0.6399, 2: 0.6145}),
    Published(1024, "v5p:8x8x16", 2, 16, "full", {1: 0.5535, 2: 0.5155}),
    Published(1024, "v5p:8x16x16", 2, 16, "full", {1: 0.6480, 2: 0.6083}),
)
ROWS = tuple((table, slices) for table in TABLES for slices in table.mfu)


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder: two matrices a feed-forward, four of `inner` = heads x `HEAD` an attention.

    Attributes:
      width: of the stream.
      heads: of attention.
      hidden: of the feed-forward.
      layers: of them.
    """

    width: int
    heads: int
    hidden: int
    layers: int

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * HEAD

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return 4 * self.width * self.inner + 2 * self.width * self.hidden

    @property
    def weights(self) -> int:
        """Of the whole model."""
        return self.layers * self.layer + VOCABULARY * self.width


def model(scale: int) -> Model:
    """What pyconfig.py makes of `global_parameter_scale`: heads, width, layers doubled in turn."""
    cycles, rest = divmod(int(math.log2(scale)), 3)
    wide = 2 ** (cycles + (rest > 0))
    return Model(2_560 * 2 ** (cycles + (rest > 1)), 8 * wide, 8_192 * wide, 16 * 2**cycles)


def predicted(table: Published, slices: int) -> tuple[float, float]:
    """(MFU without overlap, MFU if all overlaps) of a published run."""
    topology = dataclasses.replace(chips.parse(table.topology), slices=slices)
    chip, built = topology.chip, model(table.scale)
    tokens = table.sequences * TOKENS
    # Queries times keys and weights times values, a token; a causal kernel leaves half of it out.
    squares = built.layers * 2 * TOKENS * built.inner
    flops = tokens * (6 * built.weights + 3 * squares)
    # The backward kernel makes its logits again, and no policy keeps what the forward one gave.
    again = squares / 2 + squares + (table.remat == "full") * 2 * built.layers * built.layer
    size = _size(table, topology, built)
    step = predict.predict(
        topology,
        topology.chips * (flops + tokens * again),
        sum(traffic.memory_traffic(size).values()),
        *predict.wire_seconds(topology, _exchanges(size, built), _layout(topology)),
    )
    return flops / step.seconds / chip.peak_flops, flops / step.overlapped / chip.peak_flops


def _size(table: Published, topology: chips.Topology, built: Model) -> traffic.Sizes:
    """The run in our terms.

    The width is that of our layer with as many weights, 12 width^2: the geometric mean of the
    stream's and the heads', since the feed-forward of these models is four times the heads' width.
    """
    width = round(math.sqrt(built.width * built.inner))
    return traffic.Sizes(
        rows=table.sequences * table.tensor,
        accumulation=1,
        slices=topology.slices,
        data=1,
        fsdp=topology.slice_chips // table.tensor,
        tensor=table.tensor,
        trained=built.weights,
        teacher=0,
        compute=2,
        parameter=4,
        moment=4,
        frames=TOKENS,
        stacks=(traffic.Stack("model", built.layers, width, built.heads, True),),
        remat=table.remat,
        attention="splash",
    )


def _exchanges(size: traffic.Sizes, built: Model) -> list:
    """What is added up over tensor is the stream."""
    (stack,) = size.stacks
    stream = dataclasses.replace(size, stacks=(dataclasses.replace(stack, width=built.width),))
    return list(traffic.exchanges(stream).values())


def _layout(topology: chips.Topology) -> predict.Layout:
    """Chips in the order of the torus, so that tensor takes its last direction."""
    torus = np.stack([side.reshape(-1) for side in np.indices(topology.shape)], axis=-1)
    places = np.repeat(np.arange(topology.slices), topology.slice_chips)
    return predict.Layout(np.tile(torus, (topology.slices, 1)), places)


def error(table: Published, slices: int) -> float:
    """Of the predicted step time without overlap, over the published one."""
    return table.mfu[slices] / predicted(table, slices)[0] - 1


def largest_error() -> float:
    """Either way, of all rows."""
    return max(abs(error(*row)) for row in ROWS)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Our own step, timed by `benchmarks.step` on one GPU.

    Attributes:
      config, fields: what was run.
      seconds: median of a step.
    """

    config: str
    fields: tuple[str, ...]
    seconds: float


# One H100 of 80 GB, 2026-11-26, JAX 0.11.2, commit 8a9cf3c; 15 steps each after three.
GPU = "h100:1x1"
MEASURED = (
    Measured("configs/small.py", (), 0.07271),
    Measured("configs/small.py", ("parallel.remat=none",), 0.08201),
    Measured("configs/small.py", ("parallel.attention=reference",), 0.1144),
    Measured("configs/base.py", ("training.batch_size=32",), 0.1668),
    Measured("configs/large.py", ("training.batch_size=16",), 0.1982),
)


@functools.cache
def prediction(row: Measured) -> dict:
    """What is predicted of a measured step."""
    config = configs.load_config(str(ROOT / row.config), list(row.fields))
    return report.estimate(config, chips.parse(GPU), report.read_prices())


def measured_lines() -> list[str]:
    """Markdown, a row a measured step."""
    found = ["| config | step, s | predicted | times | MFU | predicted |", "|---" * 6 + "|"]
    for row in MEASURED:
        told = prediction(row)
        predicted = told["predicted_step_seconds"]
        mfu = told["flops"] / row.seconds / chips.parse(GPU).chip.peak_flops
        name = " ".join([f"`{row.config.split('/')[1][:-3]}`", *row.fields])
        found.append(
            f"| {name} | {row.seconds:.4f} | {predicted:.4f} | {row.seconds / predicted:.1f} | "
            f"{mfu:.1%} | {told['predicted_mfu']:.1%} |"
        )
    return found


def lines() -> list[str]:
    """Markdown, a row a table and number of slices."""
    found = [
        "| model | topology | remat | published MFU | predicted | step time's error | if all "
        "overlaps |",
        "|---|---|---|---|---|---|---|",
    ]
    for table, slices in ROWS:
        plain, overlapped = predicted(table, slices)
        place = table.topology if slices == 1 else f"{slices} × {table.topology}"
        mfu = table.mfu[slices]
        found.append(
            f"| {table.scale}B | {place} | {table.remat} | {mfu:.1%} | {plain:.1%} | "
            f"{mfu / plain - 1:+.0%} | {overlapped:.1%} ({mfu / overlapped - 1:+.0%}) |"
        )
    return found


if __name__ == "__main__":
    print("\n".join(lines()))
    print(f"\nlargest error {largest_error():.0%}\n")
    print("\n".join(measured_lines()))
