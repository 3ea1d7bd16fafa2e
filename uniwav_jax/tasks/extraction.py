"""Hidden states, condition and codewords of audio files, as safetensors with an index."""

import json
import pathlib

import numpy as np

from data_pipelines.files import atomic_write, write_tensors
from uniwav_jax.errors import UserError
from uniwav_jax.tasks.audio import read_audio
from uniwav_jax.tasks.pretrained import Pretrained

FORMAT = 1
FILES_A_PART = 64


def extract(pretrained: Pretrained, paths: list[str], output: pathlib.Path) -> tuple[int, int]:
    """Writes output/part-00000.safetensors ... and output/index.json, the index last: without one
    the folder is unfinished. What was extracted there before goes.

    Tensors are named "NUMBER/layers" float32 [depth, frames, width], "NUMBER/z" [frames, width]
    (with a decoder) and "NUMBER/codewords" int32 [targets, frames] (with a teacher); the index says
    which number is which file, and which files can't be read ("rejected": path and reason).

    Returns:
      The number of files, and of those that can't be read.

    Raises:
      UserError: not one of them can be read; says why of the first.
    """
    rate = pretrained.config.features.sample_rate
    files, rejected = [], []
    for part, first in enumerate(range(0, len(paths), FILES_A_PART)):
        waveforms = {}
        for number, path in enumerate(paths[first : first + FILES_A_PART], start=first):
            try:
                waveforms[number] = read_audio(path, rate)
            except UserError as error:
                rejected.append({"path": path, "reason": str(error)})
        if not waveforms:
            continue
        tensors, begins = {}, not files
        name = f"part-{part:05d}.safetensors"
        encoded = pretrained.encode(list(waveforms.values()))
        for (number, waveform), outputs in zip(waveforms.items(), encoded, strict=True):
            tensors |= {
                f"{number}/{kind}": np.ascontiguousarray(outputs[kind])
                for kind in ("layers", "z", "codewords")
                if kind in outputs
            }
            files.append(
                {
                    "number": number,
                    "path": paths[number],
                    "part": name,
                    "samples": len(waveform),
                    "frames": pretrained.frames(len(waveform)),
                }
            )
        if begins:
            _clear(output)
        write_tensors(output / name, tensors)
    if not files:
        raise UserError(rejected[0]["reason"])
    index = {
        "format": FORMAT,
        "step": pretrained.step,
        "sample_rate": rate,
        "hop": pretrained.config.features.hop,
        "files": files,
        "rejected": rejected,
    }
    with atomic_write(output / "index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(files), len(rejected)


def _clear(output: pathlib.Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "index.json").unlink(missing_ok=True)
    for old in output.glob("part-*.safetensors"):
        old.unlink()
