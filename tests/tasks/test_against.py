"""Other models on our frames, against the same models called by hand."""

import json
import shutil

import numpy as np
import pytest

from configs.common import base
from data_pipelines.files import file_digest
from tests.tasks.test_comparison import section
from uniwav_jax.errors import UserError
from uniwav_jax.export import directory
from uniwav_jax.tasks import comparison, report
from uniwav_jax.tasks.against import convolved, hopped, load_against, nearest
from uniwav_jax.training import pictures

transformers = pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
# Class, changes of its config, and do_normalize of its feature extractor (None: it has none).
MODELS = {
    "hubert": ("Hubert", {}, False),
    "hubert_twice_as_often": ("Hubert", {"conv_stride": (5, 2, 2, 2, 2, 2, 1)}, True),
    "wavlm": ("WavLM", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, None),
    "data2vec": ("Data2VecAudio", {}, True),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several would only wait for each other at models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(name: str, folder):
    """A model with random weights, saved in `folder`."""
    kind, changed, normalised = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**TINY | changed)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(folder)
    if normalised is not None:
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised)
        extractor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-hubert"
    made("hubert", folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_the_model(name, tmp_path):
    model, (_, changed, normalised) = made(name, tmp_path), MODELS[name]
    hop, field = int(np.prod(changed.get("conv_stride", (5, 2, 2, 2, 2, 2, 2)))), 400
    draw = np.random.default_rng(1)
    waves = [0.3 + draw.normal(size=n).astype(np.float32) for n in (9_000, 16_000, 720, 400, 90)]
    against = load_against(tmp_path, base())
    assert against.about["layers"] == 3
    assert against.about["weights_sha256"] == file_digest(tmp_path / "model.safetensors")
    for wave, found in zip(waves, against.encode(waves), strict=True):
        x = np.pad(wave, (0, max(0, field - len(wave)))).astype(np.float64)
        if normalised:
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
        x = torch.tensor(x, dtype=torch.float32)[None]
        with torch.no_grad():
            states = model(x, output_hidden_states=True).hidden_states[1:]
        # Frame j is centred 200 samples after its first.
        centres = hop * np.arange(states[0].shape[1]) + 200
        ours = 320 * np.arange(-(-len(wave) // 320)) + 160
        index = np.abs(ours[:, None] - centres).argmin(1)
        expected = np.stack([state[0, index].numpy() for state in states])
        np.testing.assert_allclose(found["layers"], expected, atol=1e-4)


def test_hidden_states_of_our_own_export(tmp_path):
    from uniwav_jax.export.huggingface.configuration_uniwav import UniWavConfig
    from uniwav_jax.export.huggingface.feature_extraction_uniwav import UniWavFeatureExtractor
    from uniwav_jax.export.huggingface.modeling_uniwav import UniWavModel

    sizes = {"width": 32, "depth": 2, "heads": 2}
    sizes = {f"{part}_{k}": size for part in ("encoder", "decoder") for k, size in sizes.items()}
    torch.manual_seed(0)
    model = UniWavModel(UniWavConfig(positions="rope", targets=2, **sizes)).eval()
    extractor = UniWavFeatureExtractor(mean=list(np.linspace(-9, -3, 80)))
    for part in (model, extractor):
        part.save_pretrained(tmp_path)
    export_changed()(tmp_path)
    waves = [np.random.default_rng(1).normal(size=n).astype(np.float32) for n in (9_001, 1)]
    for wave, found in zip(waves, load_against(tmp_path, base()).encode(waves), strict=True):
        with torch.no_grad():
            x = extractor(wave, return_tensors="pt")
            states = model(**x, output_hidden_states=True).hidden_states[1:]
        expected = np.concatenate([state.numpy() for state in states])
        assert expected.shape == (2, -(-len(wave) // 320), 32)
        np.testing.assert_allclose(found["layers"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "kernels, strides",
    [
        ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)),
        ((10, 3, 3, 3, 3, 2, 2), (5, 4, 2, 2, 2, 2, 2)),
        ((11, 8, 5, 3), (5, 4, 3, 2)),
    ],
)
def test_alignment_by_what_reaches_a_frame(kernels, strides):
    """The samples that a frame depends on, found by differentiating it, tell where it lies."""
    layers = len(kernels)
    config = {"conv_dim": (8,) * layers, "conv_kernel": kernels, "conv_stride": strides}
    config |= {"num_feat_extract_layers": layers, "feat_extract_norm": "layer"}
    torch.manual_seed(0)
    model = transformers.HubertModel(transformers.HubertConfig(**TINY | config)).eval()
    samples = 4_321
    x = torch.randn(1, samples, dtype=torch.float64, requires_grad=True)
    frames = model.double().feature_extractor(x)[0].T
    centres = []
    for frame in frames:
        weights = torch.randn(8, dtype=torch.float64)
        (slope,) = torch.autograd.grad(frame @ weights, x, retain_graph=True)
        reached = np.flatnonzero(slope[0].numpy())
        centres.append((reached[0] + reached[-1] + 1) / 2)
    theirs = convolved(kernels, strides)
    assert theirs.count(samples) == len(frames)
    np.testing.assert_array_equal(theirs.centres(samples), centres)
    ours = 320 * np.arange(-(-samples // 320)) + 160
    expected = np.abs(ours[:, None] - np.array(centres)).argmin(1)
    np.testing.assert_array_equal(nearest(hopped(320), theirs, samples), expected)


def test_where_it_is_shown(tmp_path):
    """In the table, the panel and the comparison of runs."""
    layered = {"trained": [0.5, 0.6], "untrained": [0.2, 0.3], "against": [0.7, 0.8, 0.9]}
    spread = {f"{name}_spread": [0.01] * len(values) for name, values in layered.items()}
    best = {"against_best": 0.875, "against_best_spread": 0.0625}
    found = section(0.5) | layered | spread | best
    result = {"step": 1, "left_out": [], "settings": {}, "phone_accuracy": found}
    result |= {"against": {"name": "tiny-hubert"}}
    lines = report.table(result).splitlines()
    assert lines[2].endswith("against tiny-hubert") and lines[3].endswith("0.875 ± 0.062")
    figure, axes = pictures.new_figure(1, 1, 4, 4)
    report.per_layer(
        axes[0, 0], report.sections(result, "phone_accuracy"), "phones", report.systems(result)
    )
    drawn = {container.get_label(): container for container in axes[0, 0].containers}
    line = drawn["against tiny-hubert"].lines[0]
    np.testing.assert_allclose(line.get_xdata().astype(float), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata().astype(float), [0.7, 0.8, 0.9])
    assert list(axes[0, 0].get_xticks()) == [1, 2, 3]
    run = comparison.Run("run", base(), {}, "v", result)
    rows = {row[0]: row[1:] for row in comparison.evaluation_rows([run, run])}
    assert rows["phones, unseen sentences: against tiny-hubert"] == ["0.8750", "0.8750"]


def config_changed(**changed):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def whisper(folder):
    config = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60}
    config |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    transformers.WhisperModel(transformers.WhisperConfig(**config)).save_pretrained(folder)


def squeezed(folder):
    config = {name: value for name, value in TINY.items() if name != "conv_dim"}
    transformers.SEWModel(transformers.SEWConfig(**config)).save_pretrained(folder)


def other_rate(folder):
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=24_000)
    extractor.save_pretrained(folder)


def export_changed(**changed):
    """An export's code and config."""

    def change(folder):
        for source in directory.CODE:
            shutil.copy(source, folder)
        (folder / "preprocessor_config.json").touch()
        config_changed(model_type="uniwav", **changed)(folder)

    return change


def code_changed(folder):
    export_changed()(folder)
    with open(folder / "modeling_uniwav.py", "a") as file:
        file.write("raise SystemExit('code of the directory has run')\n")


@pytest.mark.parametrize(
    "change, words",
    [
        (shutil.rmtree, "there is no such directory"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "names no model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors; load"),
        (pickled, "convert its pytorch_model.bin"),
        (truncated, "model.safetensors is damaged"),
        (config_changed(model_type="huber"), "'huber', which transformers .* does not know"),
        (config_changed(model_type="huber", auto_map={"AutoModel": "x.Y"}), "does not know"),
        (config_changed(hidden_size="32"), "can't be used .*hidden_size"),
        (config_changed(num_hidden_layers=4), "lacks 16 weights .*encoder.layers.3"),
        (config_changed(model_type="uniwav"), "no configuration_uniwav.py; export the run again"),
        (code_changed, "modeling_uniwav.py is not the code of this version"),
        (export_changed(format_version=2), "can't be used .*config.json has format 2"),
        (other_rate, "24000 Hz and the shards have 16000 Hz"),
        (whisper, "'whisper' does not tell where its frames lie"),
        (squeezed, "makes 24 frames of 16000 samples where its config tells 49"),
    ],
)
def test_mistakes_are_one_sentence(hubert, tmp_path, change, words):
    folder = tmp_path / "model"
    shutil.copytree(hubert, folder)
    change(folder)
    with pytest.raises(UserError, match=words) as error:
        load_against(folder, base())
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_config_fetches_no_code(hubert, tmp_path):
    """An attention that lies on the hub is not asked for, and auto_map is not followed."""
    shutil.copytree(hubert, tmp_path, dirs_exist_ok=True)
    (tmp_path / "x.py").write_text("raise SystemExit('code of the directory has run')\n")
    config_changed(
        attn_implementation="somebody/kernel", auto_map={"AutoConfig": "x.X", "AutoModel": "x.Y"}
    )(tmp_path)
    wave = np.random.default_rng(0).normal(size=2_000).astype(np.float32)
    (found,), (expected,) = (load_against(f, base()).encode([wave]) for f in (tmp_path, hubert))
    np.testing.assert_array_equal(found["layers"], expected["layers"])


def test_a_model_without_hidden_states(hubert, monkeypatch):
    model = transformers.HubertModel
    forward = model.forward

    def silent(self, *arguments, **options):
        return forward(self, *arguments, **options | {"output_hidden_states": False})

    monkeypatch.setattr(model, "forward", silent)
    with pytest.raises(UserError, match="returns no hidden states"):
        load_against(hubert, base())
