"""Surface features: a batch or a waveform -> x [batch, frames, channels], and back."""

import numpy as np

from uniwav_jax.errors import UserError
from uniwav_jax.features.encodec.feature import ComputedLatents, StoredLatents
from uniwav_jax.features.interface import Feature
from uniwav_jax.features.log_mel import LogMel

LATENTS = {"stored": StoredLatents, "computed": ComputedLatents}
NAMES = ("log_mel", "encodec")
# Fields of `config.features` that say nothing of what the features are.
NOT_MEASURED = ("weights", "latents", "mel", "statistics_positions", "deviation_floor")


def build(config) -> Feature:
    """The feature that `config.features` names; reads no weights.

    Raises:
      UserError: an unknown name, or fields that belong to another feature.
    """
    features = config.features
    if features.name not in NAMES:
        raise UserError(
            f"features.name = '{features.name}' is unknown; choose 'log_mel' or 'encodec'."
        )
    if ("codec" in features) != (features.name == "encodec"):
        raise UserError(
            f"features.name = '{features.name}' has other fields than these; choose the feature in "
            "--config FILE.py:features=encodec,encodec_weights=DIR, or without that for log_mel."
        )
    if features.name == "log_mel":
        return log_mel(config)
    if features.latents not in LATENTS:
        raise UserError(
            f"features.latents = '{features.latents}' is unknown; choose 'stored' or 'computed'."
        )
    return LATENTS[features.latents](
        sample_rate=features.sample_rate,
        hop=features.hop,
        channels=features.channels,
        codec=features.codec,
        weights=features.weights,
    )


def log_mel(config) -> LogMel:
    """Log-mel at the frames of a config's feature, to draw and to compare with; the feature itself
    where it is log-mel."""
    features = config.features
    mel = features if features.name == "log_mel" else features.mel
    return LogMel(
        sample_rate=features.sample_rate,
        hop=features.hop,
        window=mel.window,
        channels=mel.channels,
        low_hz=mel.low_hz,
        high_hz=mel.high_hz,
        floor=mel.floor,
    )


def frozen(config) -> dict:
    """What a config's feature takes beside batches: {"codec": ...} or nothing; host arrays.

    Raises:
      UserError: it can't be read, or is not what the config says.
    """
    return build(config).frozen(np.promote_types(config.training.parameter_dtype, np.float32))


def same(config, other) -> bool:
    """Whether statistics of one config's features are of use to the other's."""
    one, two = (
        {name: value for name, value in features.items() if name not in NOT_MEASURED}
        for features in (config.features.to_dict(), other.features.to_dict())
    )
    return one == two
