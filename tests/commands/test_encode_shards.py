"""Latents that the command writes, against PyTorch's network on the same recordings."""

import ml_dtypes
import numpy as np
import pytest

from data_pipelines import latents
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from tests.data_pipelines.noise import RATE, write_noise
from uniwav_jax.__main__ import main
from uniwav_jax.features import encodec

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)


def test_latents_are_those_of_whole_recordings(tmp_path, capfd):
    shards, directory = tmp_path / "shards", tmp_path / "codec"
    write_noise(shards, "a", 6)
    model = codecs.saved(
        directory, "float32", **codecs.ODD | {"upsampling_ratios": [5, 2]}, sampling_rate=RATE
    )
    command = ["encode-shards", "--data", str(shards), "--codec", str(directory)]
    command += ["--utterances", "4"]
    assert main(command) == 0 and "written" in capfd.readouterr().out
    assert main(command) == 0 and "there already" in capfd.readouterr().out
    index = read_index(shards)
    codec = latents.Codec(encodec.fingerprint(directory), RATE, hop=10, channels=16)
    reader, audio = latents.LatentReader(index, codec), RecordReader(index)
    for record in range(6):
        wave = audio[record].waveform()
        (piece,) = reader.crop([record], 0, 10_000)
        out = np.empty((piece.count, 16), np.uint16)
        reader.decode(piece, reader.entry(record, 0), out)
        (expected,) = codecs.encode(model, [wave])
        assert expected.std() > 0.1
        found = out.view(ml_dtypes.bfloat16).astype(np.float32)
        # Half a unit in the last of bfloat16's eight bits.
        np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-3)


def test_mistakes_are_one_sentence(tmp_path, capfd):
    shards, directory = tmp_path / "shards", tmp_path / "codec"
    write_noise(shards, "a", 3)
    codecs.saved(directory, "float32", **codecs.ODD, sampling_rate=24_000)
    command = ["encode-shards", "--data", str(shards), "--codec"]
    capfd.readouterr()
    for codec, said in (
        (directory, f"has a sample rate of {RATE} Hz and the codec takes 24000 Hz"),
        (tmp_path / "none", "none"),
        (shards, "config.json"),
    ):
        assert main([*command, str(codec)]) == 2
        error = capfd.readouterr().err
        assert said in error and error.startswith("error: ") and error.count("\n") == 1
