"""Fit scaling laws to a table of runs: R/fit.json, R/report.html and its plots.

L(N, D) = E + A / N^alpha + B / D^beta for every loss column, with 90 % intervals, isoFLOP
parabolas, how well the largest runs are predicted from the others, how to split parameters between
encoder and decoder, and the best size and amount of audio for a budget: --flops, --chip-hours or
--dollars; without one, that of the largest run.

The table is results.parquet in a sweep's folder (`python -m launch sweep`), or any Parquet file
with run_id, parameters, frames, flops and a loss.
"""

import pathlib

from data_pipelines.files import write_json
from uniwav_jax.errors import UserError

FORMAT = 1


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--results", required=True, help="a sweep's folder, or a Parquet file")
    parser.add_argument("--output", required=True, metavar="R", help="folder for the results")
    parser.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="COLUMN",
        help="fit this column; may be repeated; default: all that end in _loss",
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="RUN_ID",
        help="do not fit this run; may be repeated",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--flops", type=float, help="budget for the best size and audio")
    budget.add_argument("--chip-hours", type=float, help="the same in hours of --chip")
    budget.add_argument("--dollars", type=float, help="the same in dollars, by --prices")
    parser.add_argument("--chip", metavar="NAME", help="of the budget: v5e, v5p, h100, ...")
    parser.add_argument("--mfu", type=float, default=0.4, help="of the budget (default 0.4)")
    parser.add_argument("--prices", metavar="FILE", help="dollars a chip-hour; default: ours")
    parser.add_argument("--refits", type=int, default=200, help="for the intervals (default 200)")
    parser.add_argument("--huber-delta", type=float, default=1e-3, help="of log loss (1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")


def run(options) -> int:
    """Fits, writes the files and prints the laws."""
    from uniwav_jax.scaling import analysis, report, results

    if options.refits < 20:
        raise UserError(f"--refits {options.refits}: an interval takes at least 20.")
    if not 0 < options.huber_delta <= 1:
        raise UserError(
            f"--huber-delta {options.huber_delta} must be above 0 and at most 1: least squares."
        )
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must not be negative.")
    budget = budget_of(options)
    table = results.read(options.results, tuple(options.loss), tuple(options.leave_out))
    fits = []
    for loss in table.losses:
        fitted = analysis.analyse(
            table, loss, delta=options.huber_delta, refits=options.refits, seed=options.seed
        )
        fits.append((fitted, analysis.numbers(table, fitted, budget)))
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    found = {fitted.loss: numbers for fitted, numbers in fits}
    table_facts = {
        "results": options.results,
        "runs": list(table.run_ids),
        "remarks": list(table.remarks),
        "huber_delta": options.huber_delta,
        "refits": options.refits,
        "seed": options.seed,
        "budget": {
            name: getattr(options, name)
            for name in ("flops", "chip_hours", "dollars", "chip", "mfu", "prices")
        },
    }
    write_json(output / "fit.json", {"format": FORMAT, "table": table_facts, **found})
    report.write(output, table, fits)
    for remark in table.remarks:
        print(remark)
    for loss, numbers in found.items():
        print(text(loss, numbers))
    print(f"\n{output / 'fit.json'}\n{output / 'report.html'}")
    return 0


def budget_of(options) -> float | None:
    """FLOPs of the budget that the arguments name, or None.

    Raises:
      UserError: one that can't be.
    """
    from uniwav_jax.compile.report import PRICES, read_prices
    from uniwav_jax.scaling.allocation import flops_of

    for name in ("flops", "chip_hours", "dollars"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value} must be positive.")
    if options.chip_hours is None and options.dollars is None:
        return options.flops
    if options.chip is None:
        raise UserError("--chip-hours and --dollars want --chip NAME.")
    return flops_of(
        chip=options.chip,
        mfu=options.mfu,
        chip_hours=options.chip_hours,
        dollars=options.dollars,
        prices=read_prices(options.prices or PRICES),
    )


def text(loss: str, numbers: dict) -> str:
    """One law as lines."""

    def with_interval(name: str, section: dict = numbers) -> str:
        if section[name] is None:
            return "unknown"
        low, high = section["intervals"][name]
        return f"{section[name]:.4g} ({low:.4g} to {high:.4g})"

    best = numbers["optimal"]
    lines = [
        f"\n{loss}: L = E + A / N^alpha + B / D^beta, {numbers['level']:.0%} intervals",
        *(f"  {name:6} {with_interval(name)}" for name in ("E", "A", "alpha", "B", "beta")),
        f"  for {best['flops']:.3g} FLOP: N = {with_interval('parameters', best)}, "
        f"D = {with_interval('frames', best)}, loss {with_interval('loss', best)}",
    ]
    if numbers["split"]:
        share = with_interval("encoder_share", numbers["split"])
        lines.append(f"  share of the encoder in these parameters: {share}")
    if numbers["held_out"]:
        lines.append(
            f"  the largest run, predicted without the {len(numbers['held_out'])} runs of the most "
            f"FLOPs: {numbers['extrapolation_error']:+.2%} off"
        )
    return "\n".join([*lines, *(f"  {remark}" for remark in numbers["remarks"])])
