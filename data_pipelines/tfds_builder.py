"""Our corpora as data sets of TensorFlow Datasets (TFDS), for programs that read those.

Importing this module imports TensorFlow and registers the builder ``uniwav``, of which each corpus
is a config: ``uniwav/synthetic``. The audio is what the shards would hold, as int16.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import shards
from data_pipelines.convert import to_record
from data_pipelines.corpora import Corpus, Utterance
from data_pipelines.corpora.tfds import FILE_FORMAT, library
from data_pipelines.errors import Rejected, UserError
from data_pipelines.files import FULL_MESSAGES, content_digest, full_disk_error
from data_pipelines.records import SPLITS

tfds = library()
_STRINGS = ("id", "speaker", "text", "language", "label", "domain")


def build(corpus: Corpus, data_dir: str | os.PathLike, *, sample_rate: int) -> tuple[str, bool]:
    """Builds ``data_dir/uniwav/NAME/VERSION``, in ArrayRecord.

    Args:
      corpus: what to build; its name is the config's.
      data_dir: where TFDS keeps data sets.
      sample_rate: of the audio, in Hz.

    Returns:
      The folder, and whether it was built now (False: it was there already).

    Raises:
      UserError: nothing to build, everything rejected, the folder can't be made or holds another
        listing of the corpus, or the disk is full.
    """
    if sample_rate < 1:
        raise UserError("the sample rate must be at least 1")
    try:
        os.makedirs(data_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {data_dir} can't be made: {error.strerror}") from error
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = Uniwav(
        config=CorpusConfig(name=corpus.name, corpus=corpus, sample_rate=sample_rate),
        data_dir=data_dir,
        file_format=FILE_FORMAT,
    )
    if builder.is_prepared():
        if builder.info.metadata["listing"] != builder.builder_config.listing:
            raise UserError(
                f"{builder.data_dir} holds another listing of {corpus.name}: name another --out or "
                "remove it"
            )
        return str(builder.data_dir), False
    try:
        # TFDS prints how much it will download: nothing.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:
        if any(words in str(error) for words in FULL_MESSAGES):
            raise full_disk_error(builder.data_dir) from error
        raise
    return str(builder.data_dir), True


@dataclasses.dataclass(eq=False)
class CorpusConfig(tfds.core.BuilderConfig):
    """What to build: ``name`` (the corpus's), ``corpus``, ``sample_rate`` in Hz."""

    corpus: Corpus | None = None
    sample_rate: int = 16000

    @functools.cached_property
    def listing(self) -> str:
        """A digest of the request, independent of where the corpus lies."""
        utterances = shards.listing_digest(shards.prepare(self.corpus))
        return content_digest({"rate": self.sample_rate, "utterances": utterances})


class Uniwav(tfds.core.GeneratorBasedBuilder):
    """Speech of one of our corpora.

    ``tfds.builder("uniwav", config=CorpusConfig(...), data_dir=..., file_format="array_record")``.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        corpus = self.builder_config.corpus
        rate = self.builder_config.sample_rate
        strings = {name: tfds.features.Text() for name in _STRINGS}
        # As bytes: TFDS stores bare integers with up to 10 bytes each.
        audio = tfds.features.Audio(
            sample_rate=rate, dtype=np.int16, encoding=tfds.features.Encoding.BYTES
        )
        phones = tfds.features.Sequence(
            {"start": np.int64, "end": np.int64, "symbol": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Speech, mono. Phones, where they are known: start and end in samples, "
            "end exclusive. What is not known is empty.",
            features=tfds.features.FeaturesDict({"audio": audio, "phones": phones, **strings}),
            supervised_keys=("audio", "text"),
            homepage=corpus.source,
            citation=corpus.attribution,
            license=corpus.licence,
            metadata=tfds.core.MetadataDict(listing=self.builder_config.listing, rejects={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        utterances = shards.prepare(self.builder_config.corpus)
        splits = {}
        for split in SPLITS:
            examples = self._generate_examples([u for u in utterances if u.split == split])
            # TFDS refuses a split without examples.
            if first := list(itertools.islice(examples, 1)):
                splits[split] = itertools.chain(first, examples)
        if not splits:
            name, reason = next(iter(self.info.metadata["rejects"].items()))
            raise UserError(f"every utterance was rejected ({name}: {reason}): is this audio?")
        return splits

    def _generate_examples(self, utterances: Sequence[Utterance]) -> Iterator[tuple[str, dict]]:
        config, rejects = self.builder_config, self.info.metadata["rejects"]
        for utterance in utterances:
            try:
                audio = config.corpus.load(utterance)
                record = to_record(utterance, audio, config.corpus.name, config.sample_rate)
            except Rejected as reject:
                rejects[utterance.id] = f"{reject.reason}: {reject.detail}"
                continue
            samples = (record.waveform() * np.float32(32768.0)).astype(np.int16)
            yield (
                utterance.id,
                {
                    # Audio passes an array on as it is, so its encoding is done here.
                    "audio": np.array(samples.tobytes(), np.object_),
                    "phones": {
                        "start": record.phones.start,
                        "end": record.phones.end,
                        "symbol": record.phones.symbols,
                    },
                    **{name: getattr(record, name) for name in _STRINGS},
                },
            )
