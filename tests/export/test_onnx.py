"""The ONNX file, run by ONNX Runtime, against PyTorch."""

import shutil

import numpy as np
import pytest

from uniwav_jax.__main__ import main
from uniwav_jax.export import onnx as exporting

onnx = pytest.importorskip("onnx", reason="pip install -e '.[onnx]' to run this")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[onnx]' to run this")
torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")


def compare(path, folder):
    """Utterances in padded batches of sizes not seen before, against each by itself in PyTorch."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).double().eval()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for lengths in ((211, 90, 1, 33), (7,)):
        x = rng.normal(size=(len(lengths), max(lengths), 80)).astype(np.float32)
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        names = ["hidden_states", "last_hidden_state", "condition"]
        found = session.run(names, {"input_features": x, "attention_mask": mask})
        for row, length in enumerate(lengths):
            with torch.no_grad():
                alone = model(torch.tensor(x[row : row + 1, :length]), output_hidden_states=True)
            expected = torch.stack(alone.hidden_states), alone.last_hidden_state, alone.condition
            for ours, theirs in zip(found, expected, strict=True):
                figure = np.abs(ours[..., row, :length, :] - theirs[..., 0, :, :].numpy()).max()
                assert figure < 1e-4


def test_the_command(exported, tmp_path, capsys):
    path = tmp_path / "encoder.onnx"
    arguments = ["export-onnx", "--directory", str(exported), "--output", str(path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("hidden_states") == 2 and "MISSED" not in printed
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
    graph = onnx.load(path)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 20)]
    assert b"modeling_uniwav.py" not in path.read_bytes()
    compare(path, exported)
    assert main(arguments) == 2
    assert "exists; name a new file" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "another"])
def test_what_is_no_export_is_one_sentence(exported, tmp_path, capsys, damage):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    if damage == "another":
        from transformers import HubertConfig, HubertModel

        config = HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        HubertModel(config).save_pretrained(folder)
        shutil.copy(exported / "preprocessor_config.json", folder)
    else:
        (folder / damage).unlink()
    arguments = ["--directory", str(folder), "--output", str(tmp_path / "encoder.onnx")]
    assert main(["export-onnx", *arguments]) == 2
    (sentence,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "holds no UniWav" in sentence if damage == "another" else damage in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.slow
def test_weights_of_a_large_model_lie_beside_it(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST", 0)
    exporting.write(exported, tmp_path / "encoder.onnx")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["encoder.onnx", "encoder.onnx.data"]
    compare(tmp_path / "encoder.onnx", exported)


@pytest.mark.slow
def test_a_missed_figure_writes_nothing(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "BAR", 1e-9)
    out = tmp_path / "encoder.onnx"
    assert main(["export-onnx", "--directory", str(exported), "--output", str(out)]) == 1
    printed = capsys.readouterr()
    assert "MISSED" in printed.out and "nothing was written" in printed.err
    assert not list(tmp_path.iterdir())
