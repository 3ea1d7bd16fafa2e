"""What accelerators are, in one table, and the topologies that are made of them.

TPU figures: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} as of 2026-11; usable memory is
what libtpu 0.0.42 names when a program does not fit. The links of v4 and tpu7x and all GPU figures
(dense bfloat16; 0.9 of the memory taken to be usable) have not been checked against a source.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from uniwav_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      name: as topologies are named by.
      platform: "tpu" or "gpu".
      peak_flops: bfloat16, dense, a second.
      usable_bytes: of its memory, that a program may use.
      memory_bandwidth: bytes a second.
      interconnect: bytes a second that it sends to the other chips of a slice (TPU) or machine
        (GPU) over all links, one way.
      network: bytes a second that it sends over the data-centre network, its host's share.
      host_chips: chips of a host of a slice of several hosts.
      axes: of the torus; 1 for GPUs, where every chip reaches every other one.
      devices: JAX devices a chip.
    """

    name: str
    platform: str
    peak_flops: float
    usable_bytes: float
    memory_bandwidth: float
    interconnect: float
    network: float
    host_chips: int
    axes: int
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 30.75 * GIB, 1_200e9, 300e9, 6.25e9, 4, 3),
        Chip("v5e", "tpu", 197e12, 15.75 * GIB, 819e9, 200e9, 3.125e9, 4, 2),
        Chip("v5p", "tpu", 459e12, 95.74 * GIB, 2_765e9, 600e9, 6.25e9, 4, 3),
        Chip("v6e", "tpu", 918e12, 31.25 * GIB, 1_638e9, 400e9, 12.5e9, 4, 2),
        Chip("tpu7x", "tpu", 2_307e12, 189.5 * GIB, 7_380e9, 600e9, 12.5e9, 4, 3, devices=2),
        Chip("rtx4090", "gpu", 165e12, 0.9 * 24e9, 1_008e9, 32e9, 3e9, 8, 1),
        Chip("a100", "gpu", 312e12, 0.9 * 80e9, 2_039e9, 300e9, 25e9, 8, 1),
        Chip("h100", "gpu", 989e12, 0.9 * 80e9, 3_350e9, 450e9, 50e9, 8, 1),
        Chip("h200", "gpu", 989e12, 0.9 * 141e9, 4_800e9, 450e9, 50e9, 8, 1),
    )
}
# What JAX calls their devices (`device_kind`), and what they are. Kinds of other memory or power
# (A100 of 40 GB, H100 on PCIe) are left out.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}
# Slices of two dimensions that Google rents out; those of three want every side to be 2, 4 or a
# multiple of 4 (or 1 for the last, on a single host).
FLAT_SLICES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Up to 2x4 they are one host, though the hosts of larger ones have 4 chips: v5litepod-8 and v6e-8
# are one VM, and one node of GKE (ct5lp-hightpu-8t, ct6e-standard-8t; also sold as two of 4).
FLAT_HOST_CHIPS = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` times a slice of chips of one kind; for GPUs hosts x GPUs of each.

    Attributes:
      chip: of all of them.
      shape: of one slice; for GPUs (hosts, GPUs a host).
      slices: joined by the data-centre network.
      here: its devices are those of this machine and its fellows.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1
    here: bool = False

    @property
    def name(self) -> str:
        """As `parse` takes it, without the slices."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def slice_chips(self) -> int:
        """Chips of a slice."""
        return math.prod(self.shape)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slice_chips * self.slices

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def slice_hosts(self) -> int:
        """Hosts of a slice."""
        if self.chip.platform == "gpu":
            return self.shape[0]
        if self.chip.axes == 2 and self.slice_chips <= FLAT_HOST_CHIPS:
            return 1
        return max(1, self.slice_chips // self.chip.host_chips)

    @property
    def hosts(self) -> int:
        """Hosts of all slices."""
        return self.slice_hosts * self.slices


def parse(text: str, slices: int = 1) -> Topology:
    """ "v5e:16x16", "v5p:4x4x4" or "h100:4x8" (hosts x GPUs) -> a topology.

    Raises:
      UserError: an unknown chip, or a shape that is not made.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"topology '{text}' is unknown; write CHIP:SHAPE with a chip of {', '.join(CHIPS)}, "
            "such as v5e:16x16, v5p:4x4x4 or h100:4x8 (hosts x GPUs)."
        )
    chip, shape = CHIPS[match[1]], tuple(int(side) for side in match[2].split("x"))
    if slices < 1:
        raise UserError(f"--slices {slices}: there must be at least one.")
    if chip.platform == "gpu" and (len(shape) != 2 or min(shape) < 1):
        raise UserError(f"topology '{text}': GPUs are written HOSTSxGPUS, such as {chip.name}:1x8.")
    if chip.platform == "gpu" and shape[1] > chip.host_chips:
        raise UserError(f"topology '{text}': a host has at most {chip.host_chips} {chip.name}.")
    if chip.platform == "gpu" and slices > 1:
        raise UserError(f"--slices {slices}: only TPUs come in slices; name more hosts.")
    if chip.axes == 2 and shape not in FLAT_SLICES:
        made = ", ".join("x".join(map(str, sides)) for sides in FLAT_SLICES)
        raise UserError(f"topology '{text}': {chip.name} slices are {made}.")
    if chip.axes == 3 and not _is_cuboid(shape):
        raise UserError(
            f"topology '{text}': {chip.name} slices are 2x2x1, 2x2x2, 2x2x4, 2x4x4 or have three "
            "sides that are multiples of 4, the smallest first."
        )
    return Topology(chip, shape, slices)


def local(devices: Sequence) -> Topology | None:
    """What devices of JAX are together; None if they stand in no table, or are part of a slice."""
    first = devices[0]
    if first.device_kind not in KINDS:
        return None
    chip = CHIPS[KINDS[first.device_kind]]
    if chip.platform == "gpu":
        hosts = len({device.process_index for device in devices})
        shape, slices = (hosts, len(devices) // hosts), 1
    else:
        shape = tuple(1 + max(sides) for sides in zip(*(d.coords for d in devices), strict=True))
        shape = shape[: chip.axes]
        slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    found = Topology(chip, shape, slices, here=True)
    return found if found.devices == len(devices) else None


def _is_cuboid(shape: tuple[int, ...]) -> bool:
    small = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
    large = len(shape) == 3 and all(side and side % 4 == 0 for side in shape)
    return shape in small or large and list(shape) == sorted(shape)
