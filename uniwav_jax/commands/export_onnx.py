"""The encoder of an exported directory as an ONNX file, for runtimes without PyTorch.

    python -m uniwav_jax export-onnx --directory DIR --output encoder.onnx

Takes what DIR's feature extractor gives, in batches of any size and length: input_features float32
[batch, frames, channels] and attention_mask int64 [batch, frames]. Gives hidden_states of h0 and of
all layers [1 + layers, batch, frames, width], last_hidden_state and, where DIR has a decoder,
condition (z). ONNX Runtime is compared with PyTorch at two sizes that it was not traced with, with
padding. Exit status: 1 when a figure is missed.
"""

import pathlib
import sys

from uniwav_jax.errors import UserError


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--directory", required=True, help="what `export` has written")
    parser.add_argument("--output", required=True, help="the file to write; a new one")


def run(options) -> int:
    """Writes and compares."""
    from uniwav_jax.export import onnx, parity

    folder, output = pathlib.Path(options.directory), pathlib.Path(options.output)
    if not folder.is_dir():
        raise UserError(f"--directory {folder} is no folder; name what `export` wrote.")
    if output.exists():
        raise UserError(f"--output {output} exists; name a new file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = onnx.write(folder, output)
    print(parity.text(rows))
    if not all(row.holds for row in rows):
        print("error: ONNX Runtime differs from PyTorch; nothing was written.", file=sys.stderr)
        return 1
    print(f"{output}: opset {onnx.OPSET}")
    return 0
