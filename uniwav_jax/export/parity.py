"""Whether an exported directory is the same model: PyTorch against JAX on the same audio.

A figure is max |difference| / RMS over the valid frames. The encoder's layers are fed with what
JAX has before them, so that a fault is found where it is.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax.errors import UserError
from uniwav_jax.recipes.inference import Inference, noise, stripes
from uniwav_jax.tasks.pretrained import Pretrained

# Seconds of the utterances; all but the longest are padded.
SECONDS = (2.31, 1.17, 0.43)
GENERATION = {"evaluations": 8, "guidance": 0.7, "solver": "midpoint"}
GAP_FRAMES = 10
BARS = {
    "float64": {"log-mel": 1e-9, "a block": 1e-9, "layers": 1e-9, "z": 1e-9, "generate": 1e-7},
    "float32": {"log-mel": 1e-5, "a block": 1e-5, "layers": 1e-4, "z": 1e-4, "generate": 1e-3},
}
# Share of the codewords that may differ.
DIFFERENT = {"float64": 0.0, "float32": 1e-3}
# Of bfloat16: its error against its own float32, in errors of JAX's.
HALF = 1.5


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a figure, and what it may be at most."""

    dtype: str
    what: str
    figure: float
    bar: float

    @property
    def holds(self) -> bool:
        """NaN does not."""
        return self.figure <= self.bar


def check(pretrained: Pretrained, folder: pathlib.Path, seed: int = 0) -> list[Row]:
    """The table of an exported directory against the run it was made of.

    Raises:
      UserError: torch or transformers is not installed.
    """
    rng, rate = np.random.default_rng(seed), pretrained.config.features.sample_rate
    waves = [0.1 * rng.normal(size=int(seconds * rate)) for seconds in SECONDS]
    rows, jax_found, torch_found = [], {}, {}
    for dtype in ("float64", "float32", "bfloat16"):
        jax_found[dtype] = of_jax(pretrained, waves, dtype)
        torch_found[dtype] = of_torch(folder, jax_found[dtype], waves, dtype)
    for dtype, bars in BARS.items():
        ours, theirs = jax_found[dtype], torch_found[dtype]
        for what, bar in bars.items():
            if what in theirs:
                figure = distance(theirs[what], ours[what], ours["valid"])
                rows.append(Row(dtype, what, figure, bar))
        if "codewords" in theirs:
            different = (theirs["codewords"] != ours["codewords"]) & ours["valid"]
            share = different.sum() / (ours["valid"].sum() * len(different))
            rows.append(Row(dtype, "codewords that differ", float(share), DIFFERENT[dtype]))
    for what in ("layers", "z"):
        if what in torch_found["bfloat16"]:
            error = {}
            for name, found in (("jax", jax_found), ("torch", torch_found)):
                half, whole = found["bfloat16"], found["float32"]
                error[name] = distance(half[what], whole[what], jax_found["float32"]["valid"])
            figure = error["torch"] / error["jax"]
            rows.append(Row("bfloat16", f"{what}: errors of JAX's", figure, HALF))
    return rows


def distance(found: np.ndarray, expected: np.ndarray, valid: np.ndarray) -> float:
    """max |difference| / RMS over the valid frames of [..., batch, frames, channels].

    Where there are several layers each counts by itself; the largest is given.
    """
    wide = [np.asarray(x, np.float64).reshape(-1, *x.shape[-3:]) for x in (found, expected)]
    return max(
        float(np.abs(a[valid] - b[valid]).max() / np.sqrt((b[valid] ** 2).mean()))
        for a, b in zip(*wide, strict=True)
    )


def of_jax(pretrained: Pretrained, waves: list[np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """What JAX makes of `waves`, computing in `dtype`: x, valid, log-mel, layers (h0 first) ..."""
    wide = "float64" if dtype == "float64" else "float32"
    config = pretrained.config.copy_and_resolve_references()
    with config.unlocked():
        config.training.update(compute_dtype=dtype, parameter_dtype=wide)
    longest = max(map(len, waves))
    waveform = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])
    samples = np.array([len(wave) for wave in waves])
    with jax.enable_x64(wide == "float64"):
        inference = Inference(config)
        params, slots, statistics = jax.tree.map(
            lambda x: np.asarray(x, wide if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype),
            jax.device_get((pretrained.params, pretrained.slots, pretrained.statistics)),
        )

        @jax.jit
        def compute(params, slots, waveform):
            x, valid = inference.surface(statistics, waveform, samples)
            known = jnp.zeros_like(valid)
            h, streams = inference.encode(params, x, valid, known)
            found = {"x": x, "valid": valid, "log-mel": inference.feature(waveform)}
            found["layers"] = h[None] if streams is None else jnp.concatenate([h[None], streams])
            if streams is not None:
                found["codewords"] = inference.codewords(params, slots, x, valid)
            if config.objective.decoder_weight:
                mask = valid & stripes(x.shape[1], GAP_FRAMES)[0]
                noises = [noise(row, *x.shape[1:], x.dtype) for row in range(len(x))]
                found |= {"mask": mask, "x0": jnp.stack(noises)}
                found["z"] = inference.condition(params, x, valid, known)
                z = inference.condition(params, x, valid, mask)
                found["generate"] = inference.generate(
                    params, x, valid, mask, z, found["x0"], **GENERATION
                )
            return found

        found = jax.device_get(compute(params, slots, waveform.astype(wide)))
    found["a block"] = found["layers"][1:]
    half = jnp.bfloat16
    return {name: x.astype(np.float32) if x.dtype == half else x for name, x in found.items()}


def of_torch(
    folder: pathlib.Path, ours: dict[str, np.ndarray], waves: list[np.ndarray], dtype: str
) -> dict[str, np.ndarray]:
    """The same of an exported directory, from JAX's features, condition apart."""
    torch, model, extractor = load(folder)
    wide = torch.float64 if dtype == "float64" else torch.float32
    model = model.to(getattr(torch, dtype)).eval()
    x, valid = torch.tensor(ours["x"], dtype=wide), torch.tensor(ours["valid"])
    with torch.no_grad():
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(wave, dtype=wide) for wave in waves], batch_first=True
        )
        output = model(x, valid, output_hidden_states=True)
        before = torch.tensor(ours["layers"]).to(getattr(torch, dtype))
        blocks = [f(h, valid)[0] for f, h in zip(model.encoder.layers, before[:-1], strict=True)]
        found = {
            "log-mel": extractor.log_mel(padded),
            "layers": torch.stack(output.hidden_states),
        }
        if blocks:
            found["a block"] = torch.stack(blocks)
        if model.config.targets:
            found["codewords"] = model.codewords(x, valid)
        if output.condition is not None:
            found["z"] = output.condition
            x0 = torch.tensor(ours["x0"], dtype=wide)
            mask = torch.tensor(ours["mask"])
            found["generate"] = model.generate(x, valid, mask, noise=x0, **GENERATION)
    return {name: value.to(torch.float64).numpy() for name, value in found.items()}


def load(folder: pathlib.Path) -> tuple[Any, Any, Any]:
    """torch, the model and the feature extractor of an exported directory.

    Raises:
      UserError: torch or transformers is not installed.
    """
    try:
        import torch
        from transformers import AutoFeatureExtractor, AutoModel
    except ImportError as error:
        raise UserError(
            "comparing an export with JAX needs torch and transformers; install them with "
            "pip install -e '.[export]'."
        ) from error
    options = {"trust_remote_code": True, "local_files_only": True}
    model = AutoModel.from_pretrained(folder, **options)
    return torch, model, AutoFeatureExtractor.from_pretrained(folder, **options)


def text(rows: list[Row]) -> str:
    """The table for reading."""
    lines = [f"{'dtype':10}{'what':28}{'figure':>12}{'at most':>12}"]
    for row in rows:
        mark = "" if row.holds else "  MISSED"
        lines.append(f"{row.dtype:10}{row.what:28}{row.figure:12.2e}{row.bar:12.1e}{mark}")
    return "\n".join(lines)
