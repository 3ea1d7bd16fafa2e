"""EnCodec networks made up in PyTorch, and what they give of one utterance at a time."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
import torch
import transformers

# Fewer and odder layers than the published network's: cheap to compile, nothing symmetrical.
ODD = {
    "upsampling_ratios": [3, 2],
    "num_residual_layers": 2,
    "dilation_growth_rate": 3,
    "kernel_size": 6,
    "residual_kernel_size": 4,
    "use_conv_shortcut": False,
    "num_lstm_layers": 1,
}


def make(seed: int = 0, **fields) -> torch.nn.Module:
    """A network whose latents are about 1 and whose waveforms about as loud as `noise`."""
    fields = {"num_filters": 4, "hidden_size": 16, "target_bandwidths": [1.5], **fields}
    torch.manual_seed(seed)
    model = transformers.EncodecModel(transformers.EncodecConfig(**fields)).eval()
    with one_thread():
        for name, tensor in model.named_parameters():
            if "lstm.weight" in name:
                tensor.normal_(0, 1.5 / tensor.shape[1] ** 0.5)
            elif "bias" in name:
                tensor.normal_(0, 0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                # Of a transposed convolution's taps two reach an output position.
                upsample = isinstance(module, torch.nn.ConvTranspose1d)
                scale = module.kernel_size[0] ** 0.5 / 2 if upsample else 1
                module.parametrizations.weight.original0.uniform_(0.9 * scale, 1.5 * scale)
        model.decoder.layers[-1].conv.parametrizations.weight.original0 *= 0.1
    return model


def saved(folder: pathlib.Path, dtype: str = "float64", **fields) -> torch.nn.Module:
    """The same, written to a folder in float32 and then computing in `dtype`."""
    model = make(**fields)
    model.save_pretrained(folder)
    return model.to(getattr(torch, dtype))


def noise(samples: int, dtype: str = "float64") -> np.ndarray:
    """An utterance, another for each length."""
    return (0.3 * np.random.default_rng(samples).normal(size=samples)).astype(dtype)


def together(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array, junk behind them, and their lengths."""
    lengths = np.array([len(row) for row in rows])
    array = np.full((len(rows), lengths.max(), *rows[0].shape[1:]), 7, rows[0].dtype)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array, lengths


def assert_close(found: np.ndarray, expected: list[np.ndarray], bar: float) -> None:
    """Each row up to its end; the expected is a signal that changes in time, as bars assume."""
    assert np.std(max(expected, key=len), axis=0).mean() > 0.1
    for row, wanted in zip(found, expected, strict=True):
        assert row.dtype == wanted.dtype
        np.testing.assert_allclose(row[: len(wanted)], wanted, rtol=0, atol=bar)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Without gradients; on layers so small several threads do little but wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def encode(model: torch.nn.Module, waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """Waveforms [samples] -> latents [frames, channels], each by itself, in the model's dtype."""
    with one_thread():
        found = [model.encoder(torch.tensor(x)[None, None].to(model.dtype)) for x in waveforms]
    return [z[0].T.numpy() for z in found]


def decode(model: torch.nn.Module, latents: list[np.ndarray]) -> list[np.ndarray]:
    """Latents [frames, channels] -> waveforms [frames * hop]."""
    with one_thread():
        found = [model.decoder(torch.tensor(z).T[None].to(model.dtype)) for z in latents]
    return [x[0, 0].numpy() for x in found]
