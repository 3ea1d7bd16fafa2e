"""Fine-tunes an exported model for recognition: a CTC head over characters.

    pip install torch transformers accelerate
    python examples/finetune_ctc.py --model DIR --audio WAVS --transcripts text.tsv --output OUT

A line of text.tsv (or .csv) is a file of WAVS and what is said there; every tenth is held out.
"""

import argparse
import csv
import json
import pathlib
import wave

import numpy as np
import torch
import transformers


def read(path):
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (rate, 1, 2):
            raise SystemExit(f"{path} is not mono of 16 bits at {rate} Hz; convert it first.")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def collate(rows):
    batch = extractor([read(options.audio / file) for file, _ in rows], rate, return_tensors="pt")
    labels = [torch.tensor(tokenizer(text).input_ids) for _, text in rows]
    batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, True, padding_value=-100)
    return batch


def edits(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b):
            row.append(min(row[j] + 1, before[j + 1] + 1, before[j] + (x != y)))
    return row[-1]


@torch.no_grad()
def measure(when):
    model.eval()
    outputs = [model(**collate([row]).to(model.device)) for row in held_out]
    found = tokenizer.batch_decode([output.logits[0].argmax(-1) for output in outputs])
    said = [text for _, text in held_out]
    loss, wrong = np.mean([output.loss.item() for output in outputs]), sum(map(edits, found, said))
    print(f"{when}: loss {loss:.3f}, character error rate {wrong / len(''.join(said)):.3f}")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for name in ("--model", "--audio", "--transcripts", "--output"):
    parser.add_argument(name, type=pathlib.Path, required=True)
for name, value in (("--steps", 2000), ("--batch-size", 8), ("--learning-rate", 3e-4)):
    parser.add_argument(name, type=type(value), default=value)
options = parser.parse_args()
with open(options.transcripts, encoding="utf-8", newline="") as file:
    how = {} if file.name.endswith(".csv") else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    rows = [(line[0], line[1].lower()) for line in csv.reader(file, **how) if line]
held_out, train = rows[::10], [row for i, row in enumerate(rows) if i % 10]
symbols = ["<pad>", "<unk>", "|", *sorted(set("".join(text for _, text in rows)) - {" "})]
options.output.mkdir(parents=True, exist_ok=True)
vocabulary = options.output / "vocab.json"
vocabulary.write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
tokenizer = transformers.Wav2Vec2CTCTokenizer(vocabulary, bos_token=None, eos_token=None)
transformers.set_seed(0)
extractor = transformers.AutoFeatureExtractor.from_pretrained(options.model, trust_remote_code=True)
rate, known = extractor.sampling_rate, {"trust_remote_code": True, "vocab_size": len(tokenizer)}
model = transformers.AutoModelForCTC.from_pretrained(options.model, **known)
settings = {"max_steps": options.steps, "learning_rate": options.learning_rate}
settings |= {"per_device_train_batch_size": options.batch_size, "warmup_steps": 0.1}
settings |= {"save_strategy": "no", "report_to": "none", "remove_unused_columns": False}
arguments = transformers.TrainingArguments(options.output / "trainer", **settings)
measure("before")
transformers.Trainer(model, arguments, collate, train).train()
measure("after")
for part in (model, extractor, tokenizer):
    part.save_pretrained(options.output)
