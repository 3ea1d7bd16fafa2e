"""Before a run computes anything: are devices, their links, shards and disk fit for it?

What is wrong on one process is one sentence on all of them, which names the process.
"""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.mixture import Mixture
from data_pipelines.reader import RecordReader
from uniwav_jax.errors import ProcessLost, UserError
from uniwav_jax.parallel import processes

GIB = 2**30
# What each device sums up with the others: enough for its links to be busy, little for a CPU.
REDUCED_BYTES = 64 * 2**20
REDUCED_BYTES_CPU = 2**20
ROUNDS = 4
# JAX takes the memory of a GPU at once unless told otherwise. With less than this share of what it
# asked for, another program has some of it.
PREALLOCATE = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower()
HELD = 0.9


def check_devices(expected: int | None, seconds: float) -> None:
    """The processes see as many devices as each other, of one platform, and as many as expected.

    Args:
      expected: devices of all processes; None for any number.
      seconds: to wait for the other processes.

    Raises:
      UserError: not so, or the devices can't be used at all.
      ProcessLost: a process did not come.
    """
    try:
        with processes.watching("the devices of the others"):
            local = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter for a platform not installed
        reason = str(error).partition("\n")[0] or "no platform"
        raise UserError(
            f"JAX finds no device to use ({reason}; JAX_PLATFORMS = "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}); end what else uses them, or install "
            "JAX for them: 'uniwav-jax[tpu]' or 'uniwav-jax[cuda]'."
        ) from error
    facts = {
        "--expect-devices": expected,
        "number of devices": len(local),
        "platform": local[0].platform,
    }
    processes.check_same("devices", facts, seconds)
    seen = jax.device_count()
    if expected is not None and seen != expected:
        raise UserError(
            f"--expect-devices {expected}: {seen} {facts['platform']} device(s) are seen, "
            f"{facts['number of devices']} on each of {processes.count()} process(es); look "
            "whether all hosts were started, and whether JAX is installed for their accelerators."
        )


def preflight(mesh: Mesh, mixtures: Sequence[Mixture], seconds: float) -> dict:
    """Looks at everything else; the same on all processes.

    Args:
      mesh: of all devices.
      mixtures: what the run will read.
      seconds: to wait for the other processes.

    Returns:
      {"processes", "devices", "platform", "device_kind", "shards_read", "shard_seconds",
      "all_reduce": {"bytes" of each device, "seconds", "bytes_a_second" that each device sends} or
      None for one device, "memory": {"limit_bytes", "free_bytes"} of the device that has least, or
      None where devices do not say}; of several processes the slowest and the least.

    Raises:
      UserError: what was found, on all processes.
      ProcessLost: a process did not come.
    """
    read = processes.together("shards", lambda: read_shards(mixtures), seconds)
    lost = (
        f"process {processes.index()}: an all-reduce over {mesh.size} devices did not end in "
        f"{seconds} s; look whether all processes still run, and whether the hosts reach each "
        "other on all ports and interfaces."
    )

    def compute() -> dict:
        with (
            processes.said_after(seconds, lost, ProcessLost.status),
            processes.watching("an all-reduce"),
        ):
            reduced = all_reduce(mesh)
        return {"all_reduce": reduced, "memory": memory()}

    computed = processes.together("all-reduce", compute, seconds)
    found = processes.gather("preflight", json.dumps(read | computed), seconds)
    everyone = [json.loads(text) for text in found]
    first = mesh.devices.flat[0]
    return {
        "processes": processes.count(),
        "devices": mesh.size,
        "platform": first.platform,
        "device_kind": first.device_kind,
        "shards_read": read["shards_read"],
        "shard_seconds": max(each["shard_seconds"] for each in everyone),
        "all_reduce": _least(everyone, "all_reduce", "bytes_a_second"),
        "memory": _least(everyone, "memory", "free_bytes"),
    }


def read_shards(mixtures: Sequence[Mixture]) -> dict:
    """Reads a record of the first and of the last shard of each corpus, with its checksum.

    Returns:
      {"shards_read", "shard_seconds"}.

    Raises:
      UserError: no record of a shard can be read, of three that are tried; single damaged ones
        are replaced by others while a run trains.
    """
    began = time.monotonic()
    shards = {}
    for part in (part for mixture in mixtures for part in mixture.parts):
        files = list(part.reader.shards.items())
        shards |= {path: (part.reader, records) for path, records in (files[0], files[-1])}
    for reader, records in shards.values():
        read_any(reader, dict.fromkeys([records[0], records[len(records) // 2], records[-1]]))
    return {"shards_read": len(shards), "shard_seconds": time.monotonic() - began}


def read_any(reader: RecordReader, numbers: Iterable[int]) -> None:
    """Reads the first sound one of some records; raises UserError, for the first, if none is."""
    faults = []
    for number in numbers:
        try:
            reader.labels(number)
            return
        except UserError as error:
            faults.append(error)
    raise faults[0]


def check_room(folder: str | os.PathLike, needed: int) -> None:
    """Raises UserError if a disk has less than `needed` bytes left.

    Args:
      folder: on that disk; may not be there yet.
      needed: bytes, of one checkpoint.
    """
    place = pathlib.Path(folder).absolute()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < needed:  # a mount of a store may say 0 of everything
        raise UserError(
            f"{folder} is on a disk with {usage.free / GIB:.1f} GiB left and a checkpoint takes "
            f"{needed / GIB:.1f} GiB; free some, or choose another --workdir."
        )


def all_reduce(mesh: Mesh) -> dict | None:
    """Sums up an array of every device on every device, looks at the sums, and takes the time.

    Returns:
      {"bytes", "seconds", "bytes_a_second"}: of each device's array, of the fastest of some rounds,
      and what each device sends then, if it does as in a ring; None for a single device.

    Raises:
      UserError: a sum is wrong.
    """
    devices, axes = mesh.size, mesh.axis_names
    if devices == 1:
        return None
    cpu = mesh.devices.flat[0].platform == "cpu"
    # Integers: their sums are exact in whichever order the devices are summed up.
    ramp = np.arange((REDUCED_BYTES_CPU if cpu else REDUCED_BYTES) // 4, dtype=np.int32) % 1000
    numbers = jax.make_array_from_callback(
        (devices, ramp.size),
        NamedSharding(mesh, PartitionSpec(axes)),
        lambda place: ramp[None] + np.int32(place[0].start),
    )
    everywhere = jax.shard_map(
        lambda x: jax.lax.psum(x, axes),
        mesh=mesh,
        in_specs=PartitionSpec(axes),
        out_specs=PartitionSpec(),
    )
    reduce, times = jax.jit(everywhere), []
    for _ in range(ROUNDS):  # the first one compiles and connects
        began = time.perf_counter()
        sums = jax.block_until_ready(reduce(numbers))
        times.append(time.perf_counter() - began)
    check_sums(sums, ramp * devices + devices * (devices - 1) // 2)
    seconds, sent = min(times), 2 * (devices - 1) / devices * ramp.nbytes
    return {"bytes": ramp.nbytes, "seconds": seconds, "bytes_a_second": sent / seconds}


def check_sums(sums: jax.Array, expected: np.ndarray) -> None:
    """Raises UserError unless every device here holds the expected sums.

    Args:
      sums: int32 [1, N], the same on all devices.
      expected: int32 [N].
    """
    for shard in sums.addressable_shards:
        if not np.array_equal(np.asarray(shard.data)[0], expected):
            raise UserError(
                f"{shard.device} got wrong sums in an all-reduce: it or its links are faulty; "
                "leave that machine out."
            )


def memory() -> dict | None:
    """{"limit_bytes", "free_bytes"} of that device of this process which has least free.

    None where devices do not say.

    Raises:
      UserError: another program has a large part of a GPU.
    """
    found = []
    for device in jax.local_devices():
        # A pool of memory is taken with the first array.
        jax.block_until_ready(jax.device_put(np.zeros(1, np.float32), device))
        stats = device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            return None
        if device.platform == "gpu" and PREALLOCATE not in ("false", "0"):
            check_pool(str(device), stats)
        limit = stats["bytes_limit"]
        found.append({"limit_bytes": limit, "free_bytes": limit - stats["bytes_in_use"]})
    return min(found, key=lambda each: each["free_bytes"])


def check_pool(device: str, stats: dict[str, int]) -> None:
    """Raises UserError if a GPU did not give most of the memory that was asked for at once.

    Args:
      device: its name.
      stats: `jax.Device.memory_stats()` once there has been an array.
    """
    pool, limit = stats.get("pool_bytes"), stats["bytes_limit"]
    if pool is not None and pool < HELD * limit:
        raise UserError(
            f"{device} gave {pool / GIB:.1f} GiB of the {limit / GIB:.1f} GiB that this program "
            "takes: another program holds the rest; end it (nvidia-smi shows it) or name other "
            "GPUs in CUDA_VISIBLE_DEVICES."
        )


def line(found: dict) -> str:
    """What `preflight` found, on one line."""
    return "preflight: " + "; ".join(_texts(found).values())


def table(found: dict) -> str:
    """What `preflight` found, and on what, a line each."""
    devices = f"{found['devices']} x {found['device_kind']} ({found['platform']})"
    rows = {"processes": found["processes"], "devices": devices, **_texts(found)}
    return "\n".join(f"{name:11}{text}" for name, text in rows.items())


def _texts(found: dict) -> dict[str, str]:
    shards, seconds = found["shards_read"], found["shard_seconds"]
    texts = {"shards": f"a record of {shards} shard(s) read in {seconds:.2f} s"}
    if (reduced := found["all_reduce"]) is not None:
        size, took = reduced["bytes"] / 2**20, 1e3 * reduced["seconds"]
        rate = reduced["bytes_a_second"] / 1e9
        texts["links"] = (
            f"all-reduce of {size:.0f} MiB in {took:.1f} ms, each device sends {rate:.2f} GB/s"
        )
    if (least := found["memory"]) is not None:
        free, limit = least["free_bytes"] / GIB, least["limit_bytes"] / GIB
        texts["memory"] = f"{free:.1f} of {limit:.1f} GiB free on the device that has least"
    return texts


def _least(everyone: list[dict], name: str, field: str) -> dict | None:
    known = [each[name] for each in everyone if each[name] is not None]
    return min(known, key=lambda each: each[field], default=None)
