"""Seconds of a step from what it computes and moves, without a clock."""

import dataclasses

import numpy as np

from uniwav_jax.compile.chips import Topology
from uniwav_jax.compile.collectives import Collective

# Share of the peak that large matrix products reach on every accelerator here.
MATRIX_EFFICIENCY = 0.65
# Largest error of the step time (benchmarks/calibration.py, docs/TOPOLOGIES.md): on published
# figures of dense Transformers on TPUs, either way; and of our own steps on one H100, which took up
# to so much longer than predicted, since what lies between the products is not counted.
BAND = 0.53
GPU_BAND = 3.4


def band(topology: Topology) -> float:
    """The largest known error of a prediction, as a share of it."""
    return GPU_BAND if topology.chip.platform == "gpu" else BAND


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of a step by what bounds it.

    Attributes:
      compute: products at `MATRIX_EFFICIENCY` of the peak.
      memory: bytes through the chip's memory.
      interconnect: bytes to other chips of the slice or machine.
      network: bytes over the data-centre network.
    """

    compute: float
    memory: float
    interconnect: float
    network: float

    @property
    def seconds(self) -> float:
        """Nothing that is sent overlaps with what is computed."""
        return max(self.compute, self.memory) + self.interconnect + self.network

    @property
    def overlapped(self) -> float:
        """All of it does."""
        return max(self.compute, self.memory, self.interconnect, self.network)

    @property
    def bound(self) -> str:
        """The largest of the four."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def predict(
    topology: Topology, executed_flops: float, memory_bytes: float, wire: float, network: float
) -> Prediction:
    """A step on a topology.

    Args:
      topology: whose chips share the work evenly.
      executed_flops: of all chips together.
      memory_bytes: read and written by one device.
      wire: seconds that it sends to others of its slice or machine.
      network: bytes that it sends to other slices or machines.
    """
    chip = topology.chip
    return Prediction(
        compute=executed_flops / topology.chips / (MATRIX_EFFICIENCY * chip.peak_flops),
        memory=memory_bytes / chip.memory_bandwidth * chip.devices,
        interconnect=wire,
        network=network / chip.network * chip.devices,
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the devices of a mesh stand, in the mesh's order.

    Attributes:
      coordinates: in the torus of their slice [devices, axes]; all 0 for GPUs.
      places: the slice of each TPU, the host of each GPU [devices].
    """

    coordinates: np.ndarray
    places: np.ndarray


def layout(topology: Topology, devices=None) -> Layout:
    """Of TPU devices in the mesh's order; of a topology of GPUs, host by host."""
    if topology.chip.platform == "gpu":
        places = np.repeat(np.arange(topology.hosts), topology.shape[1])
        return Layout(np.zeros((topology.chips, 1), int), places)
    axes, devices = topology.chip.axes, list(devices)
    coordinates = np.array([device.coords[:axes] for device in devices])
    places = np.array([getattr(device, "slice_index", None) or 0 for device in devices])
    return Layout(coordinates, places)


def wire_seconds(topology: Topology, found: list[Collective], lie: Layout) -> tuple[float, float]:
    """Seconds of sending within slices or hosts, and bytes sent between them, by one device.

    A collective uses the links of those directions of the torus in which its members differ, both
    ways if the torus closes there.
    """
    seconds, between = 0.0, 0.0
    for each in found:
        sent = each.count * each.sent_bytes
        members = each.groups[0]
        if len(set(lie.places[members])) > 1:
            between += sent
        else:
            seconds += sent / bandwidth(topology, lie.coordinates[members])
    return seconds, between


def bandwidth(topology: Topology, coordinates: np.ndarray) -> float:
    """Bytes a second that one device can send to the others of a group [members, axes]."""
    chip = topology.chip
    if chip.platform == "gpu":
        return chip.interconnect
    shape = (*topology.shape, 1, 1)[: chip.axes]
    links = 0
    for axis, side in enumerate(shape):
        reached = len(set(coordinates[:, axis]))
        if reached > 1:
            links += 2 if reached == side and _closes(topology, side) else 1
    # The two devices of one chip talk within it.
    links = links or 2 * chip.axes
    return chip.interconnect * links / (2 * chip.axes) / chip.devices


def _closes(topology: Topology, side: int) -> bool:
    """Whether the chips at both ends of a side are neighbours."""
    if topology.chip.axes == 2:
        return side == 16
    return topology.slice_chips >= 64 and side % 4 == 0
