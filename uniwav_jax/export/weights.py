"""Parameters of a run under the names and orientations of PyTorch's modules, and back, to the bit.

A kernel [in, out] or [taps, in, out] is a weight with its axes in reverse; a stack of layers is so
many modules; a norm's scale is its weight. Heads and codebooks keep their shapes.
"""

import re

import jax
import numpy as np

from uniwav_jax.errors import UserError
from uniwav_jax.parallel.sharding import path_name

STACK = re.compile(r"((?:.*/)?(?:layers|first_half|second_half|teacher))/(.*)")
RENAMED = (
    (r"positions/convolutions/", "convolutions/"),
    (r"condition/layer_weights$", "layer_weights"),
    (r"^heads/", "heads_"),
    (r"^codebooks/(sums|counts)$", r"codebook_\1"),
    (r"/(kernel|scale)$", "/weight"),
)


def to_torch(tree) -> dict[str, np.ndarray]:
    """Name -> array of every leaf of a tree of parameters; views, where the leaves are NumPy's."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, array = path_name(path), np.asarray(leaf)
        stack = STACK.fullmatch(name)
        layers = enumerate(array) if stack else ()
        found |= {_name(f"{stack[1]}/{i}/{stack[2]}"): _turned(name, x) for i, x in layers}
        if not stack:
            found[_name(name)] = _turned(name, array)
    return found


def from_torch(tensors: dict[str, np.ndarray], abstract):
    """A tree like `abstract` (shapes) from what `to_torch` made of one.

    Raises:
      UserError: a tensor is missing or has another shape.
    """

    def leaf(path, shape):
        name = path_name(path)
        stack = STACK.fullmatch(name)
        if stack:
            names = [_name(f"{stack[1]}/{i}/{stack[2]}") for i in range(shape.shape[0])]
        else:
            names = [_name(name)]
        missing = [each for each in names if each not in tensors]
        if missing:
            raise UserError(f"the export lacks the tensor {missing[0]}.")
        parts = [_turned(name, tensors[each]) for each in names]
        array = np.stack(parts) if stack else np.ascontiguousarray(parts[0])
        if array.shape != shape.shape:
            raise UserError(
                f"the tensor {names[0]} does not have the shape that the config asks for."
            )
        return array

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _name(path: str) -> str:
    for pattern, new in RENAMED:
        path = re.sub(pattern, new, path)
    return path.replace("/", ".")


def _turned(path: str, array: np.ndarray) -> np.ndarray:
    turned = path.endswith("/kernel") and not path.startswith("heads/")
    return array.T if turned else array
