"""Synthetic speech with phone labels, deterministic from a seed: the corpus of the demo.

Random words of a language's most frequent ones are spoken by many espeak voices. The training
voices say sentences of which one in ten is test (unseen sentences); two more voices are validation
only and two more test only (unseen voices). No sentence occurs twice.
"""

from __future__ import annotations

import json
import random

from data_pipelines import interrupts
from data_pipelines.corpora import Audio, Corpus, Utterance, espeak
from data_pipelines.errors import UserError

LICENCE = "CC0-1.0"
SOURCE = "espeak-ng (GPL-3.0) synthesis"
ATTRIBUTION = "Synthesised with espeak-ng; words from wordfreq (Robyn Speer)"
VOCABULARY = 1500
HELD_OUT_VOICES = 2
_TEST_SENTENCES = 0.1
# A voice that is only listened to needs less than one that is learned from.
_HELD_OUT_SHARE = 0.5
# espeak's name of an accent, and the language of its words.
_ACCENTS = (
    ("en-us", "en"), ("en", "en"), ("de", "de"), ("en-gb-scotland", "en"), ("es", "es"),
    ("en-us", "en"), ("fr", "fr"), ("en-gb-x-rp", "en"), ("it", "it"), ("en-us", "en"),
    ("pt", "pt"), ("en", "en"), ("nl", "nl"), ("en-029", "en"), ("pl", "pl"), ("en-us", "en"),
)  # fmt: skip
_HELD_OUT_ACCENTS = (("en-us", "en"), ("es", "es"), ("en", "en"), ("de", "de"))
_VARIANTS = (
    "m1", "f1", "m2", "f2", "m3", "f3", "m4", "f4", "m5", "f5", "m6", "Annie", "m7", "Andrea",
    "m8", "linda", "Alex", "steph", "Michael", "belinda", "Gene", "Alicia", "david", "aunty",
    "gustave", "anika", "Lee", "grandma", "Hugo", "shelby", "robert", "grandpa", "Diogo", "victor",
)  # fmt: skip
# Letters that espeak speaks in a second at one word a minute, measured over the languages above.
_LETTERS_PER_SECOND_PER_WPM = 0.1007


def corpus(
    *, minutes: float = 75.0, voices: int = 12, seed: int = 0, name: str = "synthetic"
) -> Corpus:
    """Plans the corpus; ``load`` speaks.

    Args:
      minutes: of audio in all, met within a few percent.
      voices: training voices; ``2 * HELD_OUT_VOICES`` others are added.
      seed: another seed gives other sentences, rates and pitches by the same voices.
      name: of the corpus.

    Raises:
      UserError: minutes or voices out of range, or a missing package.
    """
    if not 1 <= voices <= len(_VARIANTS) - 2 * HELD_OUT_VOICES:
        limit = len(_VARIANTS) - 2 * HELD_OUT_VOICES
        raise UserError(f"--voices {voices}: there are 1 to {limit} training voices")
    if not minutes > 0:
        raise UserError(f"--minutes {minutes} must be positive")
    speakers = _speakers(voices)
    seconds = 60.0 * minutes / sum(share for *_, share in speakers)
    words = {language: _vocabulary(language) for _, language, _, _ in speakers}
    said: set[str] = set()
    utterances: list[Utterance] = []
    for number, (voice, language, split, share) in enumerate(speakers):
        # Each voice draws its own numbers: more minutes or voices leave its first sentences.
        draw = random.Random(f"{seed} {voice}")
        # The voice's habits, far enough apart that speakers differ by more than timbre.
        habit_rate, habit_pitch = draw.randint(135, 195), draw.randint(30, 70)
        habit_range = draw.randint(35, 75)
        spoken, count = 0.0, 0
        while spoken < seconds * share or not count:
            text = _sentence(draw, words[language])
            manner = {
                "voice": voice,
                "words_per_minute": habit_rate + draw.randint(-12, 12),
                "pitch": habit_pitch + draw.randint(-6, 6),
                "pitch_range": habit_range,
                "decibels": round(-6.0 * draw.random(), 2),
            }
            is_test = draw.random() < _TEST_SENTENCES
            if text in said:
                continue
            said.add(text)
            spoken += len(text) / (_LETTERS_PER_SECOND_PER_WPM * manner["words_per_minute"])
            utterances.append(
                Utterance(
                    id=f"{seed}/{number:03d}-{voice}/{count:05d}",
                    recording=json.dumps(manner, sort_keys=True),
                    speaker=voice,
                    text=text,
                    language=language,
                    split=split or ("test" if is_test else "train"),
                    domain="synthetic",
                    licence=LICENCE,
                )
            )
            count += 1
    return Corpus(name, LICENCE, SOURCE, ATTRIBUTION, utterances, load)


def load(utterance: Utterance) -> Audio:
    """Speaks one planned utterance: float32[n, 1] and its phones."""
    manner = json.loads(utterance.recording)
    samples, rate, phones = espeak.speak(
        utterance.text,
        manner["voice"],
        words_per_minute=manner["words_per_minute"],
        pitch=manner["pitch"],
        pitch_range=manner["pitch_range"],
    )
    gain = samples.dtype.type(10.0 ** (manner["decibels"] / 20.0))
    return Audio((samples * gain)[:, None], rate, phones)


def _speakers(voices: int) -> list[tuple[str, str, str, float]]:
    """(espeak voice, language, split or "", share of the minutes); each has a variant of its own,
    since the variant is what makes the timbre."""
    held_out = len(_HELD_OUT_ACCENTS)
    speakers = []
    for k in range(held_out):
        accent, language = _HELD_OUT_ACCENTS[k]
        split = "validation" if k < HELD_OUT_VOICES else "test"
        variant = _VARIANTS[7 + k]
        speakers.append((f"{accent}+{variant}", language, split, _HELD_OUT_SHARE))
    training = _VARIANTS[:7] + _VARIANTS[7 + held_out :]
    for k in range(voices):
        accent, language = _ACCENTS[k % len(_ACCENTS)]
        speakers.append((f"{accent}+{training[k]}", language, "", 1.0))
    return speakers


def _vocabulary(language: str) -> list[str]:
    """The most frequent words of a language that are spelt with letters only."""
    try:
        with interrupts.deferred():
            import wordfreq
    except ImportError as error:
        raise UserError(
            "synthetic speech needs the package wordfreq: pip install espeakng-loader wordfreq"
        ) from error
    found = wordfreq.top_n_list(language, 2 * VOCABULARY, wordlist="small")
    return [word for word in found if word.isalpha() and len(word) > 1][:VOCABULARY]


def _sentence(draw: random.Random, words: list[str]) -> str:
    """6 … 16 words, with a comma (a pause) in the longer ones."""
    count = draw.randint(6, 16)
    chosen = [draw.choice(words) for _ in range(count)]
    if count > 8:
        chosen[draw.randint(3, count - 4)] += ","
    return " ".join(chosen) + "."
