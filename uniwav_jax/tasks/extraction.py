"""Hidden states, condition and codewords of audio files, as safetensors with an index."""

import json
import pathlib

import numpy as np

from data_pipelines.files import atomic_write, write_tensors
from uniwav_jax.tasks.audio import read_audio
from uniwav_jax.tasks.pretrained import Pretrained

FORMAT = 1
FILES_A_PART = 64


def extract(pretrained: Pretrained, paths: list[str], output: pathlib.Path) -> int:
    """Writes output/part-00000.safetensors ... and output/index.json, the index last.

    Tensors are named "NUMBER/layers" float32 [depth, frames, width], "NUMBER/z" [frames, width]
    (with a decoder) and "NUMBER/codewords" int32 [targets, frames] (with a teacher); the index says
    which number is which file.

    Returns:
      The number of files.
    """
    output.mkdir(parents=True, exist_ok=True)
    rate = pretrained.config.features.sample_rate
    files = []
    for part, first in enumerate(range(0, len(paths), FILES_A_PART)):
        chosen = paths[first : first + FILES_A_PART]
        waveforms = [read_audio(path, rate) for path in chosen]
        tensors = {}
        name = f"part-{part:05d}.safetensors"
        for number, outputs in enumerate(pretrained.encode(waveforms), start=first):
            tensors |= {
                f"{number}/{kind}": np.ascontiguousarray(outputs[kind])
                for kind in ("layers", "z", "codewords")
                if kind in outputs
            }
            samples = len(waveforms[number - first])
            files.append(
                {
                    "number": number,
                    "path": paths[number],
                    "part": name,
                    "samples": samples,
                    "frames": pretrained.frames(samples),
                }
            )
        write_tensors(output / name, tensors)
    index = {
        "format": FORMAT,
        "step": pretrained.step,
        "sample_rate": rate,
        "hop": pretrained.config.features.hop,
        "files": files,
    }
    with atomic_write(output / "index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(files)
