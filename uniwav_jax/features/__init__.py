"""Surface features: waveform -> x [batch, frames, channels] and back."""

from uniwav_jax.errors import UserError
from uniwav_jax.features.log_mel import LogMel


def build(config) -> LogMel:
    """The feature that `config.features` names.

    Raises:
      UserError: an unknown name.
    """
    features = config.features
    if features.name != "log_mel":
        raise UserError(f"features.name = '{features.name}' is unknown; choose 'log_mel'.")
    return LogMel(
        sample_rate=features.sample_rate,
        hop=features.hop,
        window=features.window,
        channels=features.channels,
        low_hz=features.low_hz,
        high_hz=features.high_hz,
        floor=features.floor,
    )
