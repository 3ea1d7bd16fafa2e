"""An exported model in PyTorch: without JAX, compiled, in half precision, tampered with."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.export.models import WITHOUT_JAX
from uniwav_jax.export import directory, parity, reference

torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")
transformers = pytest.importorskip("transformers")

# What somebody does who has never heard of JAX; prints the largest difference from what JAX gave.
IN_PYTORCH = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel

folder, ours = sys.argv[1], load_file(sys.argv[2])
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
waves = [wave[:count] for wave, count in zip(ours["waveform"], ours["lengths"])]
found = extractor(waves, sampling_rate=16_000, return_tensors="pt")
valid = found["attention_mask"].bool()
assert torch.equal(valid, ours["valid"])
with torch.no_grad():
    output = model(**found, output_hidden_states=True)
states = torch.stack(output.hidden_states)
generated = model.generate(**found, mask=ours["mask"], noise=ours["noise"])
print("codewords", (model.codewords(**found) != ours["codewords"])[:, valid].sum().item())
pairs = {"layers": states, "z": output.condition, "generate": generated}
for name, theirs in pairs.items():
    error, rms = (theirs - ours[name])[..., valid, :].abs().max(), ours[name][..., valid, :].std()
    print(name, (error / rms).item())
"""


def test_without_jax(exported, exported_model, tmp_path):
    """Hidden states, z, codewords and generation where neither JAX nor this project is."""
    noise = reference.white_noise(16_000)
    reference.write(exported_model, noise, "float32", tmp_path / "jax.safetensors")
    (tmp_path / "script.py").write_text(IN_PYTORCH)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, tmp_path / "script.py", exported]
        + [tmp_path / "jax.safetensors"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures = dict(line.split() for line in result.stdout.splitlines())
    assert figures.keys() == {"codewords", "layers", "z", "generate"}
    assert float(figures["codewords"]) == 0
    for name in ("layers", "z", "generate"):
        assert float(figures[name]) <= parity.BARS["float32"][name], figures


def test_with_weights_of_eight_bits_the_features_keep_theirs(loaded):
    torch.backends.quantized.engine = "fbgemm"
    narrow = torch.ao.quantization.quantize_dynamic(loaded, {torch.nn.Linear}, torch.qint8)
    with torch.no_grad():
        whole, found = (model(**batch(40)).last_hidden_state for model in (loaded, narrow))
    assert 0 < (found - whole).std() / whole.std() < 0.1


@pytest.fixture
def loaded(exported):
    """To be changed."""
    return transformers.AutoModel.from_pretrained(exported, trust_remote_code=True).eval()


def batch(frames: int, seed: int = 0) -> dict:
    """Two utterances, one of them padded."""
    x = torch.randn(2, frames, 80, generator=torch.Generator().manual_seed(seed))
    valid = torch.arange(frames) < torch.tensor([[frames], [frames // 2]])
    return {"input_features": x, "attention_mask": valid.long()}


@pytest.mark.slow
def test_compiled_it_is_the_same(loaded):
    """In one graph without breaks, for any length; aot_eager needs no compiler of C++."""
    torch._dynamo.reset()
    compiled = torch.compile(loaded, backend="aot_eager", fullgraph=True, dynamic=True)
    for frames in (20, 33):
        given = batch(frames)
        outputs = [model(**given, output_hidden_states=True) for model in (loaded, compiled)]
        states = [torch.stack(output.hidden_states) for output in outputs]
        torch.testing.assert_close(*states)
        gradients = []
        for output in outputs:
            loaded.zero_grad()
            output.condition.square().mean().backward()
            gradients.append(loaded.encoder.projection.weight.grad.clone())
        assert gradients[0].any()
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("how", ["to", "half", "dtype"])
def test_codebooks_stay_as_they_are_in_half_precision(how, exported, loaded):
    given, sums = batch(40), loaded.codebook_sums.clone()
    narrow = torch.float16 if how == "half" else torch.bfloat16
    if how == "dtype":
        model = transformers.AutoModel.from_pretrained(
            exported, dtype=narrow, trust_remote_code=True
        ).eval()
    else:
        model = loaded.half() if how == "half" else loaded.to(torch.bfloat16)
    assert model.encoder.projection.weight.dtype == narrow
    assert model.codebook_counts.dtype == torch.float32
    assert torch.equal(model.codebook_sums, sums)
    assert model.codewords(**given).shape == (2, 2, 40)
    assert model.double().codebook_sums.dtype == torch.float64


def changed(folder, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "fields", [{"encoder_depth": 3}, {"encoder_depth": 1}, {"encoder_width": 64}], ids=str
)
@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForCTC"])
def test_no_weight_is_drawn_at_random_or_left_out(kind, fields, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "changed")
    changed(folder, **fields)
    load = getattr(transformers, kind).from_pretrained
    with pytest.raises(ValueError, match="are not those of the model that config.json") as error:
        load(folder, trust_remote_code=True)
    assert "\n" not in str(error.value)


def test_what_parity_was_measured_on_is_what_is_loaded(exported, tmp_path):
    """A field that changes no shape, and a statistic."""
    for name, field, value in (
        ("config.json", "encoder_heads", 1),
        ("preprocessor_config.json", "mean", [0.0] * 80),
    ):
        folder = shutil.copytree(exported, tmp_path / name)
        record = {"sha256": directory.digests(folder), "rows": []}
        (folder / "parity.json").write_text(json.dumps(record))
        parity.load(folder)
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
        with pytest.raises(ValueError, match=f"{name} is not what parity.json was measured on"):
            parity.load(folder)


def test_a_head_of_another_size_wants_to_be_asked_for(exported, tmp_path):
    options = {"trust_remote_code": True, "vocab_size": 5}
    model = transformers.AutoModelForCTC.from_pretrained(exported, **options)
    model.save_pretrained(tmp_path)
    options["vocab_size"] = 7
    load = transformers.AutoModelForCTC.from_pretrained
    with pytest.raises(ValueError, match="lm_head"):
        load(tmp_path, **options)
    model, found = load(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    assert model.lm_head.weight.shape == (7, 32) and not found["missing_keys"]


def test_features_where_there_is_no_float64(exported):
    """On a made-up GPU of Apple's, the CPU computes them."""
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            found = function(*arguments, **(options or {}))
            if isinstance(found, torch.Tensor):
                seen.add((found.device.type, found.dtype))
            return found

    seen, load = set(), transformers.AutoFeatureExtractor.from_pretrained
    extractor = load(exported, trust_remote_code=True)
    with FakeTensorMode(allow_non_fake_inputs=True), Recorded():
        found = extractor.log_mel(torch.zeros(1, 700, device="mps"))
    assert (found.device.type, found.dtype) == ("mps", torch.float32)
    assert ("cpu", torch.float64) in seen and ("mps", torch.float64) not in seen
