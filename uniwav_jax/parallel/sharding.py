"""Sharding rules: a short table from parameter paths to mesh axes.

The rules look at the end of a path, so that teacher and optimiser moments are sharded like the
parameters they belong to. Names are given for the last axes; stacked layers have one more in front.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES = (
    # [width in, width out]: columns over tensor
    (r"(query|key|value|expand|modulation)/kernel$", ("fsdp", "tensor")),
    (r"(query|key|value|expand|modulation)/bias$", ("tensor",)),
    # [width in, width out]: rows over tensor
    (r"attention/out/kernel$|contract/kernel$", ("tensor", "fsdp")),
    (r"(projection|input|skip|time_in|time_out|output)/kernel$", ("fsdp", None)),
    (r"heads/kernel$", ("fsdp", None)),  # [targets, width, codewords]
    (r"codebooks/sums$", (None, "fsdp")),  # [targets, codewords, width]
    (r"convolutions/\d+/kernel$", (None, "fsdp")),  # [taps, width / groups, width]
)


def path_name(path) -> str:
    """A tree path as 'encoder/layers/attention/query/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The first rule that matches `path`; an axis that does not divide a dimension is dropped."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            padded = (None,) * (len(shape) - len(axes)) + axes
            fitting = (
                axis if axis and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(padded, shape, strict=True)
            )
            return PartitionSpec(*fitting)
    return PartitionSpec()


def shardings(abstract, mesh: Mesh):
    """NamedShardings of a tree of arrays or shapes (`jax.eval_shape`), by the rules."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition(path_name(path), leaf.shape, mesh)),
        abstract,
    )
