"""One small corpus in the layouts of many formats.

Eight utterances of three speakers; the last two are parts of one longer recording wherever the
layout can say so.
"""

import csv
import importlib
import io
import json
import os
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np
import soundfile

# Layouts made with nothing else, and the packages that make the others.
OWN = ("folder", "librispeech", "kaldi", "nemo", "commonvoice", "webdataset")
FOREIGN = {"lhotse": "lhotse", "shar": "lhotse", "saved": "datasets", "parquet": "datasets"}
FOREIGN |= {"tfds": "tensorflow"}
EVERY = (*OWN, *FOREIGN)
RATE = 16000
SPEAKERS = {"19": "de", "84": "en", "367": "fr"}
TEXTS = (
    "Grüße aus Köln",
    'She said "no"',
    "déjà vu, ça va",
    "zwölf Boxkämpfer",
    "naïve café",
    "où est-il ?",
    "日本語 \u2028 too",
    "œuvre",
)


class Said(NamedTuple):
    """One utterance: ``pcm`` int16[n] at ``RATE``; ``start`` in samples of the long recording."""

    id: str
    speaker: str
    text: str
    language: str
    pcm: np.ndarray
    start: int | None


class Made(NamedTuple):
    """A corpus in the folder ``root``: the adapter, its arguments and the files that say what is
    where."""

    root: pathlib.Path
    adapter: str
    options: dict
    manifests: list


def listed(layout, **changes):
    """The corpus of a layout that was made."""
    return adapter(layout.adapter)(**layout.options | changes)


def adapter(name):
    return importlib.import_module(f"data_pipelines.corpora.{name}").corpus


def said():
    """The utterances, always the same."""
    found, start = [], 4000
    for number, text in enumerate(TEXTS):
        rng = np.random.default_rng(number)
        count = int(rng.integers(4000, 9000))
        tone = 6000 * np.sin(np.arange(count) * 2 * np.pi * (200 + 40 * number) / RATE)
        pcm = (tone + rng.normal(0, 500, count)).astype(np.int16)
        speaker = list(SPEAKERS)[number % 3]
        parted = number >= len(TEXTS) - 2
        found.append(
            Said(
                f"{speaker}-198-{number:04d}",
                speaker,
                text,
                SPEAKERS[speaker],
                pcm,
                start if parted else None,
            )
        )
        start += parted * (count + 3000)
    return found


def recordings(root, suffix=".flac", whole=False):
    """Writes the audio; (utterance, path relative to ``root``, start and end in seconds or None).
    ``whole``: the layout has a file for each utterance."""
    utterances = said()
    found = []
    long = np.random.default_rng(99).normal(0, 300, 40000).astype(np.int16)
    for u in utterances:
        if u.start is None or whole:
            path = f"audio/{u.id}{suffix}"
            write(root / path, u.pcm)
            found.append((u, path, None, None))
        else:
            long[u.start : u.start + len(u.pcm)] = u.pcm
            end = u.start + len(u.pcm)
            found.append((u, f"audio/long{suffix}", u.start / RATE, end / RATE))
    if not whole:
        write(root / f"audio/long{suffix}", long)
    return found


def write(path, pcm):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, pcm, RATE)


def save(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def folder(root):
    files = recordings(root, ".wav", whole=True)
    with open(root / "m.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "speaker", "text", "language"))
        rows.writerows((path, u.speaker, u.text, u.language) for u, path, *_ in files)
    options = {"source": str(root), "manifest": str(root / "m.csv")}
    return Made(root, "folder", options, [root / "m.csv"])


def librispeech(root):
    chapters = {}
    for u in said():
        chapter = root / "train-clean-100" / u.speaker / "198"
        write(chapter / f"{u.id}.flac", u.pcm)
        chapters.setdefault(chapter / f"{u.speaker}-198.trans.txt", []).append(f"{u.id} {u.text}")
    return Made(
        root,
        "librispeech",
        {"source": str(root)},
        [save(path, lines) for path, lines in chapters.items()],
    )


def kaldi(root):
    files = recordings(root)
    names = {path: path.rpartition("/")[2].removesuffix(".flac") for _, path, *_ in files}
    lengths = {path: soundfile.info(root / path).duration for path in names}
    tables = {
        "wav.scp": [f"{name} {path}" for path, name in names.items()],
        "segments": [
            f"{u.id} {names[path]} {start or 0} {end or lengths[path]}"
            for u, path, start, end in files
        ],
        "utt2spk": [f"{u.id} {u.speaker}" for u, *_ in files],
        "utt2lang": [f"{u.id} {u.language}" for u, *_ in files],
        "text": [f"{u.id} {u.text}" for u, *_ in files],
    }
    manifests = [save(root / file, lines) for file, lines in tables.items()]
    return Made(root, "kaldi", {"source": str(root)}, manifests)


def nemo(root):
    rows = []
    for u, path, start, _ in recordings(root):
        row = {"audio_filepath": path, "duration": len(u.pcm) / RATE, "text": u.text}
        row |= {"speaker": int(u.speaker), "lang": u.language}
        rows.append(row if start is None else row | {"offset": start})
    manifest = save(root / "train.json", (json.dumps(row, ensure_ascii=False) for row in rows))
    return Made(root, "nemo", {"source": str(manifest)}, [manifest])


def commonvoice(root):
    header = "client_id path sentence_id sentence up_votes down_votes locale segment".split()
    lines = ["\t".join(header)]
    for u in said():
        write(root / "clips" / f"{u.id}.mp3", u.pcm)
        lines.append("\t".join([u.speaker, f"{u.id}.mp3", "x", u.text, "2", "0", u.language, ""]))
    # The first utterance of each of two speakers; their others follow them.
    tables = [lines, [lines[0], lines[2]], [lines[0], lines[3]]]
    names = ["validated", "dev", "test"]
    manifests = [save(root / f"{n}.tsv", t) for n, t in zip(names, tables, strict=True)]
    return Made(root, "commonvoice", {"source": str(root)}, manifests)


def webdataset(root):
    paths = []
    for shard in range(2):
        paths.append(root / f"train-{shard:06d}.tar")
        root.mkdir(exist_ok=True)
        with tarfile.open(paths[-1], "w") as tar:
            for u in said()[shard::2]:
                encoded = io.BytesIO()
                soundfile.write(encoded, u.pcm, RATE, format="FLAC")
                meta = {"speaker_id": int(u.speaker), "language": u.language}
                add(tar, f"{u.id}.flac", encoded.getvalue())
                add(tar, f"{u.id}.json", json.dumps(meta).encode())
                add(tar, f"{u.id}.txt", u.text.encode())
    return Made(root, "webdataset", {"source": str(root)}, paths)


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def cuts(root):
    """A lhotse CutSet, by lhotse; each utterance with two phones."""
    import lhotse
    from lhotse.supervision import AlignmentItem

    audio, supervisions = {}, []
    for u, path, start, _ in recordings(root):
        name = path.rpartition("/")[2]
        audio.setdefault(name, lhotse.Recording.from_file(root / path, recording_id=name))
        begin, length = start or 0.0, len(u.pcm) / RATE
        supervisions.append(
            lhotse.SupervisionSegment(
                id=u.id,
                recording_id=name,
                start=begin,
                duration=length,
                text=u.text,
                speaker=u.speaker,
                language=u.language,
                alignment={
                    "phone": [
                        AlignmentItem("SIL", begin, 0.05),
                        AlignmentItem("ʁ", begin + 0.05, 0.1),
                    ]
                },
            )
        )
    return lhotse.CutSet.from_manifests(
        lhotse.RecordingSet.from_recordings(audio.values()),
        lhotse.SupervisionSet.from_segments(supervisions),
    ).trim_to_supervisions()


def lhotse(root, name="cuts.jsonl.gz"):
    cuts(root).to_file(root / name)
    return Made(root, "lhotse", {"source": str(root / name)}, [root / name])


def shar(root):
    # to_shar doesn't move phones with their cuts.
    out = root / "shar"
    out.mkdir(parents=True)
    cuts(root).drop_alignments().to_shar(out, fields={"recording": "flac"}, shard_size=5)
    return Made(root, "lhotse", {"source": str(out)}, sorted(out.iterdir()))


def saved(root):
    """A DatasetDict as save_to_disk writes it."""
    _datasets(root).save_to_disk(root / "saved")
    options = {"source": str(root / "saved"), "language_column": "lang"}
    return Made(root, "hf", options, sorted((root / "saved").rglob("*.json")))


def parquet(root):
    out = root / "set" / "data"
    out.mkdir(parents=True)
    for split, rows in _datasets(root).items():
        rows.to_parquet(out / f"{split}-00000-of-00001.parquet")
    options = {"source": str(root / "set"), "language_column": "lang"}
    return Made(root, "hf", options, sorted(out.iterdir()))


def tfds(root):
    """The folder layout as a data set of TFDS, as `tfds-build` makes it."""
    from data_pipelines import tfds_builder

    corpus = listed(folder(root / "in"))
    built, _ = tfds_builder.build(corpus, root / "built", sample_rate=RATE)
    return Made(root, "tfds", {"source": built}, sorted(pathlib.Path(built).iterdir()))


def _datasets(root):
    import datasets

    datasets.disable_progress_bars()
    rows = []
    for u, path, *_ in recordings(root, whole=True):
        audio = {"bytes": (root / path).read_bytes(), "path": os.path.basename(path)}
        rows.append({"audio": audio, "text": u.text, "speaker_id": int(u.speaker)})
        rows[-1]["lang"] = u.language
    parts = {"train": rows[:6], "validation": rows[6:]}
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(part).cast_column("audio", datasets.Audio())
            for split, part in parts.items()
        }
    )
