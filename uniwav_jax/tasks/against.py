"""Another model, out of a local Hugging Face directory, on the frames of a run.

Nothing is downloaded or unpickled, and no code of the directory runs: the model is one that
transformers knows, or an export of ours whose code is the same as here.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.files import file_digest
from uniwav_jax.errors import UserError
from uniwav_jax.export import directory
from uniwav_jax.export.directory import WEIGHTS_FILE as WEIGHTS

EXTRACTOR = "preprocessor_config.json"
# Stands for masked frames in training; public checkpoints may lack it.
UNUSED = {"masked_spec_embed"}


def load_against(folder, config) -> "Against":
    """Opens a directory of `save_pretrained` or of our `export`.

    Args:
      folder: with config.json and model.safetensors; preprocessor_config.json, if it is there,
        says how waveforms are prepared.
      config: the run's.

    Raises:
      UserError: no such directory, files that are missing or damaged, a model that transformers
        does not know or that does not give hidden states at the frames its config tells, another
        sample rate than the run's; torch or transformers is not installed.
    """
    folder = pathlib.Path(folder)
    model_type = _model_type(folder)
    torch, (config_class, extractor_class, model_class) = _classes(folder, model_type)
    options = {"local_files_only": True, "trust_remote_code": False}
    extractor = None
    with _faults(folder):
        theirs = config_class.from_pretrained(folder, **options)
        if (folder / EXTRACTOR).is_file():
            extractor = extractor_class.from_pretrained(folder, **options)
        frames = _frames(folder, theirs, extractor)
    ours = config.features.sample_rate
    if extractor is not None and extractor.sampling_rate != ours:
        raise UserError(
            f"--against {folder} takes audio of {extractor.sampling_rate} Hz and the shards have "
            f"{ours} Hz; name a model for that sample rate."
        )
    with _faults(folder):
        # Told to be eager, for a config can name an implementation that is fetched from the hub.
        model, found = model_class.from_pretrained(
            folder,
            config=theirs,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **options,
        )
    missing = sorted(set(found["missing_keys"]) - UNUSED)
    if missing:
        raise UserError(
            f"{folder / WEIGHTS} lacks {len(missing)} weights of the model that config.json "
            f"describes ({missing[0]}, ...); save the model again."
        )

    def prepare(waveform: np.ndarray):
        if extractor is None:
            return torch.from_numpy(waveform)[None]
        prepared = extractor(waveform, sampling_rate=ours, return_tensors="pt")
        return prepared[extractor.model_input_names[0]]

    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    against = Against(config, folder, frames, prepare, model, about={})
    with _faults(folder):
        noise = np.random.default_rng(0).normal(size=ours).astype(np.float32)
        (output,) = against.encode([noise])
    about = {
        "name": folder.resolve().name,
        "model_type": model_type,
        "layers": len(output["layers"]),
        "feature_extractor": None if extractor is None else type(extractor).__name__,
        "weights_sha256": file_digest(folder / WEIGHTS),
    }
    return dataclasses.replace(against, about=about)


def nearest(ours: "Frames", theirs: "Frames", samples: int) -> np.ndarray:
    """For each of our frames the one of theirs whose centre is nearest, the earlier of two.

    int64 [our frames]; beyond their first and last frame these are repeated.
    """
    centres = theirs.centres(max(samples, theirs.least))
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, ours.centres(samples))


def convolved(kernels: Sequence[int], strides: Sequence[int]) -> "Frames":
    """Frames of a stack of convolutions without padding."""
    hop, field = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return Frames(hop, field, least=field)


def hopped(hop: int) -> "Frames":
    """Frames of features like ours: centred on their hop, the last one perhaps not full."""
    return Frames(hop, field=hop, least=1)


def _model_type(folder: pathlib.Path) -> str:
    """What config.json says, once the directory holds what is needed, its weights whole."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise UserError(
            f"--against {folder}: there is no such directory; name one on this machine, for "
            "nothing is downloaded."
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"--against {folder} has no config.json; name a Hugging Face directory.")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "pytorch_model.bin").is_file()
        how = "convert its pytorch_model.bin: load it and" if pickled else "load the model and"
        raise UserError(f"--against {folder} has no {WEIGHTS}; {how} call save_pretrained.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is no JSON: {error}.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / 'config.json'} names no model_type; save the model again.")
    try:
        with safe_open(folder / WEIGHTS, framework="numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS} is damaged ({error}); copy it again.") from error
    return config["model_type"]


def _classes(folder: pathlib.Path, model_type: str) -> tuple[Any, tuple]:
    """torch; the classes of config, feature extractor and model."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            "--against needs torch and transformers; install them with pip install -e '.[export]'."
        ) from error
    if model_type == "uniwav":
        from uniwav_jax.export.huggingface import configuration_uniwav as configuration
        from uniwav_jax.export.huggingface import feature_extraction_uniwav as extraction
        from uniwav_jax.export.huggingface import feature_extraction_uniwav_encodec as latents
        from uniwav_jax.export.huggingface import modeling_uniwav as modeling

        code = directory.CODE
        if (folder / directory.CODEC).is_dir():
            code = (*code, directory.ENCODEC_CODE)
        for name in (*(source.name for source in code), EXTRACTOR):
            if not (folder / name).is_file():
                raise UserError(f"--against {folder} has no {name}; export the run again.")
        for source in code:
            if file_digest(folder / source.name) != file_digest(source):
                raise UserError(
                    f"{folder / source.name} is not the code of this version; export the run again."
                )
        return torch, (
            configuration.UniWavConfig,
            latents.UniWavEncodecFeatureExtractor
            if directory.ENCODEC_CODE in code
            else extraction.UniWavFeatureExtractor,
            modeling.UniWavModel,
        )
    if model_type not in transformers.CONFIG_MAPPING:
        raise UserError(
            f"--against {folder} is a {model_type!r}, which transformers "
            f"{transformers.__version__} does not know; name a model that it has."
        )
    return torch, (
        transformers.AutoConfig,
        transformers.AutoFeatureExtractor,
        transformers.AutoModel,
    )


def _frames(folder: pathlib.Path, theirs, extractor) -> "Frames":
    if theirs.model_type == "uniwav":
        return hopped(extractor.hop)
    stack = [getattr(theirs, name, None) for name in ("conv_kernel", "conv_stride")]
    if not all(isinstance(values, (list, tuple)) for values in stack):
        raise UserError(
            f"--against {folder}: the config of a {theirs.model_type!r} does not tell where its "
            "frames lie; name a model that takes waveforms and has conv_kernel and conv_stride, "
            "as HuBERT, WavLM and data2vec-audio have."
        )
    return convolved(*stack)


@contextlib.contextmanager
def _faults(folder: pathlib.Path) -> Iterator[None]:
    """Says in one sentence what transformers raises on configs and weights: errors of any type."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"--against {folder} can't be used ({reason}).") from error


@dataclasses.dataclass(frozen=True)
class Frames:
    """Where frames lie: frame j covers `field` samples from sample hop j on.

    Attributes:
      hop: samples from one frame to the next.
      field: samples that a frame covers.
      least: how many of them the last frame must have.
    """

    hop: int
    field: int
    least: int

    def count(self, samples: int) -> int:
        """Frames of so many samples."""
        return (samples - self.least) // self.hop + 1

    def centres(self, samples: int) -> np.ndarray:
        """In samples, float64 [frames]."""
        return self.hop * np.arange(self.count(samples)) + self.field / 2


@dataclasses.dataclass(frozen=True)
class Against:
    """An opened model; `encode` gives what `Pretrained.encode` gives.

    Attributes:
      config: the run's.
      folder: the directory.
      frames: where its frames lie.
      prepare: waveform float32 [samples] -> what the model takes, a batch of one.
      model: in float32, for inference.
      about: for evaluation.json: name, model_type, layers, feature_extractor (null: waveforms are
        taken as they are) and weights_sha256.
    """

    config: Any
    folder: pathlib.Path
    frames: Frames
    prepare: Callable[[np.ndarray], Any]
    model: Any
    about: dict

    def encode(
        self, waveforms: Sequence[np.ndarray], names: tuple[str, ...] = ("layers",)
    ) -> Iterator[dict[str, np.ndarray]]:
        """Hidden states of whole utterances on the run's frames, in the given order.

        One by one: padding changes what group norms and data2vec's convolutions make of the other
        samples, and batches of eight were no faster on two CPU cores.

        Args:
          waveforms: float32 [samples] each, any length >= 1; zeros are added to those that are too
            short for a frame.
          names: of `Pretrained.encode`; there are none but the layers.

        Yields:
          layers float32 [layers, frames, width]: what the model calls hidden_states, without the
          first (which comes before the layers) unless it is the only one.

        Raises:
          UserError: no hidden states, or not as many frames as the config tells.
        """
        import torch

        ours = hopped(self.config.features.hop)
        for waveform in waveforms:
            padded = np.pad(waveform, (0, max(0, self.frames.least - len(waveform))))
            with torch.inference_mode():
                prepared = self.prepare(padded).to(self.model.device)
                found = getattr(
                    self.model(prepared, output_hidden_states=True), "hidden_states", None
                )
            if not found:
                raise UserError(f"--against {self.folder}: the model returns no hidden states.")
            hidden = torch.stack(found)[:, 0].cpu().numpy()
            expected = self.frames.count(len(padded))
            if hidden.shape[1] != expected:
                raise UserError(
                    f"--against {self.folder} makes {hidden.shape[1]} frames of {len(padded)} "
                    f"samples where its config tells {expected}, so they can't be aligned; name "
                    "another model."
                )
            hidden = hidden[1:] if len(hidden) > 1 else hidden
            yield {"layers": hidden[:, nearest(ours, self.frames, len(waveform))]}
