"""UniWav in PyTorch: encoder, condition, decoder, teacher and codebooks of a pre-trained run.

Shapes: B utterances, T frames, C feature channels, D width.
"""

import copy
import dataclasses
import hashlib
import json
import os
import pathlib

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from .configuration_uniwav import UniWavConfig
from .layers_uniwav import Decoder, Encoder, encoder_layers, instance_norm, layer_norm

# What parity.json keeps digests of.
MEASURED = ("model.safetensors", "config.json", "preprocessor_config.json")
# Never narrower than float32, whatever the model is cast to, as in training.
CODEBOOKS = ("codebook_sums", "codebook_counts")


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


def check_weights(folder: pathlib.Path) -> None:
    """Looks at a directory before it is loaded; reads no tensor.

    Raises:
      ValueError: no safetensors files, damaged ones, or files that parity.json was not measured on.
    """
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
    if not measured.is_file():
        return
    try:
        expected = json.loads(measured.read_text(encoding="utf-8"))["sha256"]
        expected = {name: expected[name] for name in MEASURED}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{measured} is damaged ({error!r}); fetch it again.") from error
    for name, digest in expected.items():
        if sha256(folder / name) != digest:
            raise ValueError(
                f"{folder}/{name} is not what parity.json was measured on; fetch both again, or "
                f"remove parity.json if {name} was changed on purpose."
            )


def sha256(path: pathlib.Path) -> str:
    """Of a file, in hex; nothing for one that is not there."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class UniWavPreTrainedModel(PreTrainedModel):
    """What Hugging Face wants to know of the models below."""

    config_class = UniWavConfig
    base_model_prefix = "uniwav"
    main_input_name = "input_features"
    _no_split_modules = ["EncoderLayer", "AdaptiveLayer"]
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = list(CODEBOOKS)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info=False,
        ignore_mismatched_sizes=False,
        **kwargs,
    ):
        """As of every model, but that a directory is looked at first, nothing is unpickled, and no
        weight but a head's is drawn at random or left out.

        Raises:
          ValueError: no weights as safetensors, damaged ones, others than were exported, or not
            those of the model that the config describes.
        """
        if os.path.isdir(pretrained_model_name_or_path):
            check_weights(pathlib.Path(pretrained_model_name_or_path))
        # transformers only warns of the first two, and speaks of the third in many lines.
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        model, found = super().from_pretrained(
            pretrained_model_name_or_path, *args, ignore_mismatched_sizes=True, **kwargs
        )
        sizes = {name for name, *_ in found["mismatched_keys"]}
        other = {*found["missing_keys"], *found["unexpected_keys"]}
        other = {name for name in other if not name.startswith("lm_head.")}
        if ignore_mismatched_sizes:
            sizes = {name for name in sizes if not name.startswith("lm_head.")}
        if other | sizes:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} are not those of the model that "
                f"config.json describes ({min(other | sizes)} is missing, too many or of another "
                "size); fetch both again."
            )
        return (model, found) if output_loading_info else model

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

    def _apply(self, fn, recurse=True):
        # What `to`, `half`, `cuda` and so on come down to.
        held = {name: getattr(self, name).data for name in CODEBOOKS if hasattr(self, name)}
        super()._apply(fn, recurse)
        for name, before in held.items():
            after = getattr(self, name)
            if after.dtype in (torch.bfloat16, torch.float16):
                after.data = before.to(after.device)
        return self

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
        # In bfloat16 a sum that is rounded after each of many layers loses more than they do.
        dtype = streams[0].dtype
        wide = torch.promote_types(dtype, torch.float32)
        weights = self.layer_weights.softmax(0).to(wide)
        layers = zip(weights, streams[1:], strict=True)
        return sum(w * layer_norm(x.to(wide)) for w, x in layers).to(dtype)

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
