"""Measures a run: probes beside baselines, losses, codebooks, resynthesis and infilling.

Two passes over the labelled utterances: the untrained encoder (whose pass also gives the log-mel
baselines, and the features themselves where the run takes others) and the trained one; a third for
another model to compare with. What the shards or the run can't give is left out with a sentence.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm

from uniwav_jax import config as configs
from uniwav_jax import recipes
from uniwav_jax.errors import UserError
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.tasks import labelled, pretrained, probes
from uniwav_jax.tasks.against import Against, load_against
from uniwav_jax.tasks.generation_scores import score_generation
from uniwav_jax.tasks.labelled import Catalogue, LeftOut, Task
from uniwav_jax.tasks.pretrained import Pretrained
from uniwav_jax.training import data
from uniwav_jax.training.record import code_version
from uniwav_jax.training.validation import make_validate

# Utterances decoded at a time.
CHUNK = 64
# Crops of the validation set that are computed at a time.
MICRO_BATCH = 16


def evaluate(
    workdir,
    shards: str,
    *,
    step: int | str | None = None,
    validation: str = "",
    exclude_speakers: Sequence[str] = (),
    overrides: Sequence[str] = (),
    against: str | None = None,
) -> list[dict]:
    """Evaluates the newest checkpoint (`step` None), one, or "all".

    Args:
      workdir: the run's folder.
      shards: labelled shards; also the validation set, unless the run names another.
      validation: shards to validate on instead.
      exclude_speakers: left out of every probe's training, beside those that the run left out.
      overrides: "evaluation.NAME=VALUE".
      against: Hugging Face directory of a model that goes through the same probes.

    Returns:
      What evaluation.json holds, one dict a step, ascending.

    Raises:
      UserError: no such run or step, shards or a directory that do not fit, or another field
        overridden.
    """
    for override in overrides:
        if not override.startswith("evaluation."):
            raise UserError(
                f"--config.{override}: only fields of config.evaluation can be set here; the "
                "others are the run's."
            )
    steps = pretrained.steps(workdir) if step == "all" else [step]
    # Without any checkpoint it is for `load` to say so.
    models = (
        _open(workdir, chosen, shards, validation, overrides) for chosen in steps or [None]
    )
    model = next(models)
    config = model.config
    catalogue = labelled.read_catalogue(shards, config, exclude_speakers)
    tasks, left_out = plan(catalogue, config)
    other = load_against(against, config) if against else None
    validate = validation_of(config)
    untrained = model.untrained()
    baselines = measure(untrained, catalogue, tasks, _baseline_views(config), "untrained")
    if other:
        baselines |= measure(other, catalogue, tasks, _layers_as("against"), "against")
    first = validate(untrained) if validate else {}
    about = {
        "data_fingerprint": catalogue.fingerprint,
        "commit": code_version()[0],
        "settings": config.evaluation.to_dict(),
        "excluded_speakers": sorted(catalogue.left_out_speakers),
        "repeated_sentences_dropped": int(
            (catalogue.repeated & (catalogue.split != labelled.TRAIN)).sum()
        ),
    }
    if config.features.name != "log_mel":
        about["surface"] = config.features.name
    if other:
        about["against"] = other.about
    results = []
    while model is not None:
        began = time.monotonic()
        systems = baselines | measure(model, catalogue, tasks, _layers_as("trained"), "trained")
        result = about | {"step": model.step, "left_out": list(left_out)}
        result |= sections(systems, tasks)
        if not validate:
            result["left_out"].append(
                "losses and codebook perplexity: the shards have no validation split."
            )
        else:
            result |= losses(config, first, validate(model), result["left_out"])
        result |= generation(model, catalogue, result["left_out"])
        results.append(result | {"seconds": time.monotonic() - began})
        model = next(models, None)
    return results


def plan(catalogue: Catalogue, config) -> tuple[dict[str, Task], list[str]]:
    """What can be probed: (tasks by name, sentences on what can't be).

    A task of few labelled examples is named after its number of shots, "label 5".
    """
    if not catalogue.has_labels:
        return {}, ["all probes: the shards have neither phones nor speakers nor labels."]
    makers: dict[str, Callable[[], Task]] = {
        "phone_accuracy": lambda: labelled.phone_task(catalogue, config),
        "speaker_accuracy": lambda: labelled.speaker_task(catalogue, config),
    }
    for classes in ("label", "speaker"):
        for shots in (*config.evaluation.shots, None):
            makers[f"{classes} {shots or 'all'}"] = lambda classes=classes, shots=shots: (
                labelled.label_task(catalogue, config, classes, shots)
            )
    tasks, left_out = {}, []
    for name, make in makers.items():
        try:
            tasks[name] = make()
        except LeftOut as reason:
            left_out.append(f"{_measure_name(name)}: {reason}")
    if "phone_accuracy" in tasks:
        for test in {"phone_accuracy", "phone_accuracy_unseen_voices"}.difference(
            tasks["phone_accuracy"].tests
        ):
            left_out.append(f"{test}: the shards have no such utterances with phones.")
    # The same reason for every number of shots is said once.
    return tasks, list(dict.fromkeys(left_out))


def measure(
    model: Pretrained | Against,
    catalogue: Catalogue,
    tasks: dict[str, Task],
    views: Callable[[dict], dict[str, np.ndarray]],
    title: str,
) -> dict[str, dict[str, probes.Probed]]:
    """One pass over the utterances of all tasks; probes of what `views` makes of each.

    Args:
      views: an output of `Pretrained.encode` -> system -> features [layers, frames, channels].

    Returns:
      system -> task -> probes.
    """
    if not tasks:
        return {}
    rows = np.unique(np.concatenate([task.utterance for task in tasks.values()]))
    position = np.zeros(len(catalogue.id), np.int64)
    position[rows] = np.arange(len(rows))
    of_frames = {name: task for name, task in tasks.items() if task.frame is not None}
    chosen = {name: _by_utterance(task.utterance) for name, task in of_frames.items()}
    whole = {row for task in tasks.values() if task.frame is None for row in task.utterance}
    pooled: dict[str, np.ndarray] = {}
    frames: dict[tuple[str, str], np.ndarray] = {}
    for row, output in encode(model, catalogue, rows, title):
        for system, layers in views(output).items():
            layers = np.asarray(layers, np.float32)
            count, _, width = layers.shape
            if row in whole:
                if system not in pooled:
                    pooled[system] = np.zeros((count, len(rows), 2 * width), np.float32)
                pooled[system][:, position[row]] = probes.pooled(layers)
            for name, task in of_frames.items():
                if (system, name) not in frames:
                    shape = (count, len(task.targets), width)
                    frames[system, name] = np.zeros(shape, np.float32)
                examples = chosen[name].get(row)
                if examples is not None:
                    frames[system, name][:, examples] = layers[:, task.frame[examples]]
    strengths = model.config.evaluation.ridge
    systems = dict.fromkeys([*pooled, *(system for system, _ in frames)])
    result: dict[str, dict[str, probes.Probed]] = {system: {} for system in systems}
    for system, name in itertools.product(systems, tasks):
        task = tasks[name]
        if task.frame is None:
            features = pooled[system][:, position[task.utterance]]
        else:
            features = frames.pop((system, name))
        result[system][name] = probes.probe(
            features, task.targets, task.parts, task.tests, strengths
        )
    return result


def encode(
    model: Pretrained | Against,
    catalogue: Catalogue,
    rows: np.ndarray,
    title: str,
    names: tuple[str, ...] = ("surface", "log_mel", "layers"),
    masks: dict[int, np.ndarray] | None = None,
) -> Iterator[tuple[int, dict]]:
    """(row, output of `Pretrained.encode`) of every row, short utterances first.

    `masks`: row -> the frames that the encoder does not see, bool [frames]; None for none.
    """
    order = rows[np.argsort(catalogue.samples[rows], kind="stable")]
    with tqdm(total=len(order), desc=title, unit="utterance") as bar:
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            waveforms = [catalogue.read(row).waveform() for row in chunk]
            hidden = {} if masks is None else {"masks": [masks[row] for row in chunk]}
            outputs = model.encode(waveforms, names, **hidden)
            for row, output in zip(chunk, outputs, strict=True):
                yield row, output
                bar.update()


def sections(systems: dict, tasks: dict[str, Task]) -> dict:
    """Accuracies for evaluation.json: test -> section, or test -> shots -> section."""
    result: dict = {}
    for name, task in tasks.items():
        _, _, shots = name.partition(" ")
        for test, rows in task.tests.items():
            found = section({s: probed[name] for s, probed in systems.items()}, task, test)
            found["examples"] = {
                "train": int(np.mean([len(train) for train, _ in task.parts])),
                "validation": int(np.mean([len(held_out) for _, held_out in task.parts])),
                "test": len(rows),
            }
            if shots:
                result.setdefault(test, {})[shots] = found
            else:
                result[test] = found
    return result


def section(systems: dict[str, probes.Probed], task: Task, test: str) -> dict:
    """Means over the probe seeds and, beside them, their spread (sample standard deviation).

    `..._best` is the test accuracy of the layer that validation chose, `..._layer` that layer
    (from 0), seed by seed.
    """
    result: dict = {"classes": len(task.classes)}
    for system, probed in systems.items():
        if system in ("untrained", "trained", "against"):
            result[system], result[f"{system}_spread"] = _mean_and_spread(probed.tests[test])
            result[f"{system}_layer"] = probed.layer.tolist()
            system = f"{system}_best"
        result[system], result[f"{system}_spread"] = _mean_and_spread(probed.best(test))
    commonest = [np.bincount(task.targets[train]).argmax() for train, _ in task.parts]
    targets = task.targets[task.tests[test]]
    result["commonest_class"] = float(np.mean([(targets == c).mean() for c in commonest]))
    return result


def losses(config, first: dict, last: dict, left_out: list[str]) -> dict:
    """Sections of the validation set; `first` is the untrained model's row, `last` the trained."""
    result: dict = {"validation_fingerprint": last["fingerprint"]}
    if config.objective.decoder_weight:
        result["flow_matching_validation_loss"] = {
            "first": first["decoder_loss"],
            "last": last["decoder_loss"],
            "last_with_other_condition": last["decoder_loss_other_condition"],
        }
    else:
        left_out.append("flow_matching_validation_loss: the run has no decoder.")
    if config.encoder.depth:
        result["encoder_validation_loss"] = {
            "first": first["encoder_loss"],
            "last": last["encoder_loss"],
        }
        result["codebook_perplexity"] = {"mean": last["perplexity"], "min": last["perplexity_min"]}
        result["codebook_size"] = config.codebooks.size
    else:
        left_out.append("codebook_perplexity: the run's encoder has no layers, so no codebooks.")
    return result


def generation(model: Pretrained, catalogue: Catalogue, left_out: list[str]) -> dict:
    """Resynthesis and infilling of utterances outside of the split train, test before validation.

    Of those that are long enough; `evaluation.resyntheses` and `.infillings` say how many.
    """
    options = model.config.evaluation
    if not model.config.objective.decoder_weight:
        left_out.append("resynthesis and infilling: the run has no decoder.")
        return {}
    count = max(options.resyntheses, options.infillings)
    if not count:
        left_out.append("resynthesis and infilling: none were asked for.")
        return {}
    shortest = round(options.generation_seconds * model.config.features.sample_rate)
    long_enough = catalogue.samples >= shortest
    rows = [
        row
        for split in (labelled.TEST, labelled.VALIDATION)
        for row in np.flatnonzero(long_enough & (catalogue.split == split))
    ]
    records = [catalogue.read(row) for row in rows[:count]]
    result = score_generation(model, records)
    left_out += result.pop("left_out", [])
    return result


def _open(
    workdir, step: int | None, shards: str, validation: str, overrides: Sequence[str]
) -> Pretrained:
    model = pretrained.load(workdir, step)
    for override in overrides:
        configs.apply_override(model.config, override)
    configs.check(model.config)
    with model.config.unlocked():
        model.config.data.shards = shards
        model.config.data.validation = validation or model.config.data.validation
    return model


def validation_of(config) -> Callable[[Pretrained], dict] | None:
    """The training loop's validation pass for an opened run; None without a validation set.

    In small micro-batches, since a run's batch may have been that of many devices.
    """
    try:
        mixture = data.open_validation(config)
    except UserError as error:
        if not config.data.validation:
            raise
        raise UserError(
            f"the run's validation set can't be opened ({error}); name one by --validation."
        ) from error
    if mixture is None:
        return None
    config = config.copy_and_resolve_references()
    batch_size = config.training.batch_size
    parts = (n for n in range(1, batch_size + 1) if batch_size % n == 0)
    with config.unlocked():
        config.training.accumulation = next(n for n in parts if batch_size // n <= MICRO_BATCH)
    mesh = make_mesh(config.parallel, jax.devices()[:1])
    validate = make_validate(config, recipes.build(config), mesh, mixture)
    return lambda model: validate(model.params, model.constants, model.slots)


def _baseline_views(config) -> Callable[[dict], dict[str, np.ndarray]]:
    def views(output):
        mel = output["log_mel"]
        found = {
            "log_mel": mel[None],
            "log_mel_context": probes.with_context(mel, config.evaluation.context)[None],
            "untrained": output["layers"],
        }
        if config.features.name != "log_mel":
            found["surface"] = output["surface"][None]
        return found

    return views


def _layers_as(system: str) -> Callable[[dict], dict[str, np.ndarray]]:
    return lambda output: {system: output["layers"]}


def _by_utterance(utterance: np.ndarray) -> dict[int, np.ndarray]:
    """Row of the catalogue -> its examples."""
    order = np.argsort(utterance, kind="stable")
    rows, starts = np.unique(utterance[order], return_index=True)
    return dict(zip(rows, np.split(order, starts[1:]), strict=True))


def _mean_and_spread(values: np.ndarray) -> tuple:
    """Over the seeds, the first axis; as Python numbers or lists."""
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])
    return values.mean(0).tolist(), spread.tolist()


def _measure_name(task: str) -> str:
    classes, _, shots = task.partition(" ")
    if not shots:
        return task
    return {"label": "label_accuracy", "speaker": "speaker_accuracy_few_shot"}[classes]
