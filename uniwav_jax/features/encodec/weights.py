"""The weights of an EnCodec network out of a Hugging Face directory, as a tree of arrays.

Nothing is unpickled but by `torch.load(weights_only=True)`. Names, shapes and types are looked at
before any tensor is read.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from uniwav_jax.errors import UserError
from uniwav_jax.features.encodec.config import (
    CONFIG,
    Conv,
    Geometry,
    Lstm,
    Residual,
    Upsample,
    read_geometry,
)

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
# What may lie beside a network and says under which licence it is.
ABOUT = ("README.md", "LICENSE")
# Weight norm's scale and direction have these names since PyTorch 2.0.
RENAMED = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
FLOATS = ("float16", "bfloat16", "float32", "float64")
SAFETENSORS_FLOATS = dict(zip(("F16", "BF16", "F32", "F64"), FLOATS, strict=True))


def read_params(directory: pathlib.Path, dtype=np.float32) -> tuple[Geometry, dict]:
    """Geometry and parameters of the codec in a directory.

    Returns:
      (geometry, {"encoder": ..., "decoder": ...}); below these the index of a layer, of a block's
      layer inside, "block" or "shortcut", and of an LSTM's layer, then NumPy arrays in `dtype`:
      "kernel" [taps, inputs, outputs] with weight norm folded in (in float64) and "bias"; or of an
      LSTM "input" and "recurrent" [width, 4 width], "bias" [4 width], gates in PyTorch's order.

    Raises:
      UserError: a file is absent, damaged, or does not hold the network that the config describes.
    """
    geometry, params = read_geometry(directory), {}
    with _network_tensors(directory, geometry) as (path, tensors):
        for name, layer in _weighted(geometry):
            # What is not finite, such as a direction of length 0 made one, is refused below.
            with np.errstate(all="ignore"):
                folded = _folded(layer, lambda part, name=name: tensors[f"{name}.{part}"].read())
                folded = {each: array.astype(dtype) for each, array in folded.items()}
            if not all(np.isfinite(array).all() for array in folded.values()):
                raise UserError(
                    f"{path}: {name} holds values that are not finite; copy the file again."
                )
            for each, array in folded.items():
                *parents, leaf = [*_path(name), *each.split("/")]
                node = params
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[leaf] = array
    return geometry, params


def fingerprint(directory: pathlib.Path) -> str:
    """SHA-256, in hex, of the network: its geometry, and names, shapes and values of its tensors.

    The same for the same network in another file format, precision of storage or naming of weight
    norm; the quantiser and fields that don't bear on the network are not in it.

    Raises:
      UserError: as `read_params`.
    """
    geometry = read_geometry(directory)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(geometry), sort_keys=True).encode())
    with _network_tensors(directory, geometry) as (_, tensors):
        for name in sorted(tensors):
            digest.update(f"\n{name} {tensors[name].shape}\n".encode())
            digest.update(np.ascontiguousarray(tensors[name].read(), "<f8"))
    return digest.hexdigest()


def keep(directory: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a codec's files into the folder `target`, which appears when it is whole.

    Nothing is done where `target` is there already.
    """
    if target.exists():
        return
    weights = SAFETENSORS if (directory / SAFETENSORS).is_file() else TORCH
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
        folder = pathlib.Path(beside) / target.name
        folder.mkdir()
        for name in (CONFIG, weights, *(name for name in ABOUT if (directory / name).is_file())):
            shutil.copyfile(directory / name, folder / name)
        os.replace(folder, target)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What is known of a tensor before it is read; `read` gives it in float64."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def _weighted(geometry: Geometry) -> Iterator[tuple[str, Conv | Upsample | Lstm]]:
    """All layers with weights, under their names in the file."""
    for side in ("encoder", "decoder"):
        for index, layer in enumerate(getattr(geometry, side).layers):
            name = f"{side}.layers.{index}"
            if isinstance(layer, Residual):
                for inner, each in enumerate(layer.block):
                    if isinstance(each, Conv):
                        yield f"{name}.block.{inner}.conv", each
                if layer.shortcut:
                    yield f"{name}.shortcut.conv", layer.shortcut
            elif isinstance(layer, Conv | Upsample):
                yield f"{name}.conv", layer
            elif isinstance(layer, Lstm):
                yield f"{name}.lstm", layer


def _path(name: str) -> list[str]:
    """Where a layer's parameters stand in the tree."""
    return [part for part in name.split(".") if part not in ("layers", "conv", "lstm")]


def _shapes(layer: Conv | Upsample | Lstm) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a layer's tensors, as PyTorch lays them out."""
    if isinstance(layer, Lstm):
        width = layer.width
        return {
            f"{part}_l{index}": (4 * width, width) if part.startswith("weight") else (4 * width,)
            for index in range(layer.layers)
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
    if isinstance(layer, Upsample):
        weight = (layer.inputs, layer.outputs, 2 * layer.ratio)
    else:
        weight = (layer.outputs, layer.inputs, layer.kernel)
    return {"weight_g": (weight[0], 1, 1), "weight_v": weight, "bias": (layer.outputs,)}


def _folded(layer, read: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of a layer from its tensors."""
    if isinstance(layer, Lstm):
        found = {}
        for i in range(layer.layers):
            found[f"{i}/input"] = read(f"weight_ih_l{i}").T
            found[f"{i}/recurrent"] = read(f"weight_hh_l{i}").T
            found[f"{i}/bias"] = read(f"bias_ih_l{i}") + read(f"bias_hh_l{i}")
        return found
    direction = read("weight_v")
    norm = np.sqrt((direction**2).sum((1, 2), keepdims=True))
    weight = read("weight_g") * direction / norm
    axes = (2, 0, 1) if isinstance(layer, Upsample) else (2, 1, 0)
    return {"kernel": weight.transpose(axes), "bias": read("bias")}


@contextlib.contextmanager
def _network_tensors(
    directory: pathlib.Path, geometry: Geometry
) -> Iterator[tuple[pathlib.Path, dict[str, Tensor]]]:
    """The file and all tensors of encoder and decoder, which are those that the geometry asks for.

    Raises:
      UserError: a file is absent or damaged; a tensor is missing, unknown, of another shape or
        not of floats.
    """
    with _opened(pathlib.Path(directory)) as (path, found):
        tensors = {}
        for name, tensor in found.items():
            for new, old in RENAMED.items():
                name = name.replace(new, old)
            if name in tensors:
                raise UserError(f"{path} holds {name} twice, in both namings of weight norm.")
            if name.startswith(("encoder.", "decoder.")):
                tensors[name] = tensor
        expected = {
            f"{name}.{part}": shape
            for name, layer in _weighted(geometry)
            for part, shape in _shapes(layer).items()
        }
        for name, shape in expected.items():
            if name not in tensors:
                raise UserError(
                    f"{path} lacks the tensor {name}, which the config beside it asks for."
                )
            if tensors[name].shape != shape:
                raise UserError(
                    f"{path}: {name} has the shape {list(tensors[name].shape)}; the config beside "
                    f"it asks for {list(shape)}."
                )
            if tensors[name].dtype not in FLOATS:
                raise UserError(f"{path}: {name} is of {tensors[name].dtype}, not of floats.")
        unknown = sorted(tensors.keys() - expected.keys())
        if unknown:
            raise UserError(
                f"{path} holds the tensor {unknown[0]}, which is not in the network that the "
                "config beside it describes."
            )
        yield path, tensors


@contextlib.contextmanager
def _opened(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, dict[str, Tensor]]]:
    """The weights' file, safetensors if there are both, and name -> Tensor of all in it."""
    safetensors, torch = directory / SAFETENSORS, directory / TORCH
    if safetensors.is_file():
        with _opened_safetensors(safetensors) as tensors:
            yield safetensors, tensors
    elif torch.is_file():
        yield torch, _torch_tensors(torch)
    else:
        raise UserError(
            f"{directory} holds no weights: neither {SAFETENSORS} nor {TORCH} is there."
        )


@contextlib.contextmanager
def _opened_safetensors(path: pathlib.Path) -> Iterator[dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        # Looks at the header, and whether the file is as long as it says.
        file = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        reason = _first_line(error)
        raise UserError(f"{path} is damaged ({reason}): copy it again.") from error
    with file:
        tensors = {}
        for name in file.keys():
            header = file.get_slice(name)
            dtype = header.get_dtype()
            tensors[name] = Tensor(
                tuple(header.get_shape()),
                SAFETENSORS_FLOATS.get(dtype, dtype),
                lambda name=name: file.get_tensor(name).astype(np.float64),
            )
        yield tensors


def _torch_tensors(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} needs torch to be read; pip install -e '.[export]', or save the network as "
            f"{SAFETENSORS}."
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed")
        # Mapped, so that nothing is read before its shape is known.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # What a damaged or hostile file raises is beyond listing.
    except Exception as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors ({_first_line(error)}); save the "
            f"network as {SAFETENSORS}."
        ) from error

    def is_dense(tensor):
        cpu = isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu"
        return cpu and tensor.layout is torch.strided

    if not isinstance(found, dict) or not all(
        isinstance(name, str) and is_dense(tensor) for name, tensor in found.items()
    ):
        raise UserError(
            f"{path} holds something else than named tensors; save the network as {SAFETENSORS}."
        )
    return {
        name: Tensor(
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            lambda tensor=tensor: tensor.detach().to(torch.float64).numpy(),
        )
        for name, tensor in found.items()
    }


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
