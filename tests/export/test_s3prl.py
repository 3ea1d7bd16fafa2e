"""The upstream expert against what s3prl asks of one; s3prl itself wants a torchaudio."""

import importlib
import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")

# One of less than a frame, one of whole frames, and one of a sample more.
SAMPLES = (16_123, 1, 6_400, 6_401)


@pytest.fixture(scope="module")
def hubconf(exported, tmp_path_factory):
    """The entries of an exported directory that is linked into a package of upstreams."""
    root = tmp_path_factory.mktemp("s3prl")
    (root / "linked_upstreams").mkdir()
    (root / "linked_upstreams" / "uniwav").symlink_to(exported)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield importlib.import_module("linked_upstreams.uniwav.hubconf")


@pytest.fixture(scope="module")
def upstream(hubconf, exported):
    """As s3prl makes it."""
    return hubconf.uniwav_local(ckpt=str(exported), model_config=None, refresh=False).eval()


@pytest.fixture(scope="module")
def wavs():
    """Noise of several lengths."""
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(samples, generator=generator) for samples in SAMPLES]


def test_the_hub_lists_one_entry(hubconf):
    assert [name for name in vars(hubconf) if not name.startswith("_")] == ["uniwav_local"]


def test_hidden_states_of_all_layers(upstream, wavs):
    with torch.no_grad():
        found = upstream(wavs)
    rate = upstream.get_downsample_rates("hidden_states")
    assert rate == 320 and len(found["hidden_states"]) == 3
    for h in (*found["hidden_states"], found["last_hidden_state"]):
        assert h.shape == (4, len(range(0, max(SAMPLES), rate)), 32) and h.dtype == torch.float32
        assert h.isfinite().all()


def test_padding_changes_no_frame(upstream, wavs):
    with torch.no_grad():
        together = upstream(wavs)
        for row, wav in enumerate(wavs):
            alone = upstream([wav])
            frames = len(range(0, len(wav), 320))
            for one, many in zip(alone["hidden_states"], together["hidden_states"], strict=True):
                assert one.shape[1] == frames
                torch.testing.assert_close(one[0], many[row, :frames], atol=2e-5, rtol=0)


def test_evaluation_repeats_itself(upstream, wavs):
    with torch.no_grad():
        once, again = upstream(wavs), upstream(wavs)
    assert torch.equal(torch.stack(once["hidden_states"]), torch.stack(again["hidden_states"]))
    assert torch.equal(once["last_hidden_state"], again["last_hidden_state"])


def test_fine_tuning_reaches_every_parameter_of_the_encoder(hubconf, exported, wavs):
    upstream = hubconf.uniwav_local(str(exported)).train()
    upstream(wavs)["last_hidden_state"].square().mean().backward()
    encoder = dict(upstream.model.encoder.named_parameters())
    still = {name for name, x in encoder.items() if x.grad is None or not x.grad.any()}
    assert still == {"mask_vector"}
    # Neither is loaded onto a device, nor decayed by an optimiser.
    rest = [name for name, _ in upstream.named_parameters()]
    assert not [name for name in rest if "decoder" in name or "teacher" in name]


def test_audio_of_another_rate_is_refused(hubconf, exported, wavs, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "24_kHz")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling_rate": 24_000}))
    with pytest.raises(ValueError, match="16000 Hz and the model takes 24000 Hz"):
        hubconf.uniwav_local(str(folder))(wavs)


def test_features_stay_on_their_device(upstream):
    found = upstream.extractor([torch.zeros(700, device="meta")], return_tensors="pt")
    assert {name: x.device.type for name, x in found.items()} == {
        "input_features": "meta",
        "attention_mask": "meta",
    }
