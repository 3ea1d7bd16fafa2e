"""The fits for people: report.html, which needs nothing beside it, and its plots as PNG files."""

import html
import io
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.files import atomic_write
from uniwav_jax.scaling.analysis import Fitted
from uniwav_jax.scaling.results import MOVING, TOTAL, Results
from uniwav_jax.training import pictures

WHAT_IS_COMPARED = (
    "D counts the frames of audio that a run has processed. In a sweep's table each point is a run "
    "whose schedule was completed, never a checkpoint from the middle of a longer one. The "
    "decoder's flow-matching validation loss has fixed targets. The encoder's own loss is against "
    "codebooks that move with the model, so it does not compare between runs: the frozen encoder "
    "is scored instead by targets that are fixed once for the corpus, k-means units of log-mel at "
    "masked frames and, where there are labels, phones. Each measure is fitted for itself; their "
    "sum is shown and not fitted unless asked for."
)
MOVING_WARNING = (
    "The loss against each run's own moving codebooks. It does not compare between runs: lower is "
    "not better here."
)
PLOTS = ("compute", "isoflop", "residuals", "extrapolation")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff }
h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
summary { cursor: pointer; color: #0b57a4 }
.scroll { overflow-x: auto }
.warning { background: #fff4d6; padding: .5rem 1rem; border-left: 4px solid #d9a400 }
"""


def write(folder: pathlib.Path, results: Results, fits: list[tuple[Fitted, dict]]) -> None:
    """Writes FOLDER/report.html and a PNG of every plot.

    Args:
      folder: is made if it is not there.
      results: the runs.
      fits: of each loss column what `analysis.analyse` and `analysis.numbers` gave.
    """
    parts = []
    for fitted, numbers in fits:
        parts.append(f"<h2 id='{fitted.loss}'>{html.escape(fitted.loss)}</h2>")
        parts.append(_law(numbers))
        for plot in PLOTS:
            parts.append(_plot(folder, plot, results, fitted, numbers))
    title = f"Scaling laws of {len(results)} runs"
    remarks = "".join(
        f"<p class='warning'>{html.escape(remark)}</p>" for remark in results.remarks
    )
    body = (
        f"<h1>{title}</h1><p>{WHAT_IS_COMPARED}</p>{remarks}{''.join(parts)}"
        f"<h2 id='runs'>Runs</h2>{_runs(results)}{_moving(results)}"
    )
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
    with atomic_write(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _law(numbers: dict) -> str:
    """The law in words, its numbers, and what to do with the budget."""
    rows = [
        [name, _number(numbers[name]), *map(_number, numbers["intervals"][name])]
        for name in ("E", "A", "alpha", "B", "beta")
    ]
    best = numbers["optimal"]
    rows += [
        [f"{label} for {_number(best['flops'])} FLOP", _number(best[name])]
        + list(map(_number, best["intervals"][name] or (None, None)))
        for name, label in (("parameters", "best N"), ("frames", "best D"), ("loss", "loss"))
    ]
    if split := numbers["split"]:
        low, high = split["intervals"]["encoder_share"]
        rows.append(["share of the encoder in best N", _number(split["encoder_share"]),
                     _number(low), _number(high)])  # fmt: skip
    powers = best["exponents"]
    words = [
        "L(N, D) = E + A / N<sup>&alpha;</sup> + B / D<sup>&beta;</sup>; N is to grow as the power "
        f"{_number(powers['parameters'])} of the budget, D as {_number(powers['frames'])}.",
        *map(html.escape, numbers["remarks"]),
    ]
    if numbers["held_out"]:
        words.append(
            f"Fitted without the {len(numbers['held_out'])} runs of the most FLOPs, the law "
            f"predicts the largest one {numbers['extrapolation_error']:+.2%} off."
        )
    level = f"{numbers['level']:.0%} interval"
    return f"<p>{' '.join(words)}</p>" + _table(["", "value", f"{level}, low", "high"], rows)


def _plot(folder: pathlib.Path, name: str, results: Results, fitted: Fitted, numbers: dict) -> str:
    """One plot, with the numbers behind it; "" where there is nothing to show."""
    figure, axes = pictures.new_figure(1, 1, 8, 4.2)
    drawn = {
        "compute": _compute,
        "isoflop": _isoflop,
        "residuals": _residuals,
        "extrapolation": _extrapolation,
    }[name](axes[0, 0], results, fitted, numbers)
    if drawn is None:
        return ""
    title, head, rows = drawn
    axes[0, 0].grid(alpha=0.3)
    _plain_losses(axes[0, 0])
    pictures.save(figure, folder / f"{fitted.loss}-{name}.png")
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    drawing = svg.getvalue()
    # Ids are unique to a drawing, not to a page.
    drawing = _own_ids(drawing[drawing.index("<svg") :], f"{fitted.loss}-{name}-")
    return (
        f"<figure id='{fitted.loss}-{name}'><figcaption>{html.escape(title)}</figcaption>{drawing}"
        f"<details><summary>numbers</summary>{_table(head, rows)}</details></figure>"
    )


def _plain_losses(axes) -> None:
    """Losses are 0.9 and 1.2, not 9 x 10^-1, on the axes that show them in a log scale."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high < 100 * low and high < 1e4:
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            crowded = high > 10 * low
            axis.set_minor_formatter(NullFormatter() if crowded else StrMethodFormatter("{x:g}"))


def _own_ids(svg: str, prefix: str) -> str:
    for opening in (' id="', 'xlink:href="#', "url(#"):
        svg = svg.replace(opening, opening + prefix)
    return svg


def _compute(axis, results: Results, fitted: Fitted, numbers: dict):
    flops, loss, sizes = results["flops"], results[fitted.loss], results["parameters"]
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        rows = rows[np.argsort(flops[rows])]
        points = axis.loglog(flops[rows], loss[rows], "o", label=f"N = {_number(size)}")
        frames = np.geomspace(*results["frames"][rows[[0, -1]]], 50)
        x = np.stack([np.full_like(frames, size), frames], axis=1)
        cost = np.exp(np.interp(np.log(frames), np.log(results["frames"][rows]),
                                np.log(flops[rows])))  # fmt: skip
        axis.loglog(cost, fitted.law.predict(x), "-", color=points[0].get_color(), linewidth=1)
    axis.set_xlabel("FLOP")
    axis.set_ylabel(fitted.loss)
    axis.legend(fontsize=8)
    x = np.stack([sizes, results["frames"]], axis=1)
    rows = zip(results.run_ids, sizes, results["frames"], flops, loss, fitted.law.predict(x),
               strict=True)  # fmt: skip
    head = ["run", "N", "D", "FLOP", "measured", "law"]
    return "Loss against compute; lines: the law", head, [_cells(row) for row in rows]


def _isoflop(axis, results: Results, fitted: Fitted, numbers: dict):
    if not fitted.parabolas:
        return None
    rows = []
    for parabola in fitted.parabolas:
        sizes, loss = results["parameters"][parabola.rows], results[fitted.loss][parabola.rows]
        label = f"{_number(parabola.flops)} FLOP"
        points = axis.loglog(sizes, loss, "o", label=label)
        curve = np.geomspace(sizes.min(), sizes.max(), 100)
        axis.loglog(curve, parabola.predict(curve), "-", color=points[0].get_color(), linewidth=1)
        if parabola.parameters is not None:
            axis.loglog(parabola.parameters, parabola.loss, "k*")
        rows.append([label, str(len(sizes)), *(
            "–" if value is None else _number(value)
            for value in (parabola.parameters, parabola.frames, parabola.loss)
        )])  # fmt: skip
    axis.set_xlabel("parameters")
    axis.set_ylabel(fitted.loss)
    axis.legend(fontsize=8)
    title = "Runs of equal FLOPs, with parabolas; stars: their lowest points"
    return title, ["budget", "runs", "lowest at N", "D there", "loss there"], rows


def _residuals(axis, results: Results, fitted: Fitted, numbers: dict):
    x = np.stack([results["parameters"], results["frames"]], axis=1)
    error = results[fitted.loss] / fitted.law.predict(x) - 1
    points = axis.scatter(results["flops"], 100 * error, c=np.log10(x[:, 0]), cmap="viridis")
    axis.figure.colorbar(points, ax=axis, label="log10 N")
    axis.axhline(0, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("FLOP")
    axis.set_ylabel("measured / law - 1, %")
    rows = [[run, f"{100 * e:+.3f} %"] for run, e in zip(results.run_ids, error, strict=True)]
    return "What the law leaves over", ["run", "measured / law - 1"], rows


def _extrapolation(axis, results: Results, fitted: Fitted, numbers: dict):
    if not numbers["held_out"]:
        return None
    x = np.stack([results["parameters"], results["frames"]], axis=1)
    smaller, rows = fitted.held_out
    measured, predicted = results[fitted.loss], smaller.predict(x)
    inside = np.setdiff1d(np.arange(len(x)), rows)
    axis.loglog(predicted[inside], measured[inside], "o", label="fitted")
    axis.loglog(predicted[rows], measured[rows], "s", label="held out: the most FLOPs")
    ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
    axis.loglog(ends, ends, "k-", linewidth=1)
    axis.set_xlabel(f"{fitted.loss} by the law of the smaller runs")
    axis.set_ylabel("measured")
    axis.legend(fontsize=8)
    lines = [
        [run["run_id"], *map(_number, (run["flops"], run["predicted"], run["measured"])),
         f"{run['error']:+.2%}"]
        for run in numbers["held_out"]
    ]  # fmt: skip
    return "The largest runs, predicted from the others", ["run", "FLOP", "predicted", "measured",
                                                           "error"], lines  # fmt: skip


def _runs(results: Results) -> str:
    names = [
        name
        for name in ("parameters", "frames", "unique_frames", "flops", *results.losses, TOTAL)
        if name in results.columns
    ]
    names = list(dict.fromkeys(names))
    rows = zip(results.run_ids, *(results[name] for name in names), strict=True)
    return _table(["run", *names], [_cells(row) for row in rows])


def _moving(results: Results) -> str:
    if MOVING not in results.columns:
        return ""
    rows = zip(results.run_ids, results[MOVING], strict=True)
    return (
        f"<h2 id='{MOVING}'>The moving target</h2><p class='warning'>{MOVING_WARNING}</p>"
        + _table(["run", MOVING], [_cells(row) for row in rows])
    )


def _cells(row: Sequence) -> list[str]:
    return [row[0], *map(_number, row[1:])]


def _number(value: float) -> str:
    """Four digits, in a form that people read."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:.3e}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(tag: str, cells: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = line("th", head) + "".join(line("td", row) for row in rows)
    return f"<div class='scroll'><table>{body}</table></div>"
