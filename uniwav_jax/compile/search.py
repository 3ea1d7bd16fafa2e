"""What fits best: mesh, remat policy and batch, ranked by estimate and settled by compiling."""

import math

import jax

from uniwav_jax.compile import aot, report, traffic
from uniwav_jax.compile.chips import GIB, Topology
from uniwav_jax.errors import UserError
from uniwav_jax.models.transformer import REMAT

# So many candidates are compiled at most, from the first that fits on.
ATTEMPTS = 8
# By how much an estimate may be above that of the first that fits to be compiled as well: estimates
# and compiled programs do not rank all meshes alike (benchmarks/exhaustive.py prints both).
SLACK = 1.3
# Wider than this, tensor parallelism would leave the chips of one host.
WIDEST_TENSOR = 8


def report_of(config, topology: Topology | None, prices: dict) -> dict:
    """The report of one config: compiled for TPUs and for this machine (None), else estimated.

    Of a program that the compiler refuses for its size it is the estimate with what it needs.
    """
    if topology is not None and only_estimated(topology):
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
            "temp_bytes": needed - found["argument_bytes"],
            "hbm_share": needed / found["hbm_bytes"],
            "fits": False,
        }


def only_estimated(topology: Topology) -> bool:
    """Whether no program can be compiled for it: GPUs that are not there."""
    return topology.chip.platform == "gpu" and not topology.here


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


def candidates(config, topology: Topology, prices: dict) -> list[dict]:
    """Estimates of all that may fit, the fastest first.

    Returns:
      {"seconds", "mesh": fields, "remat": policy, "used_bytes"}; what does not even hold state and
      saved activations is left out.
    """
    found = []
    for remat in REMAT:
        executed = report.traced_flops(changed(config, remat=remat))
        for fields in meshes(config, topology):
            chosen = changed(config, remat=remat, **fields)
            known = report.estimate(chosen, topology, prices, executed)
            held = known["resident"]
            state = held["parameters and optimiser"] + held["teacher"] + held["saved activations"]
            if state < known["hbm_bytes"]:
                found.append(
                    {
                        "seconds": known["predicted_step_seconds"],
                        "mesh": fields,
                        "remat": remat,
                        "used_bytes": known["used_bytes"],
                    }
                )
    return sorted(
        found, key=lambda one: (one["seconds"], one["mesh"]["tensor"], one["mesh"]["fsdp"])
    )


def search(config, topology: Topology | None, prices: dict, say) -> dict:
    """The fastest mesh that fits at the config's batch, and then the largest batch.

    Returns:
      What `fastest` does, with `largest_batch_size` in `search` as well.

    Raises:
      UserError: as `fastest` does.
    """
    best = fastest(config, topology, prices, say)
    found = best["search"]
    largest = largest_batch(changed(config, **found["fields"]), topology, best, say)
    return best | {"search": found | {"largest_batch_size": largest}}


def fastest(config, topology: Topology | None, prices: dict, say) -> dict:
    """The mesh and the remat policy whose compiled program is predicted to be the fastest.

    Candidates are compiled in the order of their estimates, until one fits; what needs no less
    memory by the estimate than one of the same policy that was refused is not tried. Then those of
    other meshes that are estimated to be about as fast: the compiled programs decide.

    Returns:
      The report of the fastest, with `search`: the fields to set, what was compiled and the
      estimates of all candidates.

    Raises:
      UserError: nothing fits, or the topology is none that can be compiled for.
    """
    if topology is None or topology.chip.platform != "tpu":
        raise UserError("--search compiles for TPU topologies; name one with --topology.")
    ranked = candidates(config, topology, prices)
    tried, fitting, refused, left = [], [], {}, ATTEMPTS
    for one in ranked:
        if fitting and (left == 0 or one["seconds"] > SLACK * fitting[0]["seconds"]):
            break
        if any(one["mesh"] == other["mesh"] for other in fitting):
            continue  # with a policy that is estimated to be faster
        if one["used_bytes"] >= refused.get(one["remat"], math.inf):
            continue
        fields = {"remat": one["remat"], **one["mesh"]}
        found = report_of(changed(config, **fields), topology, prices)
        seconds = found["predicted_step_seconds"]
        outcome = f"compiled {seconds:.4g} s" if found["fits"] else "does not fit"
        say(
            f"{shown(one['mesh'])} remat {one['remat']}: estimated {one['seconds']:.4g} s; "
            f"{outcome}"
        )
        measured = {"seconds": seconds, "used_bytes": found["used_bytes"]}
        tried.append(one | measured | {"fits": found["fits"]})
        if found["fits"]:
            fitting.append(one | {"compiled": seconds, "fields": fields, "report": found})
        else:
            refused[one["remat"]] = one["used_bytes"]
        left -= bool(fitting)
    if not fitting:
        raise UserError(
            f"nothing fits: of {len(ranked)} meshes and remat policies {len(tried)} were compiled "
            f"for {topology.name}, and the others are estimated to need no less; take more chips, "
            "or a smaller --config.training.batch_size."
        )
    best = min(fitting, key=lambda one: one["compiled"])
    found = {"fields": best["fields"], "compiled": tried, "candidates": ranked}
    return best["report"] | {"search": found}


def largest_batch(config, topology: Topology, found: dict, say) -> int:
    """The largest batch that fits, in whole crops a device; 0 if not even one a device does.

    It fits and with one crop more a device it does not, both compiled (estimated for GPUs that are
    not there). Memory mostly grows by as much with each crop, so programs that fit tell about how
    many do. (One that does not fit says little, since the compiler has then tried to squeeze it.)
    Where that leads no further it is found by steps that double, and then by halving.

    Args:
      config: resolved, with any batch that the mesh can share.
      topology: any.
      found: the report of that config.
      say: is told what was tried.
    """
    # A crop for every device and micro-batch.
    unit = found["devices"] // found["mesh"]["tensor"] * found["accumulation"]

    crops = found["batch_size"] // unit if found["fits"] else 1
    known = {crops: found["used_bytes"]} if found["fits"] else {}

    def used(crops: int) -> float:
        if crops not in known:
            known[crops] = _used(config, topology, crops * unit)
            say(f"a batch of {crops * unit} needs {known[crops] / GIB:.2f} GiB")
        return known[crops]

    def fits(crops: int) -> bool:
        return used(crops) <= found["hbm_bytes"]

    if not fits(crops):
        return 0
    used(crops // 2 or 3)  # the other end of the first line

    def guess(low: int) -> int:
        """Where the HBM is full, on the line through the smallest that is known and `low`."""
        first = min(known.keys() - {low})
        growth = (known[low] - known[first]) / (low - first)
        return low + int((found["hbm_bytes"] - known[low]) / growth) if growth > 0 else 2 * low

    low, high, step = crops, None, 1
    while high is None:
        further = max(guess(low), low + step)
        if fits(further):
            low, step = further, max(2 * step, further // 64)
        else:
            high = further
    straight = True
    while high - low > 1:
        half = (high - low) / 2
        middle = min(max(guess(low), low + 1), high - 1) if straight else (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
        straight = straight and high - low <= half
    return low * unit


def advice(config, topology: Topology, found: dict, say) -> str:
    """What to say of a step that does not fit: the HBM, and the largest batch that fits."""
    needed = f"{found['used_bytes'] / GIB:.2f} of the {found['hbm_bytes'] / GIB:.2f} GiB of HBM"
    needs = "is estimated to need" if only_estimated(topology) else "needs"
    largest = largest_batch(config, topology, found, say)
    if not largest:
        return (
            f"the step {needs} {needed}, and not even one crop a device fits; raise parallel.fsdp, "
            "set parallel.remat=full, or take more chips."
        )
    return (
        f"the step {needs} {needed}; the largest batch that fits is "
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
    """Bytes that a program of that batch needs on a device, whether they are there or not.

    Infinite if the compiler refuses it without saying.
    """
    config = changed(config, batch_size=batch_size)
    if only_estimated(topology):
        return sum(traffic.resident(report.designed(config, topology)).values())
    try:
        compiled = aot.compile_step(config, aot.topology_devices(topology))
    except aot.DoesNotFit as error:
        return error.needed_bytes or math.inf
    return compiled.memory["used"]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def shown(fields: dict) -> str:
    """The fields of a mesh for reading."""
    return " x ".join(f"{name} {size}" for name, size in fields.items())
