"""`compile --search` held against compiling everything: every mesh of a topology, one by one.

    python -m benchmarks.exhaustive [--config configs/small.py] [--topology v5e:2x4] [--jobs 2]
                                    [--config.FIELD=VALUE ...]

Prints each mesh with what the compiled program is predicted to take beside the estimate by which
the search ranks, and the same for every remat policy on the mesh that the search chose. Every mesh
is every data x fsdp x tensor of the devices among which the batch can be shared, also those that
the search leaves out. Exit status 1: the search chose another mesh than the fastest, or `full` is
not slower than `none`.
"""

import argparse
import concurrent.futures
import functools
import itertools
import multiprocessing
import sys

from uniwav_jax import config as configs
from uniwav_jax.compile import aot, chips, report, search
from uniwav_jax.errors import UserError
from uniwav_jax.models.transformer import REMAT


def main() -> int:
    """Compiles, prints the tables and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/small.py")
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--jobs", type=int, default=2, help="programs compiled at a time")
    options, fields = parser.parse_known_args()
    names = [field.removeprefix("--config.") for field in fields]
    topology, prices = chips.parse(options.topology), report.read_prices()
    config = configs.load_config(options.config, names)

    every = every_mesh(config, topology)
    # Each in a process of its own: libtpu's memory only grows.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        options.jobs, context, aot.prepare, max_tasks_per_child=1
    ) as pool:
        searched = pool.submit(search.fastest, config, topology, prices, say)
        compiled = functools.partial(search.report_of, topology=topology, prices=prices)
        found = list(pool.map(compiled, [search.changed(config, **mesh) for mesh in every]))
        chosen = searched.result()["search"]["fields"]
        policies = [search.changed(config, **chosen | {"remat": remat}) for remat in REMAT]
        by_policy = dict(zip(REMAT, pool.map(compiled, policies), strict=True))

    print("| mesh | estimated, s | compiled, s | memory | sent, MB |\n|---|---|---|---|---|")
    looked_at = search.meshes(config, topology)
    for fields, row in zip(every, found, strict=True):
        known = report.estimate(search.changed(config, **fields), topology, prices)
        name = search.shown(fields) + ("" if fields in looked_at else " (left out by the search)")
        print(_row(name, known["predicted_step_seconds"], row))
    print("\n| remat | executed FLOPs | compiled, s | memory | sent, MB |\n|---|---|---|---|---|")
    for policy, row in by_policy.items():
        print(_row(policy, row["executed_flops"], row))

    fitting = [row for row in found if row["fits"]]
    fastest = min(row["predicted_step_seconds"] for row in fitting)
    own = found[every.index({name: chosen[name] for name in every[0]})]
    print(
        f"\nthe search chose {search.shown(chosen)}: {own['predicted_step_seconds']:.4g} s; "
        f"the fastest of {len(found)} meshes takes {fastest:.4g} s"
    )
    seconds = {policy: row["predicted_step_seconds"] for policy, row in by_policy.items()}
    return int(own["predicted_step_seconds"] > fastest or seconds["full"] <= seconds["none"])


def say(line: str) -> None:
    """What the search tells, while it goes on."""
    print(line, file=sys.stderr, flush=True)


def every_mesh(config, topology: chips.Topology) -> list[dict[str, int]]:
    """All data x fsdp x tensor of a slice's devices among which the batch can be shared."""
    devices = topology.devices // topology.slices
    sides = [size for size in range(1, devices + 1) if devices % size == 0]
    found = []
    for data, fsdp, tensor in itertools.product(sides, repeat=3):
        if data * fsdp * tensor != devices:
            continue
        fields = {"slices": topology.slices, "data": data, "fsdp": fsdp, "tensor": tensor}
        try:
            report.designed(search.changed(config, **fields), topology)
        except UserError:
            continue  # more devices than rows of a micro-batch
        found.append(fields)
    return found


def _row(name: str, figure: float, found: dict) -> str:
    sent = sum(row["sent_bytes"] for row in found["collectives"].values())
    return (
        f"| {name} | {figure:.4g} | {found['predicted_step_seconds']:.4g} | "
        f"{found['hbm_share']:.1%}{'' if found['fits'] else ', does not fit'} | {sent / 1e6:,.1f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
