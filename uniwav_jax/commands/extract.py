"""Hidden states of all layers, the condition z and codeword ids of one file or a folder of files.

OUTPUT becomes a folder: part-*.safetensors with tensors NUMBER/layers, NUMBER/z and
NUMBER/codewords, and index.json, which says which number is which file and which can't be read.
"""

import pathlib
import sys


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--step", type=int, help="checkpoint; default: the newest")
    parser.add_argument("--input", required=True, help="an audio file, or a folder of them")
    parser.add_argument("--output", required=True, help="the folder to write")


def run(options) -> int:
    """Extracts."""
    from uniwav_jax.tasks.audio import find_audio
    from uniwav_jax.tasks.extraction import extract
    from uniwav_jax.tasks.pretrained import load

    paths = find_audio(options.input)
    model, output = load(options.workdir, options.step), pathlib.Path(options.output)
    count, rejected = extract(model, paths, output)
    print(f"{count} file(s) in {output}")
    if rejected:
        why = output / "index.json"
        print(f"{rejected} file(s) can't be read, {why} says why", file=sys.stderr)
    return 0
