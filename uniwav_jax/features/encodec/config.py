"""What an EnCodec network is made of, from the config.json of a Hugging Face directory.

SEANet (Défossez et al., "High Fidelity Neural Audio Compression", 2022): convolutions that halve
the rate stage by stage, residual blocks between them, an LSTM at the lowest rate; the decoder is
its mirror image.
"""

import dataclasses
import functools
import json
import math
import pathlib

from uniwav_jax.errors import UserError

CONFIG = "config.json"
PADDINGS = ("reflect", "constant")
# Least and most of every count; the most keeps a damaged file from asking for a network that no
# memory holds.
COUNTS = {
    "sampling_rate": (1, 1_000_000),
    "hidden_size": (1, 65_536),
    "num_filters": (1, 65_536),
    "num_residual_layers": (0, 16),
    "kernel_size": (1, 1024),
    "last_kernel_size": (1, 1024),
    "residual_kernel_size": (1, 1024),
    "dilation_growth_rate": (1, 1024),
    "compress": (1, 65_536),
    "num_lstm_layers": (1, 64),
}
WIDEST_DILATION = 4096
STAGES = (1, 12)
RATIOS = (1, 256)
# The only value that is computed here, and why another is not.
FIXED = {
    "audio_channels": (1, "speech has one channel"),
    "norm_type": (
        "weight_norm",
        "a norm over the whole waveform can't be computed chunk by chunk, and needs what comes "
        "after a crop",
    ),
    "normalize": (False, "a level over the whole waveform can't be known chunk by chunk"),
    "chunk_length_s": (None, "chunks that are coded each by itself have no common latents"),
}


def read_geometry(directory: pathlib.Path) -> "Geometry":
    """The geometry in DIRECTORY/config.json; fields that are absent have EncodecConfig's defaults.

    Raises:
      UserError: no such file, damaged, of another model, or of a network that is not supported.
    """
    path = pathlib.Path(directory) / CONFIG
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist: name a local directory with {CONFIG} and weights."
        ) from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): copy it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no fields: copy it again.")
    if content.get("model_type") != "encodec":
        raise UserError(
            f"{path}: model_type = {content.get('model_type')!r} is not 'encodec'; name the "
            "directory of an EnCodec network."
        )
    for name, (value, why) in FIXED.items():
        found = content.get(name, value)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise UserError(f"{path}: {name} = {found!r} is not supported, {value!r} is: {why}.")
    names = [field.name for field in dataclasses.fields(Geometry) if field.name in content]
    geometry = Geometry(**{name: _checked(path, name, content[name]) for name in names})
    _check_together(path, geometry)
    return geometry


def _check_together(path: pathlib.Path, geometry: "Geometry") -> None:
    """Raises UserError for fields that contradict each other."""
    if geometry.trim_right_ratio != 1 and not geometry.use_causal_conv:
        raise UserError(
            f"{path}: trim_right_ratio = {geometry.trim_right_ratio} needs use_causal_conv = true; "
            "without it, it has to be 1."
        )
    if geometry.num_filters < geometry.compress:
        raise UserError(
            f"{path}: compress = {geometry.compress} leaves nothing of num_filters = "
            f"{geometry.num_filters}; it can be that much at most."
        )
    blocks = geometry.num_residual_layers
    if geometry.dilation_growth_rate ** max(blocks - 1, 0) > WIDEST_DILATION:
        raise UserError(
            f"{path}: dilation_growth_rate = {geometry.dilation_growth_rate} with "
            f"num_residual_layers = {blocks} gives dilations over {WIDEST_DILATION}; check both."
        )


def _checked(path: pathlib.Path, name: str, value):
    """A field's value, or the sentence of what is wrong with it."""

    def is_count(x, low, high):
        return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high

    if name in COUNTS:
        low, high = COUNTS[name]
        fits, wanted = is_count(value, low, high), f"a whole number from {low} to {high}"
    elif name == "upsampling_ratios":
        fits = (
            isinstance(value, list)
            and is_count(len(value), *STAGES)
            and all(is_count(ratio, *RATIOS) for ratio in value)
        )
        wanted = f"a list of {STAGES[0]} to {STAGES[1]} whole numbers up to {RATIOS[1]}"
        value = tuple(value) if fits else value
    elif name == "pad_mode":
        fits, wanted = value in PADDINGS, f"one of {PADDINGS}"
    elif name == "trim_right_ratio":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, wanted = number and 0 <= value <= 1, "a number from 0 to 1"
        value = float(value) if fits else value
    else:
        fits, wanted = isinstance(value, bool), "true or false"
    if not fits:
        raise UserError(f"{path}: {name} = {value!r} is not supported; it has to be {wanted}.")
    return value


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution of [time, inputs] after padding by so many positions on the left and right.

    On the right there are up to `stride` - 1 more, so that every input position counts: n
    positions become ceil(n / stride).
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    left: int
    right: int
    reflect: bool

    @property
    def reach(self) -> int:
        """Positions from the first tap to the last, both included."""
        return (self.kernel - 1) * self.dilation + 1


@dataclasses.dataclass(frozen=True)
class Upsample:
    """A transposed convolution, kernel 2 `ratio`, stride `ratio`: n positions become n * ratio.

    Of its `ratio` surplus outputs the first `left` are dropped, the rest at the end.
    """

    inputs: int
    outputs: int
    ratio: int
    left: int


@dataclasses.dataclass(frozen=True)
class Lstm:
    """Layers of an LSTM whose input is added to the output."""

    width: int
    layers: int


@dataclasses.dataclass(frozen=True)
class Elu:
    """ELU with alpha 1."""


@dataclasses.dataclass(frozen=True)
class Residual:
    """`block` plus `shortcut`; the latter is the identity if None."""

    block: tuple
    shortcut: Conv | None


@dataclasses.dataclass(frozen=True)
class Network:
    """Layers in the order and under the indices of Hugging Face's; one of them is an `Lstm`.

    `input_rate` and `output_rate` are positions a frame: the hop, or 1.
    """

    layers: tuple
    input_rate: int
    output_rate: int

    @property
    def middle(self) -> int:
        """The index of the LSTM, which works at the rate of frames."""
        return [isinstance(layer, Lstm) for layer in self.layers].index(True)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Fields of transformers' EncodecConfig, under its names and with its defaults."""

    sampling_rate: int = 24_000
    hidden_size: int = 128
    num_filters: int = 32
    num_residual_layers: int = 1
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_growth_rate: int = 2
    use_causal_conv: bool = True
    pad_mode: str = "reflect"
    compress: int = 2
    num_lstm_layers: int = 2
    trim_right_ratio: float = 1.0
    use_conv_shortcut: bool = True

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.upsampling_ratios)

    @functools.cached_property
    def encoder(self) -> Network:
        """Waveform [samples, 1] -> latents [frames, hidden_size]."""
        width = self.num_filters
        layers = [self._conv(1, width, self.kernel_size)]
        for ratio in reversed(self.upsampling_ratios):
            layers += self._residuals(width)
            layers += [Elu(), self._conv(width, 2 * width, 2 * ratio, stride=ratio)]
            width *= 2
        layers += [Lstm(width, self.num_lstm_layers), Elu()]
        layers += [self._conv(width, self.hidden_size, self.last_kernel_size)]
        return Network(tuple(layers), self.hop, 1)

    @functools.cached_property
    def decoder(self) -> Network:
        """Latents [frames, hidden_size] -> waveform [frames * hop, 1]."""
        width = self.num_filters * 2 ** len(self.upsampling_ratios)
        layers = [self._conv(self.hidden_size, width, self.kernel_size)]
        layers += [Lstm(width, self.num_lstm_layers)]
        for ratio in self.upsampling_ratios:
            right = math.ceil(ratio * self.trim_right_ratio) if self.use_causal_conv else ratio // 2
            layers += [Elu(), Upsample(width, width // 2, ratio, left=ratio - right)]
            width //= 2
            layers += self._residuals(width)
        layers += [Elu(), self._conv(width, 1, self.last_kernel_size)]
        return Network(tuple(layers), 1, self.hop)

    def _conv(self, inputs, outputs, kernel, stride=1, dilation=1) -> Conv:
        total = (kernel - 1) * dilation + 1 - stride
        right = 0 if self.use_causal_conv else total // 2
        reflect = self.pad_mode == "reflect"
        return Conv(inputs, outputs, kernel, stride, dilation, total - right, right, reflect)

    def _residuals(self, width: int) -> list[Residual]:
        hidden, kernel = width // self.compress, self.residual_kernel_size
        shortcut = self._conv(width, width, 1) if self.use_conv_shortcut else None
        dilations = [self.dilation_growth_rate**j for j in range(self.num_residual_layers)]
        return [
            Residual(
                (
                    Elu(),
                    self._conv(width, hidden, kernel, dilation=dilation),
                    Elu(),
                    self._conv(hidden, width, 1),
                ),
                shortcut,
            )
            for dilation in dilations
        ]
