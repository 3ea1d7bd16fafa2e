"""What is known of a step before it runs: does it fit, how fast, at what cost."""

import dataclasses
import json
import pathlib

import jax

from uniwav_jax import recipes
from uniwav_jax.compile import aot, flops, predict, traffic
from uniwav_jax.compile.chips import CHIPS, GIB, Topology
from uniwav_jax.compile.collectives import summary
from uniwav_jax.errors import UserError
from uniwav_jax.parallel.axes import AXES, check_batch, mesh_shape
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.training import optimizer
from uniwav_jax.training.program import state_maker
from uniwav_jax.training.state import parameter_count
from uniwav_jax.training.step import make_step

PRICES = pathlib.Path(__file__).parent / "prices.json"
# Seconds of audio that the loader gives a CPU-second at 15.36 s crops: docs/PERFORMANCE.md.
LOADER_SECONDS = 4_141


def read_prices(path: pathlib.Path = PRICES) -> dict:
    """Chip name -> price of a chip-hour or None, and `date`.

    Raises:
      UserError: the file is not there, or is no such table.
    """
    try:
        prices = json.loads(pathlib.Path(path).read_text())
        prices["date"]
        for chip in prices.keys() & CHIPS.keys():
            price = prices[chip]
            known = isinstance(price, (int, float)) and not isinstance(price, bool) and price >= 0
            if price is not None and not known:
                raise ValueError(f"{chip} costs {price!r}, which is no number of dollars")
        return prices
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--prices {path} is no table of prices ({error}); {PRICES} shows what one looks like."
        ) from error


def report(config, topology: Topology | None, compiled: aot.Compiled, prices: dict) -> dict:
    """Everything about one compiled step.

    Args:
      config: resolved.
      topology: None for devices of unknown speed, such as CPUs: then nothing is predicted.
      compiled: see `aot.compile_step`.
      prices: see `read_prices`.
    """
    prepared, memory = compiled.program, compiled.memory
    state, constants, batch = compiled.arguments
    platform = prepared.mesh.devices.flat[0].platform
    size = traffic.sizes(config, prepared.mesh.shape, state, platform)
    by_part = flops.model_flops(config)
    moved = traffic.memory_traffic(size)
    result = {
        "topology": topology.name if topology else "local",
        "slices": topology.slices if topology else 1,
        "devices": prepared.mesh.size,
        "mesh": dict(prepared.mesh.shape),
        "remat": config.parallel.remat,
        "batch_size": config.training.batch_size,
        "accumulation": config.training.accumulation,
        "crops_per_device": size.rows * size.accumulation,
        "parameters": parameter_count(state.params),
        **{f"{name}_bytes": value for name, value in memory.items()},
        "state_bytes": aot.shard_bytes(state),
        "input_bytes": aot.shard_bytes((constants, batch)),
        "collectives": summary(compiled.collectives),
        "designed_exchanges": _sent(traffic.exchanges(size)),
        "flops": sum(by_part.values()),
        "flops_by_part": by_part,
        "executed_flops": flops.executed_flops(prepared.step, *compiled.arguments),
        "memory_traffic": moved,
        "memory_traffic_bytes": sum(moved.values()),
        "compile_seconds": compiled.seconds,
        "analytic": False,
    }
    if topology is None:
        return result | {"fits": None, "hbm_bytes": None} | dict.fromkeys(_PREDICTED)
    lie = predict.layout(topology, prepared.mesh.devices.flat)
    wire, network = predict.wire_seconds(topology, compiled.collectives, lie)
    return result | _predicted(config, topology, result, wire, network, prices)


def estimate(config, topology: Topology, prices: dict, executed: int | None = None) -> dict:
    """The same without a compiler: what the program is designed to hold, move and send.

    For devices that no program can be compiled for here, and to rank what is worth compiling.

    Args:
      config: resolved.
      topology: any.
      prices: see `read_prices`.
      executed: `traced_flops` of the config, where it is known; the mesh does not change it.

    Raises:
      UserError: as `designed` does.
    """
    size = designed(config, topology)
    terms = traffic.exchanges(size)
    held = traffic.resident(size)
    by_part = flops.model_flops(config)
    moved = traffic.memory_traffic(size)
    known = {
        "topology": topology.name,
        "slices": topology.slices,
        "devices": topology.devices,
        "mesh": size.mesh,
        "remat": config.parallel.remat,
        "batch_size": config.training.batch_size,
        "accumulation": config.training.accumulation,
        "crops_per_device": size.rows * size.accumulation,
        "parameters": size.trained,
        "used_bytes": sum(held.values()),
        "resident": held,
        "argument_bytes": held["parameters and optimiser"] + held["teacher"],
        "temp_bytes": sum(held.values()) - held["parameters and optimiser"] - held["teacher"],
        "collectives": summary(terms.values()),
        "designed_exchanges": _sent(terms),
        "flops": sum(by_part.values()),
        "flops_by_part": by_part,
        "executed_flops": traced_flops(config) if executed is None else executed,
        "memory_traffic": moved,
        "memory_traffic_bytes": sum(moved.values()),
        "analytic": True,
    }
    tpu = topology.chip.platform == "tpu"
    mesh = make_mesh(config.parallel, aot.topology_devices(topology)) if tpu else None
    lie = predict.layout(topology, mesh.devices.flat if tpu else None)
    wire, network = predict.wire_seconds(topology, terms.values(), lie)
    return known | _predicted(config, topology, known, wire, network, prices)


def designed(config, topology: Topology) -> traffic.Sizes:
    """What a step is made of on a topology.

    Raises:
      UserError: a mesh that does not fit the devices, or a batch that does not fit the mesh.
    """
    shape = dict(zip(AXES, mesh_shape(config.parallel, topology.devices), strict=True))
    check_batch(config.training.batch_size, config.training.accumulation, shape)
    state = jax.eval_shape(state_maker(config))
    return traffic.sizes(config, shape, state, topology.chip.platform)


def traced_flops(config) -> int:
    """Executed FLOPs of the step on no mesh in particular."""
    arguments = aot.abstract_arguments(config, jax.eval_shape(state_maker(config)), None)
    recipe = recipes.build(config)
    rate = optimizer.schedule(config.optimizer, config.training.steps)
    step = make_step(recipe, optimizer.build(config.optimizer), rate)
    return flops.executed_flops(step, *arguments)


def _sent(terms: dict) -> dict[str, float]:
    """Bytes that a device must send a step, by what they are."""
    return {name: each.count * each.sent_bytes for name, each in terms.items()}


_PREDICTED = (
    "predicted_step_seconds",
    "predicted_step_seconds_overlapped",
    "predicted_mfu",
    "chip_hours",
    "cost",
)


def _predicted(config, topology, known: dict, wire: float, network: float, prices: dict) -> dict:
    """Fit, speed and cost on a topology, from what is `known` of the step."""
    hbm = topology.chip.usable_bytes / topology.chip.devices
    step = predict.predict(
        topology, known["executed_flops"], known["memory_traffic_bytes"], wire, network
    )
    peak = topology.chips * topology.chip.peak_flops
    hours = config.training.steps * step.seconds / 3600
    price = prices.get(topology.chip.name)
    crop_seconds = config.data.crop_frames * config.features.hop / config.features.sample_rate
    audio = config.training.batch_size * crop_seconds / step.seconds
    return {
        "hbm_bytes": hbm,
        "fits": known["used_bytes"] <= hbm,
        "hbm_share": known["used_bytes"] / hbm,
        "predicted_step_seconds": step.seconds,
        "predicted_step_seconds_overlapped": step.overlapped,
        "predicted_band": predict.band(topology),
        "predicted_sign": "+" if topology.chip.platform == "gpu" else "±",
        "predicted_by_bound": dataclasses.asdict(step),
        "bound": step.bound,
        "predicted_mfu": known["flops"] / step.seconds / peak,
        "predicted_mfu_overlapped": known["flops"] / step.overlapped / peak,
        "audio_seconds_per_second": audio,
        "host_audio_seconds_per_second": audio / topology.hosts,
        "host_loader_cpus": audio / topology.hosts / LOADER_SECONDS,
        "steps": config.training.steps,
        "hours": hours,
        "chip_hours": hours * topology.chips,
        "cost": None if price is None else hours * topology.chips * price,
        "price_per_chip_hour": price,
        "prices_of": prices["date"],
    }


def text(found: dict) -> str:
    """A report for reading."""
    lines = [
        f"{found['parameters']:,} parameters; mesh "
        + " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
        + f"; {found['crops_per_device']} crops a device; remat {found['remat']}",
        "",
        "memory of one device" + (", estimated" if found["analytic"] else ""),
    ]
    for name in ("argument", "output", "alias", "temp", "code", "used"):
        if f"{name}_bytes" in found:
            lines.append(f"  {name:10} {found[f'{name}_bytes'] / GIB:9.3f} GiB")
    if found["hbm_bytes"]:
        lines.append(
            f"  of {found['hbm_bytes'] / GIB:.2f} GiB: {found['hbm_share']:.1%}, "
            + ("fits" if found["fits"] else "DOES NOT FIT")
        )
    lines += ["", "exchanges a step              count   result MB     sent MB"]
    for kind, row in sorted(found["collectives"].items()):
        lines.append(
            f"  {kind:24} {row['count']:8,} {row['bytes'] / 1e6:11,.1f} "
            f"{row['sent_bytes'] / 1e6:11,.1f}"
        )
    if found["designed_exchanges"]:
        lines += ["", "what one device must send, MB a step"]
    for name, sent in found["designed_exchanges"].items():
        lines.append(f"  {name:48} {sent / 1e6:9,.1f}")
    lines += ["", f"model FLOPs a step   {found['flops']:.4g}"]
    lines += [f"  {name:18} {value:.4g}" for name, value in found["flops_by_part"].items()]
    lines += [
        f"executed FLOPs       {found['executed_flops']:.4g}",
        "",
        "through the memory of one device, GB a step",
    ]
    for name, value in found["memory_traffic"].items():
        if value:
            lines.append(f"  {name:48} {value / 1e9:9.3f}")
    lines.append("")
    if found["predicted_step_seconds"] is None:
        lines.append("these devices stand in no table, so nothing is predicted")
        return "\n".join(lines)
    bounds = ", ".join(f"{n} {s:.4f}" for n, s in found["predicted_by_bound"].items())
    price = found["price_per_chip_hour"]
    lines += [
        f"predicted step       {found['predicted_step_seconds']:.4f} s "
        f"{found['predicted_sign']} {found['predicted_band']:.0%} without any overlap ({bounds}); "
        f"{found['predicted_step_seconds_overlapped']:.4f} s if all overlaps",
        f"bound by             {found['bound']}",
        f"model FLOPs used     {found['predicted_mfu']:.1%} of the peak; "
        f"{found['predicted_mfu_overlapped']:.1%} if all overlaps",
        f"audio                {found['audio_seconds_per_second']:,.0f} s a second, "
        f"{found['host_audio_seconds_per_second']:,.0f} of each host: "
        f"{found['host_loader_cpus']:.1f} of its cores load it",
        f"{found['steps']:,} steps        {found['hours']:,.1f} hours, "
        f"{found['chip_hours']:,.0f} chip-hours"
        + ("" if price is None else f", ${found['cost']:,.0f} at ${price} (prices of "
           f"{found['prices_of']})"),
    ]
    return "\n".join(lines)
