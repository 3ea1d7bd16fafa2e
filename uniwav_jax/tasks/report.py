"""An evaluation for people: the table on the terminal and evaluation.png."""

import pathlib

from uniwav_jax.training import pictures

SYSTEMS = {
    "log_mel": "log-mel",
    "log_mel_context": "log-mel in context",
    "untrained_best": "untrained",
    "trained_best": "trained",
}
# Features that have a column of their own: of a run that does not take log-mel.
SURFACES = {"encodec": "EnCodec latents"}
# Of the systems that have layers.
COLOURS = {"trained": "C0", "untrained": "C1", "against": "C4"}
ROWS = {
    "phone_accuracy": "phones, unseen sentences",
    "phone_accuracy_unseen_voices": "phones, unseen voices",
    "speaker_accuracy": "speakers, unseen sentences",
    "label_accuracy": "labels",
    "label_accuracy_left_out_speaker": "labels, left-out speaker",
    "speaker_accuracy_few_shot": "speakers of labelled records",
}
GENERATION = ("resynthesis", "infilling")
# The two panels of probes: title -> what is shown there, the first that an evaluation has.
PANELS = {
    "phones": (("phone_accuracy", "phone_accuracy_unseen_voices"), ("label_accuracy",)),
    "speakers": (("speaker_accuracy",), ("speaker_accuracy_few_shot",)),
}


def systems(result: dict) -> dict[str, str]:
    """Key in the sections -> label of every system that an evaluation compares."""
    found = dict(SYSTEMS)
    if "surface" in result:
        found["surface"] = SURFACES[result["surface"]]
    if "against" in result:
        found["against_best"] = f"against {result['against']['name']}"
    return found


def accuracies(result: dict) -> dict[str, dict]:
    """Title -> section of every probe in an evaluation."""
    return {title: section for key in ROWS for title, section in sections(result, key).items()}


def sections(result: dict, key: str) -> dict[str, dict]:
    """Title -> section of one key: a section, or one for each number of labelled examples."""
    title, found = ROWS[key], result.get(key, {})
    if "classes" in found:
        return {title: found}
    return {
        f"{title}, {shots} a class" if shots != "all" else f"{title}, all": section
        for shots, section in found.items()
    }


def table(result: dict) -> str:
    """The evaluation as lines of text."""
    sections, shown = accuracies(result), systems(result)
    lines = [f"step {result['step']}", ""]
    if sections:
        head = ["accuracy", *shown.values()]
        rows = [
            [title, *(f"{s[k]:.3f} ± {s[f'{k}_spread']:.3f}" for k in shown)]
            for title, s in sections.items()
        ]
        lines += aligned([head, *rows]) + [""]
    rows = []
    if "flow_matching_validation_loss" in result:
        loss = result["flow_matching_validation_loss"]
        rows.append(["flow-matching loss, untrained", f"{loss['first']:.3f}"])
        rows.append(["flow-matching loss", f"{loss['last']:.3f}"])
        other = loss["last_with_other_condition"]
        rows.append(["    with another utterance's condition", f"{other:.3f}"])
    if "codebook_perplexity" in result:
        perplexity, size = result["codebook_perplexity"], result["codebook_size"]
        text = f"{perplexity['mean']:.1f}, lowest {perplexity['min']:.1f}, of {size}"
        rows.append(["codebook perplexity", text])
    for task in GENERATION:
        section = result.get(task, {})
        if "stoi" in section:
            floor, ceiling = section["stoi_floor"], section["stoi_ceiling"]
            text = f"{section['stoi']:.3f} (floor {floor:.3f}, ceiling {ceiling:.3f})"
            rows.append([f"STOI of {task}", text])
            gain = section["stoi_gain_over_floor"]
            text = f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
            rows.append(["    above the floor, 95 %", text])
    lines += aligned(rows)
    if result["left_out"]:
        lines += ["", "left out:"] + [f"  {sentence}" for sentence in result["left_out"]]
    return "\n".join(lines)


def aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, the first to the left and the others to the right."""
    if not rows:
        return []
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def picture(path: pathlib.Path, results: list[dict], rows: list[dict]) -> None:
    """evaluation.png: accuracy per layer, validation losses, and accuracy against steps.

    Args:
      path: the PNG.
      results: evaluations in the order of their steps; the newest is the last.
      rows: of metrics.jsonl.
    """
    figure, axes = pictures.new_figure(2, 2, 12, 8)
    newest = results[-1]
    for axis, (title, choices) in zip(axes[0], PANELS.items(), strict=True):
        keys = next((keys for keys in choices if keys[0] in newest), ())
        shown = {t: found for key in keys for t, found in sections(newest, key).items()}
        per_layer(axis, shown, title, systems(newest))
    validation = [row for row in rows if row["kind"] == "validation"]
    curves(axes[1, 0], validation)
    if len(results) > 1:
        over_steps(axes[1, 1], results)
    else:
        bars(axes[1, 1], newest)
    figure.suptitle(f"step {newest['step']}")
    pictures.save(figure, path)


def per_layer(axis, shown: dict[str, dict], title: str, labels: dict[str, str] = SYSTEMS) -> None:
    """Accuracy layer by layer, what has no layers as level lines; one line style a section.

    Args:
      shown: title -> section; three at most.
      title: of the panel if there is no section.
      labels: of the systems that are shown.
    """
    if not shown:
        axis.set_title(f"{title}: accuracy of a linear probe")
        empty(axis, "no labels")
        return
    first = next(iter(shown))
    axis.set_title(f"{first.split(',')[0]}: accuracy of a linear probe")
    for (name, section), style in zip(shown.items(), ("-", "--", ":"), strict=False):
        note = f", {name.partition(', ')[2]}" if len(shown) > 1 else ""
        layered = [system for system in COLOURS if f"{system}_best" in labels]
        for system in layered:
            axis.errorbar(
                range(1, len(section[system]) + 1),
                section[system],
                section[f"{system}_spread"],
                color=COLOURS[system],
                linestyle=style,
                marker="o",
                markersize=4,
                label=labels[f"{system}_best"] + note,
            )
        for system, colour in (("log_mel_context", "C2"), ("log_mel", "C3"), ("surface", "C5")):
            if system in labels:
                label = labels[system] + note
                axis.axhline(section[system], color=colour, linestyle=style, label=label)
    axis.set_xlabel("layer")
    axis.set_ylim(top=min(1.02, axis.get_ylim()[1]))
    axis.set_xticks(range(1, max(len(section[system]) for system in layered) + 1))
    axis.legend(fontsize=8, ncols=len(shown), loc="upper center", bbox_to_anchor=(0.5, -0.18))


def curves(axis, rows: list[dict], names: tuple[str, ...] = ()) -> None:
    """Validation losses against steps."""
    labels = {
        "encoder_loss": "encoder",
        "decoder_loss": "decoder",
        "decoder_loss_other_condition": "decoder, another utterance's condition",
    }
    axis.set_title("validation losses")
    drawn = False
    for name in names or labels:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            drawn = True
            axis.plot(*zip(*points, strict=True), marker=".", label=labels[name])
    if not drawn:
        empty(axis, "no validation rows in metrics.jsonl")
        return
    axis.set_xlabel("step")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def over_steps(axis, results: list[dict]) -> None:
    """Probe accuracies against the steps of the checkpoints."""
    axis.set_title("accuracy against steps")
    steps = [result["step"] for result in results]
    titles = accuracies(results[-1])
    for title in titles:
        values = [accuracies(result)[title]["trained_best"] for result in results]
        axis.plot(steps, values, marker="o", label=title)
    if not titles:
        empty(axis, "no labels")
        return
    axis.set_xlabel("step")
    axis.legend(fontsize=8)


def bars(axis, result: dict) -> None:
    """STOI of generated speech between its floor and its ceiling."""
    axis.set_title("STOI of generated speech")
    tasks = [task for task in GENERATION if "stoi" in result.get(task, {})]
    if not tasks:
        empty(axis, "nothing was generated")
        return
    systems = (
        ("stoi_floor", "floor", "C3"),
        ("stoi", "model", "C0"),
        ("stoi_ceiling", "ceiling", "C2"),
    )
    for shift, (key, label, colour) in enumerate(systems):
        heights = [result[task][key] for task in tasks]
        positions = [place + 0.27 * (shift - 1) for place in range(len(tasks))]
        axis.bar_label(axis.bar(positions, heights, 0.25, color=colour, label=label), fmt="%.3f")
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set_ylim(0, 1.2)
    axis.legend(fontsize=8, ncols=3, loc="upper center")


def empty(axis, reason: str) -> None:
    """Says why a panel has nothing to show."""
    axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])
