"""The CTC head against all alignments written out, and as users of transformers expect it."""

import itertools
import os
import subprocess
import sys
import wave

import numpy as np
import pytest

from tests import runs
from tests.export.models import WITHOUT_JAX

torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")
transformers = pytest.importorskip("transformers")

VOCABULARY = 3
HZ = {"a": 300, "b": 600, "c": 1200, "d": 2400}


def load(folder, **options):
    """The exported model with a head."""
    options = {"vocab_size": VOCABULARY, "trust_remote_code": True, **options}
    return transformers.AutoModelForCTC.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def model(exported):
    """With a head that isn't nearly zero; not to be changed."""
    model = load(exported)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    """Four and three frames; two labels and one; not to be changed."""
    generator = torch.Generator().manual_seed(0)
    return {
        "input_features": torch.randn(2, 4, 80, generator=generator),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[1, 2], [2, -100]]),
    }


def test_loss_is_that_of_all_alignments(model, batch):
    output = model(**batch)
    log_p = output.logits.detach().double().log_softmax(-1).numpy()
    losses = []
    for row, (frames, labels) in enumerate([(4, (1, 2)), (3, (2,))]):
        total = 0.0
        for path in itertools.product(range(VOCABULARY), repeat=frames):
            if tuple(label for label, _ in itertools.groupby(path) if label) == labels:
                total += np.exp(sum(log_p[row, t, label] for t, label in enumerate(path)))
        losses.append(-np.log(total) / len(labels))
    assert len(set(np.round(losses, 2))) == 2
    np.testing.assert_allclose(output.loss.item(), np.mean(losses), rtol=1e-5)


def test_what_is_saved_is_what_was_tuned(model, exported, batch, tmp_path):
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCTC.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert again.config.vocab_size == VOCABULARY
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        assert torch.equal(again(**batch, return_dict=False)[0], model(**batch).loss)
    whole = transformers.AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    encoder = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert encoder.decoder is None and encoder.teacher is None
    x, mask = batch["input_features"], batch["attention_mask"]
    with torch.no_grad():
        expected = whole(x, mask).last_hidden_state
        assert torch.equal(encoder(x, mask).last_hidden_state, expected)


def test_a_head_alone_is_trained(exported):
    model = load(exported)
    model.freeze_base_model()
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained == {"lm_head.weight", "lm_head.bias"}
    assert 0 < model.lm_head.weight.std() < 0.1


def test_a_label_outside_the_vocabulary_is_refused(model, batch):
    with pytest.raises(ValueError, match="3 is not below vocab_size 3"):
        model(**batch | {"labels": torch.tensor([[1, 3], [2, -100]])})


def test_checkpointed_gradients_are_the_same(exported, batch):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = load(exported).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
            assert model.uniwav.encoder.layers[0].gradient_checkpointing
        model(**batch).loss.backward()
        gradients.append({n: x.grad for n, x in model.named_parameters() if x.grad is not None})
    torch.testing.assert_close(*gradients)


def test_accumulated_steps_are_those_of_a_larger_batch(exported, tmp_path):
    generator = torch.Generator().manual_seed(0)
    row = {"labels": torch.tensor([1, 2])}
    rows = [row | {"input_features": torch.randn(9, 80, generator=generator)} for _ in range(4)]
    moved = []
    for size in (4, 2):
        torch.manual_seed(0)
        model = load(exported)
        before = model.lm_head.weight.detach().clone()
        arguments = transformers.TrainingArguments(
            tmp_path,
            **{"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1},
            **{"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size},
            **{"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True},
        )
        transformers.Trainer(model, arguments, train_dataset=rows).train()
        moved.append(model.lm_head.weight.detach() - before)
    assert moved[0].abs().max() > 1e-3
    torch.testing.assert_close(*moved)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Wav files of three tones each, and transcripts in which every tone is a letter."""
    root, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    place, lines = np.arange(3200) / 16_000, []
    for number in range(80):
        text = "".join(rng.choice(list(HZ), 3))
        tones = [0.3 * np.sin(2 * np.pi * HZ[letter] * place) for letter in text]
        samples = np.concatenate([np.pad(tone, (0, 1600)) for tone in tones])
        samples += 1e-3 * rng.normal(size=len(samples))
        with wave.open(str(root / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((32767 * samples).astype("<i2").tobytes())
        lines.append(f"{number}.wav\t{text}\n")
    # Blank lines between them are none.
    (root / "text.tsv").write_text("\n".join(lines))
    return root


def test_the_example_learns_without_jax(exported, tones, tmp_path):
    script = runs.ROOT / "examples" / "finetune_ctc.py"
    assert len(script.read_text().splitlines()) <= 80
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, script, "--model", exported, "--audio", tones]
        + ["--transcripts", tones / "text.tsv", "--output", tmp_path]
        + ["--steps", "200", "--learning-rate", "1e-2"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    measured = {}
    for line in result.stdout.splitlines():
        if line.startswith(("before: ", "after: ")):
            when, figures = line.split(": ")
            measured[when] = [float(figure.split()[-1]) for figure in figures.split(", ")]
    (loss_before, _), (loss, character_error_rate) = measured["before"], measured["after"]
    assert loss < 0.1 * loss_before and character_error_rate < 0.1
    recognizer = transformers.pipeline(
        "automatic-speech-recognition", str(tmp_path), trust_remote_code=True
    )
    with wave.open(str(tones / "0.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    text = (tones / "text.tsv").read_text().split()[1]
    assert recognizer(samples)["text"] == text
    # Each tone lasts 0.2 s and a pause of 0.1 s follows.
    timed = recognizer(samples, return_timestamps="char")["chunks"]
    for number, chunk in enumerate(timed):
        assert chunk["text"] == text[number]
        assert 0.3 * number - 0.05 < chunk["timestamp"][0] < 0.3 * number + 0.25
    # Of long audio, piece by piece, nothing is lost.
    cut = recognizer(np.tile(samples, 6), chunk_length_s=2, stride_length_s=0.5)["text"]
    assert abs(len(cut) - 6 * len(text)) <= 2
