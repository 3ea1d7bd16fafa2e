"""Configs: a Python file that returns a ConfigDict, typed overrides, identity and free fields."""

import ast
import contextlib
import difflib
import importlib.util
import json
import pathlib
import sys
from collections.abc import Iterator

import ml_collections

from uniwav_jax.errors import UserError

# What may change at a restart. Everything else is identity: a run with another value is another.
FREE = (
    "data.shards",  # where the data lie; which data they are is the fingerprint's business
    "data.exclude",
    "data.validation",
    "data.workers",
    "data.reads_in_flight",
    "data.damaged_fraction",
    "features.weights",  # where the codec lies; which one it is, features.codec says
    "features.mel",
    "training.accumulation",
    "training.non_finite_limit",
    "training.collapse_perplexity",
    "training.chip_hours",
    "parallel",
    "checkpoint",
    "telemetry",
    "evaluation",
)

POSITIVE = (
    "training.steps",
    "training.batch_size",
    "training.accumulation",
    "training.non_finite_limit",
    "encoder.width",
    "decoder.width",
    "decoder.time_channels",
    "masking.span",
    "teacher.decay_updates",
    "codebooks.size",
    "data.crop_frames",
    "data.reads_in_flight",
    "checkpoint.every",
    "telemetry.log_every",
    "telemetry.validate_every",
    "telemetry.validation_batches",
    "telemetry.samples_every",
    "telemetry.spike_window",
    "evaluation.utterances",
    "evaluation.frames",
    "evaluation.seeds",
    "evaluation.stripe_frames",
)
NOT_NEGATIVE = (
    "encoder.depth",
    "decoder.depth",
    "checkpoint.keep_every",
    "telemetry.samples",
    "evaluation.context",
    "evaluation.resyntheses",
    "evaluation.infillings",
    "evaluation.griffin_lim_iterations",
)


PARAMETER_DTYPES = ("float32", "float64", "bfloat16")


def load_config(spec: str, overrides: list[str] = ()) -> ml_collections.ConfigDict:
    """Loads "FILE.py" or "FILE.py:argument" and applies overrides like "training.steps=20".

    Raises:
      UserError: no such file, no `get_config`, an argument or override that does not fit.
    """
    config = call(spec, "get_config", "--config")
    for override in overrides:
        apply_override(config, override)
    return config


def call(spec: str, function: str, flag: str):
    """What a function of "FILE.py" or "FILE.py:argument" returns.

    Args:
      spec: the file, and what the function is called with, if anything.
      function: its name.
      flag: of the command line, for what is said of faults.

    Raises:
      UserError: no such file or function, or an argument that does not fit.
    """
    name, _, argument = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"{flag} {name}: no such file; configs/ holds the recipes.")
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    with _recipes_of(_root(path.resolve())):
        module_spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise UserError(f"{flag} {name} has no {function}(); recipes define one.")
        try:
            return getattr(module, function)(*([argument] if argument else []))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{flag} {spec}: {error}") from error


def _root(path: pathlib.Path) -> pathlib.Path:
    """The folder that has the recipe's `configs`; of a file elsewhere the one above its own."""
    inside = [parent.parent for parent in path.parents if parent.name == "configs"]
    return inside[0] if inside else path.parent.parent


@contextlib.contextmanager
def _recipes_of(root: pathlib.Path) -> Iterator[None]:
    """Recipe files import each other as `configs.…`: those below `root`, of no other checkout."""

    def taken() -> dict:
        names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
        return {name: sys.modules.pop(name) for name in names}

    before = taken()
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        taken()
        sys.modules.update(before)


def apply_override(config: ml_collections.ConfigDict, override: str) -> None:
    """Sets one existing field from "name.name=value"; the value takes the field's type.

    Raises:
      UserError: no such field (the nearest is named), or a value of another type.
    """
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--config.{name} has no value; write --config.{name}=VALUE.")
    fields = flatten(config)
    if name not in fields:
        nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
        raise UserError(f"--config.{name}: there is no such field; the nearest is '{nearest[0]}'.")
    value = parse_value(name, text, fields[name])
    *parents, last = name.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value


def parse_value(name: str, text: str, current):
    """`text` as a value of `current`'s type.

    Raises:
      UserError: it can't be read as one.
    """
    kind = type(current)
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        lowered = {"true": True, "false": False}.get(text.lower())
        value = text if lowered is None else lowered
    if kind is tuple and not isinstance(value, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
    if kind is float and type(value) is int:
        value = float(value)
    if kind is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        raise UserError(f"--config.{name}={text} is not a {kind.__name__}, as the field is.")
    return value


def flatten(config) -> dict:
    """Nested fields as {"training.steps": 2000, ...}, sorted; takes ConfigDicts and dicts."""
    result = {}
    for key, value in config.items():
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            result |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            result[key] = tuple(value) if isinstance(value, list) else value
    return dict(sorted(result.items()))


def is_free(name: str) -> bool:
    """Whether the field may change at a restart."""
    return any(name == free or name.startswith(free + ".") for free in FREE)


def difference(old, new) -> dict[str, tuple]:
    """Fields that differ: name -> (old, new); a field that one side lacks is None there."""
    old, new = flatten(old), flatten(new)
    names = sorted(old.keys() | new.keys())
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def identity_difference(old, new) -> dict[str, tuple]:
    """Those of `difference` that make it another run."""
    return {name: pair for name, pair in difference(old, new).items() if not is_free(name)}


def to_json(config) -> str:
    """The resolved config as JSON text; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """Inverse of `to_json`; lists become tuples, as in recipe files."""

    def tuples(node):
        if isinstance(node, dict):
            return {key: tuples(value) for key, value in node.items()}
        return tuple(map(tuples, node)) if isinstance(node, list) else node

    return ml_collections.ConfigDict(tuples(json.loads(text))).lock()


def check(config) -> None:
    """Raises UserError for values that no run can have."""
    from uniwav_jax.objectives.flow_matching import solver_steps  # brings JAX

    fields = flatten(config)
    for name in POSITIVE:
        if fields[name] < 1:
            raise UserError(f"{name} = {fields[name]} must be at least 1.")
    for name in NOT_NEGATIVE:
        if fields[name] < 0:
            raise UserError(f"{name} = {fields[name]} must not be negative.")
    for name in ("encoder.dropout", "encoder.layer_drop", "decoder.dropout"):
        if not 0 <= fields[name] < 1:
            raise UserError(f"{name} = {fields[name]} must be at least 0 and below 1.")
    if not 0 < fields["masking.fraction"] <= 1:
        raise UserError(
            f"masking.fraction = {fields['masking.fraction']} must be above 0 and at most 1."
        )
    if fields["training.parameter_dtype"] not in PARAMETER_DTYPES:
        raise UserError(
            f"training.parameter_dtype = '{fields['training.parameter_dtype']}' is unknown; choose "
            f"one of {PARAMETER_DTYPES}."
        )
    # What only samples and evaluations use would otherwise stop a run hours later.
    try:
        solver_steps(config.evaluation.evaluations, config.evaluation.solver)
    except UserError as error:
        raise UserError(f"evaluation.evaluations and evaluation.solver: {error}") from error
    if fields["checkpoint.keep"] < 2:
        raise UserError(
            f"checkpoint.keep = {fields['checkpoint.keep']} must be at least 2, since the newest "
            "checkpoint may be damaged."
        )
    for half in ("encoder", "decoder"):
        width, heads = fields[f"{half}.width"], fields[f"{half}.heads"]
        if heads < 1 or width % heads:
            raise UserError(f"{half}.width = {width} is not divisible by {half}.heads = {heads}.")
        if width // heads % 2 and (half == "decoder" or "rope" in fields["encoder.positions"]):
            raise UserError(
                f"{half}.width / {half}.heads = {width // heads} must be even: rotary positions "
                "turn pairs of channels."
            )
    if fields["decoder.time_channels"] % 2:
        raise UserError(
            f"decoder.time_channels = {fields['decoder.time_channels']} must be even: sines and "
            "cosines of the time."
        )
    width, groups = fields["encoder.width"], fields["encoder.position_groups"]
    if "conv" in fields["encoder.positions"] and (groups < 1 or width % groups):
        raise UserError(
            f"encoder.width = {width} is not divisible by encoder.position_groups = {groups}."
        )
    if config.data.crop_frames < config.masking.shortest:
        raise UserError(
            f"data.crop_frames = {config.data.crop_frames} is below masking.shortest = "
            f"{config.masking.shortest}; nothing could be trained on."
        )
