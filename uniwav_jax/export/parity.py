"""Whether an exported directory is the same model: PyTorch against what JAX computed.

    python -m uniwav_jax.export.parity DIR REFERENCES

compares where there is no JAX; REFERENCES holds float64.safetensors and so on, by `reference`.

A figure is max |difference| / RMS over the valid frames. Blocks are fed with what JAX has before
them, so that a fault is found where it is.
"""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from uniwav_jax.errors import UserError

DTYPES = ("float64", "float32", "bfloat16")
# What is generated, and where the vector field is compared layer by layer.
GENERATION = {"evaluations": 32, "guidance": 0.7, "solver": "midpoint"}
TIME = 0.37
BARS = {
    "float64": {
        **{"log-mel": 1e-9, "latents": 1e-8, "a block": 1e-9, "layers": 1e-9, "z": 1e-9},
        "generate": 1e-7,
    },
    "float32": {
        **{"log-mel": 1e-5, "latents": 1e-4, "a block": 1e-5, "layers": 1e-4, "z": 1e-4},
        "generate": 1e-3,
    },
}
# Share of the codewords that may differ, each of them a near tie: so close are the distances.
DIFFERENT = {"float64": 0.0, "float32": 1e-3}
NEAR = 1e-4
# Of bfloat16: its error against its own float32, in errors of JAX's.
HALF = 1.5
# Of log-mel of real audio in float32, against float64: what counts as off, the share of the bins
# that may be, and the largest error in JAX's largest.
OFF, SHARE_OFF, LARGEST = 2e-4, 1e-3, 2.0


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


def check(folder: pathlib.Path, reference: Callable[[str], dict[str, np.ndarray]]) -> list[Row]:
    """The table of an exported directory.

    Args:
      folder: the directory.
      reference: dtype -> what JAX computes in it, by `reference.compute`.

    Raises:
      UserError: torch or transformers is not installed.
    """
    rows, half = [], {}
    for dtype in DTYPES:
        ours = reference(dtype)
        theirs = of_torch(folder, ours, dtype)
        valid = ours["valid"]
        for what, bar in BARS.get(dtype, {}).items():
            if what in theirs:
                expected = ours["layers"][1:] if what == "a block" else ours[what]
                rows.append(Row(dtype, what, distance(theirs[what], expected, valid), bar))
        if "a decoder block" in theirs and dtype in BARS:
            figure = distance(theirs["a decoder block"], ours["decoder streams"][1:], valid)
            rows.append(Row(dtype, "a decoder block", figure, BARS[dtype]["a block"]))
        if dtype in BARS:
            rows += from_audio(dtype, ours, theirs)
        if "codewords" in theirs and dtype in BARS:
            rows += _codewords(dtype, ours, theirs)
        streams = [what for what in ("layers", "z", "generate") if what in theirs]
        half[dtype] = {what: (ours[what], theirs[what]) for what in streams}
    for what, found in half["bfloat16"].items():
        # The rounding of the input is JAX's in both.
        jax_error, torch_error = (
            distance(found[side], half["float32"][what][side], valid) for side in (0, 1)
        )
        rows.append(Row("bfloat16", f"{what}: errors of JAX's", torch_error / jax_error, HALF))
    return rows


def from_audio(dtype: str, ours: dict, theirs: dict) -> list[Row]:
    """Rows for what the extractor makes of waveforms, and the model of that: as close as the
    features are, and the layers no closer than these."""
    bars, valid = BARS[dtype], ours["valid"]
    x_bar = bars["latents" if "latents" in ours else "log-mel"]
    frames = theirs["valid"].shape != valid.shape or (theirs["valid"] != valid).sum()
    figure = distance(theirs["x"], ours["x"], valid)
    whole = np.ones(ours["long layers"].shape[1:3], bool)
    layers = distance(theirs["long layers"], ours["long layers"], whole)
    return [
        Row(dtype, "frames of audio that differ", float(frames), 0.0),
        Row(dtype, "x from audio", figure, x_bar),
        Row(dtype, "layers from long audio", layers, max(x_bar, bars["layers"])),
    ]


def _codewords(dtype: str, ours: dict, theirs: dict) -> list[Row]:
    """Rows for the share that differs, of all utterances, and for the largest of the gaps."""
    off = count = 0
    apart = 0.0
    for kind in ("", "long "):
        found, expected = theirs[f"{kind}codewords"], ours[f"{kind}codewords"]
        valid = np.ones(expected.shape[1:], bool) if kind else ours["valid"]
        different = (found != expected) & valid
        off, count = off + different.sum(), count + len(found) * valid.sum()
        targets = ours[f"{kind}targets"]
        apart = max(apart, gap(found, expected, targets, theirs["codebooks"], different))
    return [
        Row(dtype, "codewords that differ", float(off / count), DIFFERENT[dtype]),
        Row(dtype, "how far from a tie these are", apart, NEAR),
    ]


def distance(found: np.ndarray, expected: np.ndarray, valid: np.ndarray) -> float:
    """max |difference| / RMS over the valid frames of [..., batch, frames, channels].

    Where there are several layers each counts by itself; the largest is given. Other shapes are
    infinitely far apart.
    """
    if found.shape != expected.shape:
        return math.inf
    wide = [np.asarray(x, np.float64).reshape(-1, *x.shape[-3:]) for x in (found, expected)]
    return max(
        float(np.abs(a[valid] - b[valid]).max() / np.sqrt((b[valid] ** 2).mean()))
        for a, b in zip(*wide, strict=True)
    )


def gap(
    found: np.ndarray,
    expected: np.ndarray,
    targets: np.ndarray,
    codebooks: np.ndarray,
    different: np.ndarray,
) -> float:
    """How much farther one of two codewords is than the other, where these differ: the largest.

    Args:
      found, expected: codewords of PyTorch and of JAX [targets, batch, frames].
      targets: JAX's, what the codewords stand for [targets, batch, frames, width].
      codebooks: [targets, codewords, width].
      different: bool [targets, batch, frames].

    Returns:
      |difference of the squared distances| / the squared distance; 0 if none differ.
    """
    target, row, frame = np.nonzero(different)
    at = targets[target, row, frame].astype(np.float64)
    one, other = (
        ((at - codebooks[target, chosen[target, row, frame]]) ** 2).sum(-1)
        for chosen in (found, expected)
    )
    return float(np.max(np.abs(one - other) / other, initial=0.0))


def check_log_mel(folder: pathlib.Path, waves: list[np.ndarray], ours: Callable) -> list[Row]:
    """Rows for the features of real audio in float32, whose silences go down to rounding.

    Args:
      folder: the exported directory.
      waves: [samples] each.
      ours: (wave, dtype) -> JAX's log-mel [frames, channels].
    """
    torch, transformers = packages()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(
        folder, trust_remote_code=True, local_files_only=True
    )
    off = bins = 0
    largest = {"jax": 0.0, "torch": 0.0}
    for wave in waves:
        exact = ours(wave, "float64")
        found = {
            "jax": ours(wave, "float32"),
            "torch": extractor.log_mel(torch.tensor(wave, dtype=torch.float32)[None])[0].numpy(),
        }
        errors = {name: np.abs(x.astype(np.float64) - exact) for name, x in found.items()}
        off, bins = off + (errors["torch"] > OFF).sum(), bins + exact.size
        largest = {name: max(largest[name], errors[name].max()) for name in errors}
    return [
        Row("float32", "log-mel of audio: share off", float(off / bins), SHARE_OFF),
        Row("float32", "its errors of JAX's", float(largest["torch"] / largest["jax"]), LARGEST),
    ]


def of_torch(
    folder: pathlib.Path, ours: dict[str, np.ndarray], dtype: str
) -> dict[str, np.ndarray]:
    """The same of an exported directory: from JAX's features, condition apart; x and valid, and all
    of the long utterance, from waveforms."""
    torch, model, extractor = load(folder)
    narrow, wide = getattr(torch, dtype), torch.float64 if dtype == "float64" else torch.float32
    model = model.to(narrow).eval()
    x, valid = torch.tensor(ours["x"], dtype=wide), torch.tensor(ours["valid"])
    waves = [
        torch.tensor(wave[:samples])
        for wave, samples in zip(ours["waveform"], ours["lengths"], strict=True)
    ]
    with torch.no_grad():
        taken = extractor(waves, dtype=wide, return_tensors="pt")
        output = model(x, valid, output_hidden_states=True)
        before = torch.tensor(ours["layers"]).to(narrow)
        blocks = [f(h, valid)[0] for f, h in zip(model.encoder.layers, before[:-1], strict=True)]
        found = {
            extractor.surface_name: extractor.surface(waves),
            "layers": torch.stack(output.hidden_states),
            "x": taken["input_features"],
            "valid": taken["attention_mask"].bool(),
        }
        if blocks:
            found["a block"] = torch.stack(blocks)
        if model.config.targets:
            found["codewords"] = model.codewords(x, valid)
            found["codebooks"] = model.codebook_sums / model.codebook_counts[..., None]
        if "long waveform" in ours:
            taken = extractor(ours["long waveform"], dtype=wide, return_tensors="pt")
            hidden_states = model(**taken, output_hidden_states=True).hidden_states
            found["long layers"] = torch.stack(hidden_states)
            if model.config.targets:
                found["long codewords"] = model.codewords(**taken)
        if output.condition is not None:
            found["z"] = output.condition
            streams = torch.tensor(ours["decoder streams"]).to(narrow)
            found["a decoder block"] = torch.stack(_decoder_blocks(model.decoder, streams, valid))
            noise, mask = torch.tensor(ours["noise"], dtype=wide), torch.tensor(ours["mask"])
            found["generate"] = model.generate(x, valid, mask, noise=noise, **GENERATION)
    exact = {name: x.to(torch.float64) if x.is_floating_point() else x for name, x in found.items()}
    return {name: value.numpy() for name, value in exact.items()}


def _decoder_blocks(decoder, streams, valid) -> list:
    """What follows each of the streams, which lie before the layers of the first half and after
    those of the second; the last of the first half and the first of the second are one block."""
    half = len(streams) // 2
    modulation = decoder.modulations(streams.new_full((streams.shape[1],), TIME))[1]
    after = [f(h, valid, modulation) for f, h in zip(decoder.first_half, streams, strict=False)]
    before = [after.pop(), *streams[half:-1]]
    for layer, h, skipped in zip(decoder.second_half, before, streams[:half].flip(0), strict=True):
        after.append(layer.after_skip(h, skipped, valid, modulation))
    return after


def load(folder: pathlib.Path) -> tuple[Any, Any, Any]:
    """torch, the model and the feature extractor of an exported directory.

    Raises:
      UserError: torch or transformers is not installed.
    """
    torch, transformers = packages()
    options = {"trust_remote_code": True, "local_files_only": True}
    model = transformers.AutoModel.from_pretrained(folder, **options)
    return torch, model, transformers.AutoFeatureExtractor.from_pretrained(folder, **options)


def packages() -> tuple[Any, Any]:
    """torch and transformers.

    Raises:
      UserError: one is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            "comparing an export with JAX needs torch and transformers; install them with "
            "pip install -e '.[export]'."
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def text(rows: list[Row]) -> str:
    """The table for reading."""
    lines = [f"{'dtype':10}{'what':36}{'figure':>12}{'at most':>12}"]
    for row in rows:
        mark = "" if row.holds else "  MISSED"
        lines.append(f"{row.dtype:10}{row.what:36}{row.figure:12.2e}{row.bar:12.1e}{mark}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The table of one directory; 1 when a figure is missed."""
    from safetensors.numpy import load_file

    folder, references = map(pathlib.Path, arguments)
    rows = check(folder, lambda dtype: load_file(references / f"{dtype}.safetensors"))
    print(text(rows))
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
