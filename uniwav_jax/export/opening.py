"""An exported directory, looked at before anything of it is loaded, and as a run again.

Nothing is unpickled and none of its code is run.
"""

import dataclasses
import json
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np

from uniwav_jax import config as configs
from uniwav_jax.errors import UserError
from uniwav_jax.export import card, directory, weights
from uniwav_jax.features import encodec
from uniwav_jax.recipes.uniwav import GROUP, SLOT
from uniwav_jax.tasks.pretrained import Pretrained
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.program import state_maker
from uniwav_jax.training.record import CODEC, write_run
from uniwav_jax.training.state import TrainState

# What `save_pretrained` adds to config.json, and a CTC head's own fields.
OTHERS = {
    *("transformers_version", "torch_dtype", "_name_or_path", "vocab_size", "ctc_loss_reduction"),
    *("ctc_zero_infinity", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("output_hidden_states", "return_dict", "output_attentions", "chunk_size_feed_forward"),
    *("is_encoder_decoder", "id2label", "label2id", "problem_type"),
}


# What directories that were exported before lack.
YOUNGER = {"inputs_to_logits_ratio"}


@dataclasses.dataclass(frozen=True)
class Export:
    """A directory that may be loaded.

    Attributes:
      folder: where it lies.
      training: what `card.facts` said of the run.
      config: the run's.
      statistics: of its features.
      abstract: shapes of its train state.
    """

    folder: pathlib.Path
    training: dict
    config: Any
    statistics: dict
    abstract: TrainState


def opened(folder: pathlib.Path) -> Export:
    """Checks everything but the weights' numbers; reads no array.

    Raises:
      UserError: a file is missing, damaged or not the one that was exported; a field of config.json
        is unknown or missing; a newer format; not all weights; tensors that do not fit the config.
    """
    held = _json(folder / "config.json", "export a run again")
    if held.get("model_type") != "uniwav":
        raise UserError(f"{folder}/config.json is not of a UniWav model.")
    number = held.get("format_version")
    if number != directory.FORMAT:
        raise UserError(
            f"{folder}/config.json has format {number}; this version reads {directory.FORMAT}."
        )
    training = held.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{folder}/config.json lacks `training`, which says what the run was.")
    if training.get("digest") != card.training_digest(training):
        raise UserError(
            f"{folder}/config.json: `training` is damaged: what it says of the run does not fit "
            "its digest; fetch it again."
        )
    if held.get("weights") != "all":
        raise UserError(
            f"{folder} holds the {held.get('weights')} alone; a run is made of an export of "
            "everything, without --weights."
        )
    try:
        config = configs.from_json(json.dumps(training["run"]["config"]))
        expected = directory.model_config(config, "all", training)
        abstract = jax.eval_shape(state_maker(config))
    except Exception as error:  # of any type: the values of the run's config reach every layer
        raise UserError(
            f"{folder}/config.json: `training` is damaged ({' '.join(str(error).split())}); fetch "
            "it again."
        ) from error
    unknown = sorted(held.keys() - expected.keys() - OTHERS)
    if unknown:
        raise UserError(f"{folder}/config.json has the unknown field '{unknown[0]}'; remove it.")
    compared = expected.keys() - {"architectures", "auto_map", "dtype", "training"}
    for name in sorted(compared - (YOUNGER - held.keys())):
        if held.get(name) != expected[name]:
            raise UserError(
                f"{folder}/config.json says {name} = {held.get(name)!r}, and the run's config "
                f"{expected[name]!r}; fetch it again."
            )
    preprocessing = _json(folder / "preprocessor_config.json", "save the feature extractor there")
    statistics = {name: preprocessing.get(name) for name in ("mean", "deviation")}
    for name, values in statistics.items():
        numbers = isinstance(values, list) and all(isinstance(x, (int, float)) for x in values)
        if not (numbers and len(values) == config.features.channels):
            raise UserError(f"{folder}/preprocessor_config.json lacks the statistic '{name}'.")
    _check_tensors(folder / directory.WEIGHTS_FILE, config, abstract)
    _check_digest(folder)
    codec = folder / directory.CODEC
    if "codec" in config.features and encodec.fingerprint(codec) != config.features.codec:
        raise UserError(f"{codec} is not the codec that was exported; fetch it again.")
    return Export(folder, training, config, statistics, abstract)


def state_of(export: Export) -> TrainState:
    """The train state with the exported weights, to the bit; the optimiser's begins anew."""
    from safetensors.numpy import load_file

    tensors = load_file(export.folder / directory.WEIGHTS_FILE)
    fresh = jax.device_get(jax.jit(state_maker(export.config))())
    params = weights.from_torch(tensors, export.abstract.params[GROUP])
    slots = dict(fresh.slots)
    if SLOT in slots:
        parts = ("teacher", "codebooks")
        taken = weights.from_torch(tensors, {name: slots[SLOT][name] for name in parts})
        slots[SLOT] = slots[SLOT] | taken
    return dataclasses.replace(
        fresh,
        step=np.asarray(export.training["step"], np.int32),
        params={GROUP: params},
        slots=slots,
    )


def as_run(export: Export, workdir: pathlib.Path) -> None:
    """Makes the run that was exported, with one checkpoint and a new optimiser's state.

    Raises:
      UserError: the folder exists.
    """
    if workdir.exists():
        raise UserError(f"--workdir {workdir} exists; name a new folder.")
    training = export.training
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{workdir.name}-", dir=workdir.parent) as beside:
        folder = pathlib.Path(beside) / "run"
        meta = {"config": export.config.to_dict(), "statistics": export.statistics}
        data = training["data"] | {"memory": "{}"}
        with Checkpoints(folder / "checkpoints", export.config, writer=True) as checkpoints:
            state = jax.tree.map(jax.numpy.asarray, state_of(export))
            checkpoints.save(training["step"], state, data, meta | training["meta"])
        if "codec" in export.config.features:
            encodec.keep(export.folder / directory.CODEC, folder / CODEC)
        run = {"extended": [], "excluded": "", "imported": True, **training["run"]}
        write_run(folder, run | {"config": export.config.to_dict()})
        shutil.move(folder, workdir)


def _check_tensors(path: pathlib.Path, config, abstract: TrainState) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}, so no weights; copy it there.")
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: tuple(one.get_shape()) for name, one in slices.items()}
            dtypes = {name: one.get_dtype() for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again.") from error
    # Arrays of one number, repeated without taking memory.
    empty = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)
    like = Pretrained(config, 0, empty.params, empty.slots, {})
    expected = {name: x.shape for name, x in directory.tensors(like).items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{path}: the tensor {name} has shape {found.get(name, 'none')}, and the config "
                f"asks for {expected.get(name, 'none')}; fetch it again."
            )
    strange = sorted(name for name, dtype in dtypes.items() if dtype not in ("F32", "F64"))
    if strange:
        raise UserError(
            f"{path}: the tensor {strange[0]} is {dtypes[strange[0]]}; a run is made of float32 or "
            "float64."
        )


def _check_digest(folder: pathlib.Path) -> None:
    path = folder / "parity.json"
    if not path.is_file():
        return  # saved again from PyTorch, where nobody compared
    expected = _json(path, "fetch it again").get("sha256")
    for name, digest in directory.digests(folder).items():
        if not isinstance(expected, dict) or expected.get(name) != digest:
            raise UserError(
                f"{folder}/{name} is not what parity.json was measured on; fetch both again, or "
                f"remove parity.json if {name} was changed on purpose."
            )


def _json(path: pathlib.Path, remedy: str) -> dict:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; {remedy}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}.")
    return found
