"""The encoder of an exported directory as an ONNX file, compared with PyTorch."""

import os
import pathlib
import tempfile

import numpy as np

from data_pipelines.files import atomic_write
from uniwav_jax.errors import UserError
from uniwav_jax.export import parity
from uniwav_jax.export.parity import Row

# The first with an exact GELU.
OPSET = 20
INPUTS = ("input_features", "attention_mask")
# Utterances and frames of what the graph is traced with, and of what it is compared on.
TRACED = (2, 40)
COMPARED = ((1, 23), (3, 150))
BAR = 1e-4
# Bytes of weights from which they get a file of their own: a protobuf ends at 2 GiB.
LARGEST = 2**30


def write(folder: pathlib.Path, output: pathlib.Path) -> list[Row]:
    """Writes `output` (of a large model also `output`.data) if every figure holds.

    Inputs: input_features float32 [batch, frames, channels], attention_mask int64 [batch, frames];
    outputs, float32: hidden_states [1 + layers, batch, frames, width], h0 first;
    last_hidden_state [batch, frames, width]; and, with a decoder, condition of the same shape.

    Returns:
      The outputs against PyTorch's on random features of other sizes, with padding.

    Raises:
      UserError: a package is not installed, or `folder` is not an export or is damaged.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "an ONNX export needs onnx, onnxruntime and onnxscript; install them with "
            "pip install -e '.[onnx]'."
        ) from error
    try:
        torch, model, _ = parity.load(folder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--directory {folder} can't be loaded: {reason}") from error
    if model.config.model_type != "uniwav":
        raise UserError(f"--directory {folder} holds no UniWav model; name what `export` wrote.")
    encoder = stacked(torch, model.float()).eval()
    names = ["hidden_states", "last_hidden_state"]
    names += ["condition"] if model.decoder is not None else []
    sizes = {0: "batch", 1: "frames"}
    program = torch.onnx.export(
        encoder,
        tuple(map(torch.tensor, example(*TRACED, model.config.channels))),
        input_names=INPUTS,
        output_names=names,
        dynamic_shapes=(sizes, sizes),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where the code lies on this machine
    weights = sum(x.nbytes for x in model.encoder.parameters())
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
        path = pathlib.Path(beside, output.name)
        program.save(path, external_data=weights > LARGEST)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        rows = []
        for size in COMPARED:
            x, valid = example(*size, model.config.channels)
            with torch.no_grad():
                expected = encoder(torch.tensor(x), torch.tensor(valid))
            found = session.run(names, dict(zip(INPUTS, (x, valid), strict=True)))
            for name, ours, theirs in zip(names, found, expected, strict=True):
                figure = parity.distance(ours, theirs.numpy(), valid.astype(bool))
                rows.append(Row("float32", f"{name} {size[0]} x {size[1]}", figure, BAR))
        if all(row.holds for row in rows):
            # The weights' file first: where the model is, it is whole.
            for part in sorted(pathlib.Path(beside).iterdir(), reverse=True):
                with atomic_write(output.with_name(part.name)) as temporary:
                    os.replace(part, temporary)
    return rows


def stacked(torch, model):
    """The model as a module with tensors for outputs."""

    class Stacked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_features, attention_mask):
            found = self.model(input_features, attention_mask, output_hidden_states=True)
            outputs = torch.stack(found.hidden_states), found.last_hidden_state, found.condition
            return tuple(output for output in outputs if output is not None)

    return Stacked()


def example(batch: int, frames: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Random features float32 and attention mask int64; all utterances but the first are padded."""
    x = np.random.default_rng(0).normal(size=(batch, frames, channels)).astype(np.float32)
    valid = np.arange(frames) < np.linspace(frames, frames // 3, batch)[:, None]
    return x, valid.astype(np.int64)
