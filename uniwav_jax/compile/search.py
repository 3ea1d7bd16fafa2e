"""What fits best: mesh, remat policy and batch, ranked by estimate and settled by compiling."""

import jax

from uniwav_jax.compile import aot, report, traffic
from uniwav_jax.compile.chips import GIB, Topology
from uniwav_jax.errors import UserError
from uniwav_jax.models.transformer import REMAT

# So many candidates are compiled at most.
ATTEMPTS = 8
# By how much an estimate may be above the fastest one for its mesh to be compiled as well:
# estimates are up to 20 % above what is compiled (docs/PERFORMANCE.md).
SLACK = 1.3
# Wider than this, tensor parallelism would leave the chips of one host.
WIDEST_TENSOR = 8


def report_of(config, topology: Topology | None, prices: dict) -> dict:
    """The report of one config: compiled for TPUs and for this machine (None), else estimated.

    Of a program that the compiler refuses for its size it is the estimate with what it needs.
    """
    if topology is not None and topology.chip.platform == "gpu":
        return report.estimate(config, topology, prices)
    devices = jax.devices() if topology is None else aot.topology_devices(topology)
    try:
        return report.report(config, topology, aot.compile_step(config, devices), prices)
    except aot.DoesNotFit as error:
        if topology is None:
            raise
        found = report.estimate(config, topology, prices)
        needed = error.needed_bytes or found["used_bytes"]
        return found | {
            "used_bytes": needed,
            "hbm_share": needed / found["hbm_bytes"],
            "fits": False,
        }


def meshes(config, topology: Topology) -> list[dict[str, int]]:
    """Every way to split the devices of a slice that batch, heads and weights allow.

    Those that would leave parts of tiles (`traffic.TILE_ROWS`) are left out.
    """
    devices = topology.devices // topology.slices
    halves = [config.encoder] + [config.decoder] * bool(config.objective.decoder_weight)
    found = []
    for tensor in _divisors(devices):
        if tensor > WIDEST_TENSOR or any(half.heads % tensor for half in halves):
            continue
        for fsdp in _divisors(devices // tensor):
            rows = topology.devices // tensor * config.training.accumulation
            if config.training.batch_size % rows == 0 and traffic.whole_tiles(config, fsdp):
                data = devices // tensor // fsdp
                found.append(
                    {"slices": topology.slices, "data": data, "fsdp": fsdp, "tensor": tensor}
                )
    return found


def candidates(config, topology: Topology, prices: dict) -> list[tuple[float, dict, str]]:
    """(predicted seconds, mesh fields, remat policy) of all that may fit, the fastest first."""
    found = []
    for remat in REMAT:
        executed = report.traced_flops(changed(config, remat=remat))
        for fields in meshes(config, topology):
            chosen = changed(config, remat=remat, **fields)
            known = report.estimate(chosen, topology, prices, executed)
            held = known["resident"]
            state = held["parameters and optimiser"] + held["teacher"] + held["saved activations"]
            if state < known["hbm_bytes"]:
                found.append((known["predicted_step_seconds"], fields, remat))
    return sorted(found, key=lambda one: (one[0], one[1]["tensor"], one[1]["fsdp"]))


def search(config, topology: Topology | None, prices: dict, say) -> dict:
    """The fastest mesh that fits at the config's batch, and then the largest batch.

    Of each mesh that is estimated to be about as fast as the fastest, the fastest policy that fits
    is compiled; the compiled programs decide.

    Returns:
      The report of the fastest, with `search`: the fields to set, the estimates of all candidates
      and `largest_batch_size`.

    Raises:
      UserError: nothing fits, or the topology is none that can be compiled for.
    """
    if topology is None or topology.chip.platform != "tpu":
        raise UserError("--search compiles for TPU topologies; name one with --topology.")
    ranked = candidates(config, topology, prices)
    tried, fitting = [], []
    for seconds, fields, remat in ranked:
        if len(tried) == ATTEMPTS or fitting and seconds > SLACK * ranked[0][0]:
            break
        if any(fields == chosen for _, _, chosen, _ in fitting):
            continue  # with a policy that is estimated to be faster
        found = report_of(changed(config, remat=remat, **fields), topology, prices)
        compiled = found["predicted_step_seconds"]
        outcome = f"compiled {compiled:.4g} s" if found["fits"] else "does not fit"
        say(f"{shown(fields)} remat {remat}: estimated {seconds:.4g} s; {outcome}")
        tried.append({"mesh": fields, "remat": remat, "fits": found["fits"], "seconds": compiled})
        if found["fits"]:
            fitting.append((compiled, len(fitting), fields, found))
    if not fitting:
        raise UserError(
            f"nothing fits: of {len(ranked)} meshes and remat policies the {len(tried)} fastest "
            f"were compiled for {topology.name}; take more chips, or a smaller "
            "--config.training.batch_size."
        )
    _, _, fields, found = min(fitting)
    chosen = {"remat": found["remat"], **fields}
    return found | {
        "search": {
            "fields": chosen,
            "largest_batch_size": largest_batch(changed(config, **chosen), topology, found, say),
            "compiled": tried,
            "candidates": [{"seconds": s, "mesh": f, "remat": r} for s, f, r in ranked],
        }
    }


def largest_batch(config, topology: Topology, found: dict, say) -> int:
    """The largest batch that fits, in whole crops a device; 0 if not even one a device does.

    Memory mostly grows by as much with each crop: two programs that fit tell how many do, a third
    proves it. (One that does not fit says little, since the compiler has then tried to squeeze it.)
    Where that was too many, it is found by halving, to a sixteenth.
    """
    # A crop for every device and micro-batch.
    unit = found["devices"] // found["mesh"]["tensor"] * found["accumulation"]
    if found["fits"]:
        crops, used = found["batch_size"] // unit, found["used_bytes"]
    else:
        crops, used = 1, _used(config, topology, unit)
    others = crops // 2 or 3
    while (growth := (_used(config, topology, others * unit) - used) / (others - crops)) <= 0:
        others = 2 * max(others, crops)
    guess = max(0, int(crops + (found["hbm_bytes"] - used) / growth))
    low = 0 if used > found["hbm_bytes"] else min(crops, guess)
    high = guess + 1
    while high - low > max(1, high // 16):
        if _used(config, topology, guess * unit) <= found["hbm_bytes"]:
            low = guess
        else:
            say(f"{guess} crops a device do not fit")
            high = guess
        guess = (low + high) // 2
    return low * unit


def advice(config, topology: Topology, found: dict, say) -> str:
    """What to say of a step that does not fit: the HBM, and the largest batch that fits."""
    needed = f"{found['used_bytes'] / GIB:.2f} of the {found['hbm_bytes'] / GIB:.2f} GiB of HBM"
    if topology.chip.platform == "gpu":
        return f"the step is estimated to need {needed}; take a smaller batch or a larger fsdp."
    largest = largest_batch(config, topology, found, say)
    if not largest:
        return (
            f"the step needs {needed}, and not even one crop a device fits; raise parallel.fsdp, "
            "set parallel.remat=full, or take more chips."
        )
    return (
        f"the step needs {needed}; the largest batch that fits is "
        f"--config.training.batch_size={largest} (or set parallel.remat, now "
        f"'{config.parallel.remat}', or training.accumulation)."
    )


def changed(config, *, batch_size: int | None = None, **parallel):
    """A copy of a config with fields of `parallel` and the batch size set."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.parallel.update(parallel)
        if batch_size is not None:
            copy.training.batch_size = batch_size
    return copy.lock()


def _used(config, topology: Topology, batch_size: int) -> float:
    """Bytes that a program of that batch needs on a device, whether they are there or not."""
    try:
        compiled = aot.compile_step(
            changed(config, batch_size=batch_size), aot.topology_devices(topology)
        )
    except aot.DoesNotFit as error:
        if error.needed_bytes is None:
            raise
        return error.needed_bytes
    return compiled.memory["used"]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def shown(fields: dict) -> str:
    """The fields of a mesh for reading."""
    return " x ".join(f"{name} {size}" for name, size in fields.items())
