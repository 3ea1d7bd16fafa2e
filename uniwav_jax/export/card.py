"""What an exported model was trained on and how: the facts of a checkpoint, and the model card."""

import json
import pathlib
import re

from data_pipelines.files import content_digest, read_json
from uniwav_jax import config as configs
from uniwav_jax.export import parity
from uniwav_jax.tasks import report
from uniwav_jax.tasks.pretrained import Pretrained
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.record import LOCAL_FIELDS, read_run
from uniwav_jax.training.telemetry import is_number, read_rows

# Licences that ask something of whoever passes the model on.
# Names of licences are joined by spaces, dashes, underscores or nothing.
RESTRICTED = re.compile(r"(?i)(?<![a-z])(NC|SA)(?![a-z])|non[\W_]*commercial|share[\W_]*alike|GPL")
LICENCE = re.compile(r"\A---\n(?:(?!---).*\n)*?license: *(\S+)")
# Of what `facts` gives, what makes the run when it is imported.
IMPORTED = ("run", "step", "data", "meta")
USE = '''```python
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("DIR", trust_remote_code=True)
model = AutoModel.from_pretrained("DIR", trust_remote_code=True)
features = extractor(wave, sampling_rate={rate}, return_tensors="pt")
hidden_states = model(**features, output_hidden_states=True).hidden_states
```'''


def facts(workdir, step: int) -> dict:
    """What config.json keeps of a run under `training`; paths of this machine are left out.

    Returns:
      run (id, config, data fingerprint, origin), step, data (position in the order of examples and
      fingerprint), meta (ancestry, corpora with attributions and licences, commit, versions),
      evaluation: evaluation.json if it is of this step, or None; validation: the last of its rows
      in metrics.jsonl up to this step, or None; codec: fingerprint and licence of the one whose
      latents are the features, or None; digest (`training_digest`).
    """
    run = read_run(workdir)
    with Checkpoints(pathlib.Path(workdir) / "checkpoints", run["config"]) as checkpoints:
        meta, data = checkpoints.meta(step), checkpoints.data(step)
    config = run["config"].copy_and_resolve_references()
    with config.unlocked():
        local = set(LOCAL_FIELDS) & configs.flatten(config).keys()
        config.update_from_flattened_dict(dict.fromkeys(local, ""))
    path = pathlib.Path(workdir) / "evaluation.json"
    evaluation = read_json(path) if path.is_file() else None
    origin = run["origin"] and _without_paths(run["origin"])
    found = {
        "run": {"id": run["id"], "data_fingerprint": run["data_fingerprint"], "origin": origin},
        "step": step,
        "data": {"position": data["position"], "fingerprint": data["fingerprint"]},
        "meta": {
            "ancestry": [_without_paths(one) for one in meta["ancestry"]],
            **{name: meta[name] for name in ("corpora", "licences", "commit", "versions")},
            "attributions": list(meta["attributions"]),
        },
        "evaluation": evaluation if evaluation and evaluation["step"] == step else None,
        "codec": codec(run["config"]) if "codec" in run["config"].features else None,
        "validation": last_validation(pathlib.Path(workdir), step),
    }
    found["run"]["config"] = config.to_dict()
    found["digest"] = training_digest(found)
    return json.loads(json.dumps(found))  # tuples become lists, as they will be read


def codec(config) -> dict[str, str]:
    """Fingerprint and licence of a run's codec: what the README.md beside its weights says, in the
    header of Hugging Face's model cards, else "unknown"."""
    path = pathlib.Path(config.features.weights) / "README.md"
    readme = path.read_text(encoding="utf-8") if path.is_file() else ""
    named = LICENCE.search(readme)
    return {
        "fingerprint": config.features.codec,
        "licence": named[1] if named else "unknown",
    }


def licences(about: dict) -> list[str]:
    """Of all data and of the codec, from `facts`."""
    return [*about["meta"]["licences"], *([about["codec"]["licence"]] if about["codec"] else [])]


def restricted(licences: list[str]) -> list[str]:
    """Those that are non-commercial, share-alike or copyleft."""
    return [licence for licence in licences if RESTRICTED.search(licence)]


def text(model: Pretrained, about: dict, chosen: str, rows: list[parity.Row]) -> str:
    """README.md.

    Args:
      model: the run.
      about: from `facts`.
      chosen: which weights are exported.
      rows: of the comparison with JAX.
    """
    meta = about["meta"]
    of_all = "student, teacher, codebooks" + " and decoder" * bool(
        model.config.objective.decoder_weight
    )
    held = of_all if chosen == "all" else f"the {chosen} alone"
    lines = [
        *("---", "library_name: transformers", "tags: [audio, speech, uniwav]", "license: other"),
        *("---", "", "# UniWav", ""),
        "A representation encoder and a generative decoder, pre-trained jointly on unlabelled "
        f"speech. Step {about['step']} of run {about['run']['id']}; this export holds {held}.",
        *("", USE.replace("{rate}", str(model.config.features.sample_rate)), "", "## Data", ""),
        "| corpus | licences | fingerprint | attribution |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one['name']} | {', '.join(one['licences'])} | {one['fingerprint'][:12]} | "
        f"{_cell(one['attribution'] or one['source'])} |"
        for one in meta["attributions"]
    ]
    lines += ["", f"Fingerprint of the run's data: {about['data']['fingerprint']}."]
    if about["codec"]:
        lines += [
            "",
            f"Features: latents of the EnCodec in `codec`, licence {about['codec']['licence']}, "
            f"fingerprint {about['codec']['fingerprint']}.",
        ]
    if found := restricted(licences(about)):
        lines += ["", f"**Restricted by: {', '.join(found)}.**"]
    lines += ["", "## Ancestry", ""]
    lines += [
        f"* {one['kind']} {one['run']} ({one['run_id']}), step {one['step']}"
        for one in meta["ancestry"]
    ] or ["Trained from nothing."]
    lines += ["", "## Validation", ""]
    if about["validation"]:
        row = about["validation"]
        rest = {name: x for name, x in row.items() if is_number(x) and name != "step"}
        lines += [f"After step {row['step']}, on the set {row['fingerprint'][:12]}:", ""]
        lines += ["| metric | value |", "|---|---|"]
        lines += [f"| {_cell(name)} | {x:.4g} |" for name, x in rest.items()]
    else:
        lines += ["Not validated up to this step."]
    lines += ["", "## Evaluation", ""]
    if about["evaluation"]:
        lines += ["```", report.table(about["evaluation"]), "```"]
    else:
        lines += ["Not evaluated at this step."]
    lines += ["", "## Against JAX", "", "```", parity.text(rows), "```"]
    config = json.dumps(about["run"]["config"], indent=1, sort_keys=True)
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    lines += ["", "## Training", "", f"Code {meta['commit']}; {versions}.", ""]
    lines += ["```json", config, "```", ""]
    return "\n".join(lines)


def training_digest(found: dict) -> str:
    """SHA-256 of what `import` makes a run of; the scores beside it are for reading alone."""
    return content_digest({name: found.get(name) for name in IMPORTED})


def last_validation(workdir: pathlib.Path, step: int) -> dict | None:
    """The row of metrics.jsonl that a run wrote last of its validation up to a step, or None."""
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["kind"] == "validation"]
    return next((row for row in reversed(rows) if row["step"] <= step), None)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _without_paths(origin: dict) -> dict:
    # The folder's name says enough; where it lay is nobody's business.
    name = pathlib.Path(origin["run"]).name
    found = origin | {"run": name, "what": f"--{origin['kind']} {name}"}
    if "ancestors" in origin:
        found["ancestors"] = [_without_paths(one) for one in origin["ancestors"]]
    return found
