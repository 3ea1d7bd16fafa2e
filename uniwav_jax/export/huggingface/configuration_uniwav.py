"""Configuration of an exported UniWav model."""

from transformers import PretrainedConfig

FORMAT = 1
# What `from_pretrained` passes and `Trainer` sets beside the fields of every configuration.
GIVEN = {"name_or_path", "attn_implementation", "torch_dtype", "auto_map", "trust_remote_code"}
GIVEN |= {"use_cache", "bos_token_id", "eos_token_id", "_commit_hash"}


class UniWavConfig(PretrainedConfig):
    """Geometry of a UniWav model and what of it was exported.

    Args:
      format_version: of this file; a newer one is refused.
      channels: of the surface features.
      inputs_to_logits_ratio: samples a frame, by which pipelines reckon times.
      encoder_depth, encoder_width, encoder_heads: of the encoder; depth 0 gives h0 alone.
      positions: "conv", "rope" or "conv+rope".
      position_layers, position_groups, position_kernel: of the convolutions.
      weights: "all" (the student, and the teacher for codewords), "student" or "teacher", whose
        layers are then the encoder's.
      targets, codewords: codebooks and their size; 0 without a teacher.
      decoder_depth, decoder_width, decoder_heads, time_channels: of the decoder; depth 0 for none.
      sigma_min: of the flow-matching path.
      training: what the run was: config, data, licences, ancestry.
      vocab_size, ctc_loss_reduction, ctc_zero_infinity, pad_token_id: of a CTC head.
    """

    model_type = "uniwav"

    def __init__(
        self,
        format_version: int = FORMAT,
        channels: int = 80,
        inputs_to_logits_ratio: int = 320,
        encoder_depth: int = 12,
        encoder_width: int = 768,
        encoder_heads: int = 12,
        positions: str = "conv",
        position_layers: int = 5,
        position_groups: int = 16,
        position_kernel: int = 19,
        weights: str = "all",
        targets: int = 8,
        codewords: int = 256,
        decoder_depth: int = 8,
        decoder_width: int = 768,
        decoder_heads: int = 12,
        time_channels: int = 256,
        sigma_min: float = 1e-5,
        training: dict | None = None,
        vocab_size: int = 32,
        ctc_loss_reduction: str = "mean",
        ctc_zero_infinity: bool = True,
        pad_token_id: int = 0,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if format_version != FORMAT:
            raise ValueError(
                f"config.json has format {format_version}, and this code knows {FORMAT}; use the "
                "modelling files that lie beside it."
            )
        unknown = sorted(kwargs.keys() - PretrainedConfig().to_dict().keys() - GIVEN)
        if unknown:
            raise ValueError(f"config.json has the unknown field '{unknown[0]}'; remove it.")
        self.format_version = format_version
        self.channels = channels
        self.inputs_to_logits_ratio = inputs_to_logits_ratio
        self.encoder_depth = encoder_depth
        self.encoder_width = encoder_width
        self.encoder_heads = encoder_heads
        self.positions = positions
        self.position_layers = position_layers
        self.position_groups = position_groups
        self.position_kernel = position_kernel
        self.weights = weights
        self.targets = targets
        self.codewords = codewords
        self.decoder_depth = decoder_depth
        self.decoder_width = decoder_width
        self.decoder_heads = decoder_heads
        self.time_channels = time_channels
        self.sigma_min = sigma_min
        self.training = training
        self.vocab_size = vocab_size
        self.ctc_loss_reduction = ctc_loss_reduction
        self.ctc_zero_infinity = ctc_zero_infinity
        self.initializer_range = initializer_range
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.encoder_width

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder."""
        return self.encoder_depth

    @property
    def num_attention_heads(self) -> int:
        """Heads of the encoder."""
        return self.encoder_heads
