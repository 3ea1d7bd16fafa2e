"""What is read of an EnCodec directory, and the sentences for what can't be."""

import json
import os
import pickle
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.damage import damage, sentence_or_nothing  # noqa: E402
from tests.features import codecs  # noqa: E402
from uniwav_jax.errors import UserError  # noqa: E402
from uniwav_jax.features import encodec  # noqa: E402

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
NORM = {"original0": "weight_g", "original1": "weight_v"}
FIRST = "encoder.layers.0.conv"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory as transformers writes it; not to be changed."""
    folder = tmp_path_factory.mktemp("codec")
    codecs.saved(folder, **codecs.ODD)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "codec")


def tensors_of(folder):
    return load_file(folder / SAFETENSORS)


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder, change):
    """`change` takes the tensors and changes them in place."""
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / SAFETENSORS)


def old_names(tensors):
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }


def rewrite(folder, how):
    """The same network in another file."""
    tensors = tensors_of(folder)
    if "old" in how:
        tensors = old_names(tensors)
    if "wide" in how:
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    (folder / SAFETENSORS).unlink()
    if "bin" in how:
        # Another order, too.
        torch.save(dict(reversed(tensors.items())), folder / TORCH)
    else:
        save_file(tensors, folder / SAFETENSORS)


@pytest.mark.parametrize("how", ["old", "bin", "old bin", "wide", "wide bin"])
def test_the_same_network_in_another_file(how, whole, folder):
    rewrite(folder, how)
    expected, found = encodec.load(whole, np.float64), encodec.load(folder, np.float64)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert encodec.fingerprint(folder) == encodec.fingerprint(whole)


def test_weight_norm_is_pytorchs(whole):
    params = encodec.load(whole, np.float64).params
    model = codecs.make(**codecs.ODD).double()
    # A strided convolution, one in a block, a transposed one: PyTorch's axes, turned.
    strided = model.encoder.layers[4].conv.weight.detach().numpy()
    np.testing.assert_allclose(
        params["encoder"]["4"]["kernel"], strided.transpose(2, 1, 0), rtol=1e-14
    )
    block = model.encoder.layers[1].block[1].conv.weight.detach().numpy()
    np.testing.assert_allclose(
        params["encoder"]["1"]["block"]["1"]["kernel"], block.transpose(2, 1, 0), rtol=1e-14
    )
    transposed = model.decoder.layers[3].conv.weight.detach().numpy()
    np.testing.assert_allclose(
        params["decoder"]["3"]["kernel"], transposed.transpose(2, 0, 1), rtol=1e-14
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(dtype, whole, folder):
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(whole).items()}
    save_file(tensors, folder / SAFETENSORS)
    bias = encodec.load(folder).params["encoder"]["0"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, tensors[f"{FIRST}.bias"].float())


def test_fingerprint_is_of_the_network(whole, folder):
    original = encodec.fingerprint(whole)
    assert len(original) == 64 and int(original, 16)
    edit_config(folder, transformers_version="9.9", trim_right_ratio=1, target_bandwidths=[3.0])
    edit_tensors(folder, lambda x: x.update({"quantizer.other": torch.zeros(3)}))
    assert encodec.fingerprint(folder) == original
    edit_config(folder, pad_mode="constant")
    assert encodec.fingerprint(folder) != original
    edit_config(folder, pad_mode="reflect")
    assert encodec.fingerprint(folder) == original
    edit_tensors(folder, lambda x: x[f"{FIRST}.bias"].mul_(1 + 2**-22))
    assert encodec.fingerprint(folder) != original


def refused(folder, message):
    """Both functions end with the same sentence, which names the place."""
    for function in (encodec.load, encodec.fingerprint):
        with pytest.raises(UserError, match=message) as found:
            function(folder)
        assert str(folder) in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "field,value",
    [
        ("model_type", "mimi"),
        ("norm_type", "time_group_norm"),
        ("normalize", True),
        ("chunk_length_s", 1.0),
        ("audio_channels", 2),
        ("pad_mode", "replicate"),
        ("num_filters", 0),
        ("num_filters", 10**9),
        ("num_filters", 4.0),
        ("hidden_size", True),
        ("upsampling_ratios", []),
        ("upsampling_ratios", [3, "2"]),
        ("upsampling_ratios", [2] * 1000),
        ("use_causal_conv", "yes"),
        ("trim_right_ratio", 1.5),
        ("trim_right_ratio", None),
        ("compress", 5),
        ("num_residual_layers", 10**12),
        ("dilation_growth_rate", 10**12),
    ],
)
def test_a_config_that_is_not_supported(field, value, folder):
    edit_config(folder, **{field: value})
    refused(folder, rf"config\.json: {field} = ")


def test_fields_that_contradict_each_other(folder):
    edit_config(folder, use_causal_conv=False, trim_right_ratio=0.5)
    refused(folder, "trim_right_ratio = 0.5 needs use_causal_conv")
    edit_config(folder, use_causal_conv=True, dilation_growth_rate=9, num_residual_layers=6)
    refused(folder, "dilations over 4096")


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"model_type": "encodec"', b"\xff\xfe", b"1"])
def test_a_config_that_is_none(content, folder):
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json (is not JSON|holds no fields)")


def test_directories_without_files(folder, tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    (folder / SAFETENSORS).unlink()
    refused(folder, "holds no weights")
    (folder / "config.json").unlink()
    refused(folder, "does not exist")


TENSORS = {
    "lacks the tensor encoder.layers.0.conv.bias": lambda x: x.pop(f"{FIRST}.bias"),
    "lacks the tensor decoder.layers.1.lstm.bias_hh_l0": lambda x: x.pop(
        "decoder.layers.1.lstm.bias_hh_l0"
    ),
    r"has the shape \[5\]; the config beside it asks for \[4\]": lambda x: x.update(
        {f"{FIRST}.bias": torch.zeros(5)}
    ),
    "holds the tensor encoder.layers.0.norm.weight": lambda x: x.update(
        {"encoder.layers.0.norm.weight": torch.zeros(4)}
    ),
    "is of I64, not of floats": lambda x: x.update(
        {f"{FIRST}.bias": torch.zeros(4, dtype=torch.int64)}
    ),
    "twice, in both namings": lambda x: x.update({f"{FIRST}.weight_g": torch.zeros(4, 1, 1)}),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_are_not_the_configs(message, folder):
    edit_tensors(folder, TENSORS[message])
    refused(folder, message)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite(value, folder):
    def change(tensors):
        tensors[f"{FIRST}.bias"] = torch.full((4,), value, dtype=torch.float64)

    edit_tensors(folder, change)
    with pytest.raises(UserError, match="encoder.layers.0.conv holds values that are not finite"):
        encodec.load(folder)


def test_nothing_is_read_before_shapes_are_known(folder):
    # The last tensor claims a tebibyte, which is there: a hole at the end of the file.
    content = (folder / SAFETENSORS).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    last = max(header.keys() - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    first = header[last]["data_offsets"][0]
    header[last].update(shape=[2**38], data_offsets=[first, first + 2**40])
    text = json.dumps(header).encode()
    with open(folder / SAFETENSORS, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + content[begin:])
        file.truncate(8 + len(text) + first + 2**40)
    refused(folder, r"has the shape \[274877906944\]")


@pytest.mark.parametrize("name", [SAFETENSORS, TORCH])
def test_damaged_files(name, folder):
    if name == TORCH:
        rewrite(folder, "bin")
    content, found = (folder / name).read_bytes(), []
    for number in range(40):
        (folder / name).write_bytes(content)
        what = damage(folder / name, number)
        with sentence_or_nothing(what, found):
            encodec.load(folder)
    # Where values alone changed it is another network, which the fingerprint tells.
    assert len(found) >= 16
    (folder / name).write_bytes(content[: len(content) // 2])
    refused(folder, "is damaged")


class Call:
    """Pickled as a call that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled_but_tensors(folder, tmp_path):
    tensors = tensors_of(folder)
    (folder / SAFETENSORS).unlink()
    torch.save({**tensors, "more": Call(tmp_path / "owned")}, folder / TORCH)
    refused(folder, "is damaged or holds more than tensors")
    (folder / TORCH).write_bytes(pickle.dumps(Call(tmp_path / "owned")))
    refused(folder, "is damaged or holds more than tensors")
    assert not (tmp_path / "owned").exists()
    torch.save({**tensors, "more": 3}, folder / TORCH)
    refused(folder, "something else than named tensors")
    torch.save(list(tensors.values()), folder / TORCH)
    refused(folder, "something else than named tensors")
    torch.save({**tensors, "more": torch.zeros(2, device="meta")}, folder / TORCH)
    refused(folder, "something else than named tensors")


def test_a_compressed_archive_is_refused(folder):
    rewrite(folder, "bin")
    with zipfile.ZipFile(folder / TORCH) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / TORCH, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(folder, "it is compressed")


def test_without_torch_only_its_own_file_is_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    encodec.load(folder)
    (folder / SAFETENSORS).rename(folder / TORCH)
    refused(folder, "needs torch to be read")
