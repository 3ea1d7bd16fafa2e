"""UniWav in PyTorch: encoder, condition, decoder, teacher and codebooks of a pre-trained run.

Shapes: B utterances, T frames, C feature channels, D width.
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import pathlib

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from .configuration_uniwav import UniWavConfig

EPSILON = 1e-5


@dataclasses.dataclass
class UniWavOutput(ModelOutput):
    """What the encoder gives.

    Attributes:
      last_hidden_state: the last layer's stream [B, T, D], the student's through its final norm.
      hidden_states: h0 and the residual stream after every layer, each [B, T, D].
      condition: z, the layers' weighted sum that the decoder takes [B, T, D]; None without one.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    condition: Tensor | None = None


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
        h = self.projection(x.to(self.projection.weight.dtype))
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
        dtype = self.input.weight.dtype
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
        e = self.time_in(time_features(t, self.time_channels).to(self.input.weight.dtype))
        e = self.time_out(functional.silu(e))
        return e, self.modulation(functional.silu(e)).view(len(e), 6, -1)


def check_weights(folder: pathlib.Path) -> None:
    """Raises ValueError unless the safetensors files of a directory are whole; reads no tensor."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors; other weights are not loaded.")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); fetch it again.") from error
    # Written by the export; a model that PyTorch saved elsewhere has none.
    measured = folder / "parity.json"
    if measured.is_file():
        expected = json.loads(measured.read_text())["weights_sha256"]
        with open(folder / "model.safetensors", "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ValueError(
                    f"{folder}/model.safetensors is not what parity.json was measured on; fetch "
                    "both again, or remove parity.json if the weights were changed on purpose."
                )


class UniWavPreTrainedModel(PreTrainedModel):
    """What Hugging Face wants to know of the models below."""

    config_class = UniWavConfig
    base_model_prefix = "uniwav"
    main_input_name = "input_features"
    _no_split_modules = ["EncoderLayer", "AdaptiveLayer"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As of every model, but that a directory is looked at first, and nothing is unpickled.

        Raises:
          ValueError: no weights as safetensors, damaged ones, or others than were exported.
        """
        if os.path.isdir(pretrained_model_name_or_path):
            check_weights(pathlib.Path(pretrained_model_name_or_path))
        kwargs["use_safetensors"] = True
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class UniWavModel(UniWavPreTrainedModel):
    """The pre-trained model: hidden states, z, codewords and generation."""

    def __init__(self, config: UniWavConfig):
        super().__init__(config)
        depth, width = config.encoder_depth, config.encoder_width
        self.encoder = Encoder(config)
        self.teacher = encoder_layers(config) if config.weights == "all" and depth else None
        self.decoder = Decoder(config) if config.decoder_depth else None
        if self.decoder is not None and depth:
            self.layer_weights = nn.Parameter(torch.zeros(depth))
        if config.weights == "all" and depth:
            heads = (config.targets, width, config.codewords)
            self.heads_kernel = nn.Parameter(torch.zeros(heads))
            self.heads_bias = nn.Parameter(torch.zeros(config.targets, config.codewords))
        if config.targets:
            # Codeword v is sums[v] / counts[v].
            self.codebook_sums = nn.Parameter(
                torch.zeros(config.targets, config.codewords, width), requires_grad=False
            )
            self.codebook_counts = nn.Parameter(
                torch.ones(config.targets, config.codewords), requires_grad=False
            )
        self.post_init()

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> UniWavOutput:
        """The encoder on features of the feature extractor.

        Args:
          input_features: [B, T, C].
          attention_mask: [B, T], 1 on the frames of each utterance; None: all are.
          mask: bool [B, T], frames that the encoder shall not see.
          output_hidden_states: whether to return those of all layers.
        """
        valid = None if attention_mask is None else attention_mask.bool()
        streams = [self.encoder.embed(input_features, valid, mask)]
        for layer in self.encoder.layers:
            streams.append(layer(streams[-1], valid)[0])
        norm, last = self.encoder.final_norm, streams[-1]
        last = last if norm is None else norm(last)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        found = UniWavOutput(
            last_hidden_state=last,
            hidden_states=tuple(streams) if output_hidden_states else None,
            condition=None if self.decoder is None else self._condition(streams),
        )
        return found if return_dict is not False else found.to_tuple()

    def _condition(self, streams: list[Tensor]) -> Tensor:
        if len(streams) == 1:
            return layer_norm(streams[0])
        weights = self.layer_weights.softmax(0).to(streams[0].dtype)
        return sum(w * layer_norm(x) for w, x in zip(weights, streams[1:], strict=True))

    @torch.no_grad()
    def codewords(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codeword ids int64 [targets, B, T] of the teacher on clean input.

        Raises:
          ValueError: the export holds no teacher.
        """
        if not self.config.targets:
            raise ValueError(
                "this export holds the student alone, and codewords come from the teacher; "
                "export the run without --weights student."
            )
        valid = None if attention_mask is None else attention_mask.bool()
        x, outputs = self.encoder.embed(input_features, valid, None), []
        for layer in self.encoder.layers if self.teacher is None else self.teacher:
            x, feed_forward = layer(x, valid)
            outputs.append(feed_forward)
        if valid is None:
            valid = x.new_ones(x.shape[:2], dtype=torch.bool)
        chosen = outputs[-self.config.targets :]
        targets = torch.stack([instance_norm(output, valid) for output in chosen])
        codebooks = (self.codebook_sums / self.codebook_counts[..., None]).to(targets.dtype)
        # |x|^2 is the same for all codewords and left out.
        product = torch.einsum("kbmd,kvd->kbmv", targets, codebooks)
        return ((codebooks**2).sum(-1)[:, None, None] - 2.0 * product).argmin(-1)

    def code_logits(self, last_hidden_state: Tensor) -> Tensor:
        """What the student thinks the codewords of masked frames are: [targets, B, T, codewords].

        Raises:
          ValueError: the export holds no prediction heads.
        """
        if not hasattr(self, "heads_kernel"):
            raise ValueError("this export holds no prediction heads; export without --weights.")
        x = last_hidden_state.to(self.heads_kernel.dtype)
        logits = torch.einsum("btd,kdv->kbtv", x, self.heads_kernel)
        return logits + self.heads_bias[:, None, None]

    @torch.no_grad()
    def generate(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        evaluations: int = 32,
        guidance: float = 0.7,
        solver: str = "midpoint",
    ) -> Tensor:
        """Flow-matching samples of the frames in `mask`; the other frames stay as they are.

        Args:
          input_features: [B, T, C], true outside `mask`.
          attention_mask: [B, T], 1 on the frames of each utterance.
          mask: bool [B, T], the frames to generate; None: all.
          condition: z [B, T, D]; None: that of a pass that does not see `mask`.
          noise: x_0 [B, T, C]; None: drawn with `generator`.
          evaluations: of the vector field.
          guidance: alpha of (1 + alpha) v(z) - alpha v(null).
          solver: "midpoint", two evaluations a step, or "euler".

        Raises:
          ValueError: the export holds no decoder, or evaluations that do not fit the solver.
        """
        if self.decoder is None:
            raise ValueError("this export holds no decoder, which is what generates.")
        stages = {"euler": 1, "midpoint": 2}
        if solver not in stages or evaluations < 1 or evaluations % stages[solver]:
            raise ValueError(
                f"{evaluations} evaluations of solver '{solver}': choose 'euler', or 'midpoint' "
                "with an even number."
            )
        x = input_features
        valid = None if attention_mask is None else attention_mask.bool()
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        mask = mask if valid is None else mask & valid
        if condition is None:
            condition = self(x, attention_mask, mask).condition
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        null = self.decoder.null_condition.expand_as(condition)
        sigma = self.config.sigma_min

        def field(x_t: Tensor, t: float) -> Tensor:
            known = (1.0 - (1.0 - sigma) * t) * noise + t * x
            x_t = torch.where(mask[..., None], x_t, known)
            time = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            conditional = self.decoder(x_t, condition, time, valid).to(x.dtype)
            unconditional = self.decoder(x_t, null, time, valid).to(x.dtype)
            return (1.0 + guidance) * conditional - guidance * unconditional

        steps = evaluations // stages[solver]
        dt, x_t = 1.0 / steps, noise
        for step in range(steps):
            t = step / steps
            slope = field(x_t, t)
            if solver == "midpoint":
                slope = field(x_t + 0.5 * dt * slope, t + 0.5 * dt)
            x_t = x_t + dt * slope
        return torch.where(mask[..., None], x_t, x)


class UniWavForCTC(UniWavPreTrainedModel):
    """The encoder with a linear CTC head; decoder and teacher are left out."""

    # The loss is a mean over the batch: accumulating, a Trainer has to average it.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [
        *(r"decoder\.", r"teacher\.", "layer_weights", "codebook_", "heads_")
    ]

    def __init__(self, config: UniWavConfig):
        config = copy.deepcopy(config)
        config.decoder_depth = config.targets = 0
        config.weights = "student" if config.weights == "all" else config.weights
        super().__init__(config)
        self.uniwav = UniWavModel(config)
        self.lm_head = nn.Linear(config.encoder_width, config.vocab_size)
        self.post_init()

    def freeze_base_model(self) -> None:
        """Leaves the head alone to be trained."""
        self.uniwav.requires_grad_(False)

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutput:
        """Logits of every frame, and the CTC loss of labels.

        Args:
          input_features: [B, T, C].
          attention_mask: [B, T], 1 on the frames of each utterance; None: all are.
          labels: int64 [B, length] of 0 ... vocab_size - 1, -100 where padded; pad_token_id is the
            blank and stands in none of them.
          mask: bool [B, T], frames that the encoder shall not see.

        Returns:
          logits [B, T, vocab_size]; with labels, loss [] (or [B]: ctc_loss_reduction).

        Raises:
          ValueError: a label is not below vocab_size.
        """
        if labels is not None and (labels >= self.config.vocab_size).any():
            raise ValueError(
                f"the label {int(labels.max())} is not below vocab_size {self.config.vocab_size}; "
                "load the model with vocab_size=N."
            )
        found = self.uniwav(input_features, attention_mask, mask, output_hidden_states)
        logits, loss = self.lm_head(found.last_hidden_state), None
        if labels is not None:
            frames = logits.new_full((len(logits),), logits.shape[1], dtype=torch.long)
            frames = frames if attention_mask is None else attention_mask.sum(-1)
            spoken = labels >= 0
            loss = functional.ctc_loss(
                logits.log_softmax(-1, dtype=torch.float32).transpose(0, 1),
                labels[spoken],
                frames,
                spoken.sum(-1),
                blank=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        output = CausalLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)
        return output if return_dict is not False else output.to_tuple()
