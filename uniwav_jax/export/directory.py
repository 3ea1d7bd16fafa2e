"""A run as a Hugging Face directory: weights, configs, code, and what the run was."""

import dataclasses
import pathlib
import shutil

import numpy as np

from data_pipelines.files import file_digest, write_json, write_tensors
from uniwav_jax.errors import UserError
from uniwav_jax.export import weights
from uniwav_jax.features import encodec
from uniwav_jax.recipes.uniwav import GROUP, SLOT
from uniwav_jax.tasks.pretrained import Pretrained

FORMAT = 1
WEIGHTS = ("all", "student", "teacher")
WEIGHTS_FILE = "model.safetensors"
# Decide the numbers: parity.json was measured on these, and keeps their digests.
MEASURED = (WEIGHTS_FILE, "config.json", "preprocessor_config.json")
# The code that a directory carries beside weights and configs.
HERE = pathlib.Path(__file__).parent
CODE = (
    HERE / "huggingface" / "configuration_uniwav.py",
    HERE / "huggingface" / "layers_uniwav.py",
    HERE / "huggingface" / "modeling_uniwav.py",
    HERE / "huggingface" / "feature_extraction_uniwav.py",
    HERE / "s3prl" / "expert.py",
    HERE / "s3prl" / "hubconf.py",
)
# Of a run on EnCodec latents the code of its features too, and the codec.
ENCODEC_CODE = HERE / "huggingface" / "feature_extraction_uniwav_encodec.py"
CODEC = "codec"


def tensors(pretrained: Pretrained, chosen: str = "all") -> dict[str, np.ndarray]:
    """Name -> array of what is exported.

    Args:
      pretrained: the run.
      chosen: "all"; "student", without what finds codewords; or "teacher", whose layers then are
        the encoder's, without what only the student has (final norm, heads, decoder).

    Raises:
      UserError: an encoder without layers has no teacher.
    """
    params, slot = pretrained.params[GROUP], pretrained.slots.get(SLOT)
    if chosen == "teacher":
        if slot is None:
            raise UserError("this run has no teacher: its encoder has no layers.")
        encoder = {**params["encoder"], "layers": slot["teacher"]}
        del encoder["final_norm"]
        return weights.to_torch({"encoder": encoder, "codebooks": slot["codebooks"]})
    student = {**params, "heads": {}} if chosen == "student" else params
    held = {"teacher": slot["teacher"], "codebooks": slot["codebooks"]} if slot else {}
    return weights.to_torch(student | (held if chosen == "all" else {}))


def shown_by(pretrained: Pretrained, chosen: str) -> Pretrained:
    """A run whose encoder is the one that an export shows."""
    if chosen != "teacher":
        return pretrained
    params = pretrained.params[GROUP]
    encoder = {**params["encoder"], "layers": pretrained.slots[SLOT]["teacher"]}
    changed = {**pretrained.params, GROUP: {**params, "encoder": encoder}}
    return dataclasses.replace(pretrained, params=changed)


def model_config(config, chosen: str, training: dict) -> dict:
    """config.json; `training` says what the run was (`card.facts`)."""
    layers = config.encoder.depth
    codewords = layers and chosen != "student"
    decoder = config.objective.decoder_weight and chosen != "teacher"
    return {
        "architectures": ["UniWavModel"],
        "auto_map": {
            "AutoConfig": "configuration_uniwav.UniWavConfig",
            "AutoModel": "modeling_uniwav.UniWavModel",
            "AutoModelForCTC": "modeling_uniwav.UniWavForCTC",
        },
        "model_type": "uniwav",
        "dtype": str(config.training.parameter_dtype),
        "format_version": FORMAT,
        "channels": config.features.channels,
        "inputs_to_logits_ratio": config.features.hop,
        "encoder_depth": layers,
        "encoder_width": config.encoder.width,
        "encoder_heads": config.encoder.heads,
        "positions": config.encoder.positions,
        "position_layers": config.encoder.position_layers,
        "position_groups": config.encoder.position_groups,
        "position_kernel": config.encoder.position_kernel,
        "weights": chosen,
        "targets": config.teacher.targets if codewords else 0,
        "codewords": config.codebooks.size,
        "decoder_depth": config.decoder.depth if decoder else 0,
        "decoder_width": config.decoder.width,
        "decoder_heads": config.decoder.heads,
        "time_channels": config.decoder.time_channels,
        "sigma_min": config.decoder.sigma_min,
        "training": training,
    }


def extractor_config(config, statistics: dict) -> dict:
    """preprocessor_config.json, but for the digest of a codec."""
    features = config.features
    module, name = "feature_extraction_uniwav", "UniWavFeatureExtractor"
    own = {each: features.get(each) for each in ("window", "low_hz", "high_hz", "floor")}
    if features.name == "encodec":
        module, name, own = ENCODEC_CODE.stem, "UniWavEncodecFeatureExtractor", {}
    return {
        "auto_map": {"AutoFeatureExtractor": f"{module}.{name}"},
        "feature_extractor_type": name,
        "feature_size": features.channels,
        "sampling_rate": features.sample_rate,
        "padding_value": 0.0,
        "hop": features.hop,
        **own,
        "mean": np.asarray(statistics["mean"], np.float64).tolist(),
        "deviation": np.asarray(statistics["deviation"], np.float64).tolist(),
    }


def digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each of `MEASURED`, for parity.json."""
    return {name: file_digest(folder / name) for name in MEASURED}


def write(
    pretrained: Pretrained, output: pathlib.Path, chosen: str = "all", training: dict | None = None
) -> None:
    """Writes what `AutoModel.from_pretrained(output, trust_remote_code=True)` reads.

    Raises:
      UserError: the run's codec is not there as safetensors.
    """
    output.mkdir(parents=True, exist_ok=True)
    for source in CODE:
        shutil.copyfile(source, output / source.name)
    write_json(output / "config.json", model_config(pretrained.config, chosen, training))
    preprocessing = extractor_config(pretrained.config, pretrained.statistics)
    if pretrained.config.features.name == "encodec":
        shutil.copyfile(ENCODEC_CODE, output / ENCODEC_CODE.name)
        preprocessing["codec_sha256"] = _write_codec(pretrained.config, output / CODEC)
    write_json(output / "preprocessor_config.json", preprocessing)
    held = {name: np.ascontiguousarray(x) for name, x in tensors(pretrained, chosen).items()}
    write_tensors(output / WEIGHTS_FILE, held, metadata={"format": "pt"})


def _write_codec(config, folder: pathlib.Path) -> str:
    """Copies a run's codec; returns the digest of its weights."""
    source = pathlib.Path(config.features.weights)
    if not (source / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{source} has no {WEIGHTS_FILE}, and an export carries nothing that is unpickled; "
            "save the codec there again with transformers' save_pretrained."
        )
    encodec.keep(source, folder)
    return file_digest(folder / WEIGHTS_FILE)
