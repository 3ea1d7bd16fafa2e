"""Layers of UniWav in PyTorch: encoder, decoder and what they are made of.

Shapes: B utterances, T frames, C feature channels, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_uniwav import UniWavConfig

EPSILON = 1e-5


def layer_norm(x: Tensor) -> Tensor:
    """Over the last axis, without affine."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPSILON)


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions: channel c of x [B, heads, T, head width] turns with channel c + half."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
    # Without whole turns float32 will do, which is all that many an ONNX runtime has a cosine for.
    angle = (angle % (2 * math.pi)).to(torch.promote_types(x.dtype, torch.float32))
    cosine, sine = angle.cos().to(x), angle.sin().to(x)
    first, second = x.split(half, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def time_features(t: Tensor, channels: int) -> Tensor:
    """Sinusoids of 1000 t: t [B] -> [B, channels], cosines then sines, base 10^4."""
    half = channels // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = 1000.0 * t[:, None] * frequency.to(t)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def instance_norm(x: Tensor, valid: Tensor) -> Tensor:
    """x [B, T, D] normalised over its valid frames, per utterance and channel; at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weight = valid[..., None].to(x.dtype)
    count = weight.sum(-2, keepdim=True).clamp(min=1)
    centred = x - (x * weight).sum(-2, keepdim=True) / count
    variance = (centred**2 * weight).sum(-2, keepdim=True) / count
    return centred * torch.rsqrt(variance + EPSILON)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the valid frames."""

    def __init__(self, width: int, heads: int, rotary: bool):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.rotary = heads, rotary

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        split = (*x.shape[:2], self.heads, -1)
        query, key, value = (
            part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        # An utterance without any valid frame attends to all: its result is meaningless, not NaN.
        mask = None if valid is None else (valid | ~valid.any(-1, keepdim=True))[:, None, None]
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(context.transpose(1, 2).reshape(x.shape))


class FeedForward(nn.Module):
    """linear, exact GELU, linear; four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(functional.gelu(self.expand(x)))


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-LayerNorm Transformer layer."""

    def __init__(self, width: int, heads: int, rotary: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=EPSILON)
        self.attention = SelfAttention(width, heads, rotary)
        self.feed_forward_norm = nn.LayerNorm(width, eps=EPSILON)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream, and the feed-forward output before it is added."""
        x = x + self.attention(self.attention_norm(x), valid)
        feed_forward = self.feed_forward(self.feed_forward_norm(x))
        return x + feed_forward, feed_forward


class Encoder(nn.Module):
    """Features -> h0 and the residual stream after every layer."""

    def __init__(self, config: UniWavConfig):
        super().__init__()
        width = config.encoder_width
        self.projection = nn.Linear(config.channels, width)
        self.mask_vector = nn.Parameter(torch.zeros(width))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, config.position_kernel, groups=config.position_groups)
            for _ in range(config.position_layers if "conv" in config.positions else 0)
        )
        self.layers = encoder_layers(config)
        # The student's alone.
        normed = config.encoder_depth and config.weights != "teacher"
        self.final_norm = nn.LayerNorm(width, eps=EPSILON) if normed else None

    def embed(self, x: Tensor, valid: Tensor | None, mask: Tensor | None) -> Tensor:
        """h0 [B, T, D]; the mask vector stands for the frames of `mask`."""
        h = self.projection(x.to(self.mask_vector.dtype))
        if mask is not None:
            h = torch.where(mask[..., None], self.mask_vector, h)
        if len(self.convolutions):
            h = h + self._positions(h, valid)
        return zeroed(h, valid)

    def _positions(self, x: Tensor, valid: Tensor | None) -> Tensor:
        for convolution in self.convolutions:
            taps = convolution.kernel_size[0]
            x = functional.pad(zeroed(x, valid).mT, ((taps - 1) // 2, taps // 2))
            x = functional.gelu(layer_norm(convolution(x).mT))
        return x


def encoder_layers(config: UniWavConfig) -> nn.ModuleList:
    """The student's layers, or the teacher's."""
    rotary = "rope" in config.positions
    return nn.ModuleList(
        EncoderLayer(config.encoder_width, config.encoder_heads, rotary)
        for _ in range(config.encoder_depth)
    )


def zeroed(x: Tensor, valid: Tensor | None) -> Tensor:
    """x [B, T, D] with zeros outside the utterances."""
    return x if valid is None else torch.where(valid[..., None], x, 0.0)


class AdaptiveLayer(nn.Module):
    """Transformer layer modulated by time (adaLN-single); second-half layers take a skip."""

    def __init__(self, width: int, heads: int, skip: bool):
        super().__init__()
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.attention = SelfAttention(width, heads, rotary=True)
        self.feed_forward = FeedForward(width)
        self.table = nn.Parameter(torch.zeros(6, width))

    def forward(self, x: Tensor, valid: Tensor | None, modulation: Tensor) -> Tensor:
        table = (modulation + self.table)[:, :, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = table.unbind(1)
        x = x + gate_1 * self.attention(layer_norm(x) * (1 + scale_1) + shift_1, valid)
        return x + gate_2 * self.feed_forward(layer_norm(x) * (1 + scale_2) + shift_2)

    def after_skip(
        self, x: Tensor, skipped: Tensor, valid: Tensor | None, modulation: Tensor
    ) -> Tensor:
        """A layer of the second half: x joined with the input of its partner in the first."""
        return self(self.skip(torch.cat([x, skipped], dim=-1)), valid, modulation)


class Decoder(nn.Module):
    """The vector field v(x_t, z, t): a Transformer with U-Net skips."""

    def __init__(self, config: UniWavConfig):
        super().__init__()
        width, heads, half = config.decoder_width, config.decoder_heads, config.decoder_depth // 2
        self.time_channels = config.time_channels
        self.null_condition = nn.Parameter(torch.zeros(config.encoder_width))
        self.input = nn.Linear(config.channels + config.encoder_width, width)
        self.time_in = nn.Linear(config.time_channels, width)
        self.time_out = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.first_half = nn.ModuleList(AdaptiveLayer(width, heads, False) for _ in range(half))
        self.second_half = nn.ModuleList(AdaptiveLayer(width, heads, True) for _ in range(half))
        self.output_table = nn.Parameter(torch.zeros(2, width))
        self.output = nn.Linear(width, config.channels)

    def forward(self, x: Tensor, condition: Tensor, t: Tensor, valid: Tensor | None) -> Tensor:
        """x_t [B, T, C], z [B, T, D], t [B] in 0 ... 1 -> [B, T, C]."""
        dtype = self.null_condition.dtype
        h = zeroed(self.input(torch.cat([x.to(dtype), condition.to(dtype)], dim=-1)), valid)
        e, modulation = self.modulations(t)
        inputs = []
        for layer in self.first_half:
            inputs.append(h)
            h = layer(h, valid, modulation)
        for layer in self.second_half:
            h = layer.after_skip(h, inputs.pop(), valid, modulation)
        shift, scale = (e[:, None] + self.output_table[:, None, None]).unbind(0)
        return self.output(layer_norm(h) * (1 + scale) + shift)

    def modulations(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] -> e [B, D], and what modulates all layers [B, 6, D]."""
        e = self.time_in(time_features(t, self.time_channels).to(self.null_condition.dtype))
        e = self.time_out(functional.silu(e))
        return e, self.modulation(functional.silu(e)).view(len(e), 6, -1)
