"""The very step that `train` runs, compiled for devices that are not there."""

import dataclasses
import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loader import row_fields
from uniwav_jax import features
from uniwav_jax.compile.chips import GIB, Topology
from uniwav_jax.compile.collectives import Collective, collectives
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.training import program

# What libtpu must be told of chips whose default is another one.
CHIP_CONFIG = {"v4": "megacore"}
# Feature statistics and the codes of the corpora, of which a program for one is compiled.
CORPORA = 1


class DoesNotFit(UserError):
    """The program needs more memory than a device has; `needed_bytes` where the compiler said."""

    status = 1

    def __init__(self, sentence: str, needed_bytes: float | None):
        super().__init__(sentence)
        self.needed_bytes = needed_bytes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step compiled for a mesh.

    Attributes:
      program: what was compiled.
      arguments: abstract state, constants and batch.
      memory: bytes on one device by use: argument, output, alias, temp, code; `used` is argument +
        output - alias + temp + code.
      collectives: what it sends.
      seconds: that compiling took.
    """

    program: program.Program
    arguments: tuple
    memory: dict[str, int]
    collectives: list[Collective]
    seconds: float


def prepare() -> None:
    """Sets JAX up in a process that compiles for TPUs that are not there."""
    # Where libtpu is installed JAX would look for a TPU of this machine first.
    jax.config.update("jax_platforms", "cpu")
    # Programs for devices that are not there can't be read back.
    jax.config.update("jax_enable_compilation_cache", False)


def topology_devices(topology: Topology) -> list:
    """Devices of a topology: of this machine if it is that, else of a TPU that need not be there.

    Raises:
      UserError: libtpu is not installed, or does not know the topology.
    """
    if topology.here:
        return jax.devices()
    from jax.experimental import topologies

    # libtpu asks for the machine that it is on, which is no TPU, and tells of that; and it lets one
    # process alone have the TPU, of which nobody here has any. Host and type are what a TPU host
    # would answer; the topology is the one named below, whatever they are.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.name in CHIP_CONFIG:
        options["chip_config_name"] = CHIP_CONFIG[topology.chip.name]
    if topology.slice_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except Exception as error:  # libtpu's faults have no type of their own
        if "libtpu" in str(error).lower() or "could not" in str(error).lower():
            raise UserError(
                "compiling for a TPU needs libtpu; install it with pip install -e '.[tpu]'."
            ) from error
        raise UserError(f"libtpu does not know {topology.name}: {error}") from error
    return found.devices


def abstract_arguments(config, state, mesh) -> tuple:
    """Shapes and dtypes of state, constants and batch of the step, lying on a mesh unless None."""
    accumulation = config.training.accumulation
    rows = config.training.batch_size // accumulation
    lie = meshes.batch_sharding(mesh) if mesh is not None else None
    whole = meshes.replicated(mesh) if mesh is not None else None
    feature = features.build(config)
    fields = row_fields(config.data.crop_frames * feature.hop, feature.stored)
    batch = {
        name: jax.ShapeDtypeStruct((accumulation, rows, *shape), dtype, sharding=lie)
        for name, (shape, dtype) in fields.items()
    }
    wide = jnp.promote_types(config.training.parameter_dtype, jnp.float32)
    channel = jax.ShapeDtypeStruct((feature.channels,), wide, sharding=whole)
    # Of a codec, whose latents are stored, the compiler drops what the step does not use.
    frozen = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), features.frozen(config)
    )
    constants = {
        "statistics": {"mean": channel, "deviation": channel},
        "corpora": jax.ShapeDtypeStruct((CORPORA,), np.uint32, sharding=whole),
        **frozen,
    }
    return state, constants, batch


def compile_step(config, devices) -> Compiled:
    """Compiles the step of a config for a list of devices, whether they are there or not.

    Raises:
      UserError: a config that no mesh of these devices can have.
      DoesNotFit: the program does not fit into the devices' memory.
    """
    began = time.monotonic()
    prepared = program.build(config, devices)
    arguments = abstract_arguments(config, prepared.abstract, prepared.mesh)
    try:
        compiled = prepared.step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _does_not_fit(str(error)) from error
    found = collectives(compiled.as_text(), prepared.mesh.size)
    seconds = time.monotonic() - began
    return Compiled(prepared, arguments, _memory(compiled), found, seconds)


def shard_bytes(tree) -> int:
    """Bytes of one device's shards of arrays or shapes with shardings."""
    return sum(
        leaf.dtype.itemsize * int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(tree)
    )


def _memory(compiled) -> dict[str, int]:
    analysis = compiled.memory_analysis()
    memory = {
        "argument": analysis.argument_size_in_bytes,
        "output": analysis.output_size_in_bytes,
        "alias": analysis.alias_size_in_bytes,
        "temp": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    return memory | {"used": sum(memory.values()) - 2 * memory["alias"]}


def _does_not_fit(text: str) -> DoesNotFit:
    """From what the compiler says: "Used 20.1G of 15.75G hbm", or that some part exceeds it."""
    used = re.search(r"Used ([\d.]+)([MGT]) of ([\d.]+[MGT])", text)
    part = re.search(r"\(([\d.]+)([MGT])\) exceeds available HBM \(([\d.]+[MGT])\)", text)
    match = used or part
    if match is None:
        return DoesNotFit(f"the program does not fit: {text.splitlines()[0]}", None)
    needed = float(match[1]) * GIB * {"M": 2**-10, "G": 1, "T": 2**10}[match[2]]
    return DoesNotFit(
        f"the program needs {match[1]}{match[2]} of the {match[3]} of HBM that a chip has.", needed
    )
