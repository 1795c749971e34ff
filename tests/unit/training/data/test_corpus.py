"""Samples by number: the same whoever asks, and pictures of the encoder's size."""

from pathlib import Path

import pytest
import torch

from tests.unit.training.data.conftest import MakeCorpus
from tests.unit.training.data.layouts import (
    png,
    reading_records,
    turns,
    write_jsonl,
    write_tars,
)
from training.data.config import SourceConfig
from training.data.corpus import Corpus
from training.data.sample import Sample, SampleBatch


@pytest.fixture
def corpus(tmp_path: Path, make_corpus: MakeCorpus) -> Corpus:
    """Return a mixture of tars and lines in which every fifth line is no good."""
    records = [
        {"conversations": turns("say", "word " * (n % 7 + 1)) if n % 5 else "broken"}
        for n in range(23)
    ]
    words = SourceConfig(
        name="words", kind="jsonl", path=str(write_jsonl(tmp_path / "a.jsonl", records)), weight=2
    )
    tars = write_tars(tmp_path / "tars", [3, 4])
    drawn = SourceConfig(name="drawn", kind="wds", path=str(tars), weight=1)
    return make_corpus(words, drawn, row_length=200, max_length=120)


def numbers(batch: SampleBatch) -> list[int]:
    return [s.number for s in batch.samples] + [s.number for s in batch.skipped]


def keys(batch: SampleBatch) -> list[str]:
    return sorted([*(s.key for s in batch.samples), *(s.key for s in batch.skipped)])


def test_a_mixture_gives_every_number_once_in_whatever_parts_it_is_read(corpus: Corpus) -> None:
    whole = corpus.batch(range(60))
    assert sorted(numbers(whole)) == list(range(60))
    assert whole.skipped
    assert whole.drawn
    parts = [corpus.batch(range(first, first + 7)) for first in range(0, 63, 7)]
    together = sorted(key for part in parts for key in keys(part))
    assert sorted(keys(whole) + keys(corpus.batch(range(60, 63)))) == together


def test_packed_samples_come_in_rows_that_fit(corpus: Corpus) -> None:
    batch = corpus.batch(range(40))
    assert all(sum(s.length for s in row) <= 200 for row in batch.rows)
    assert len(batch.rows) < len(batch.samples)


def test_pictures_fit_the_encoder(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    records = reading_records(tmp_path, 1)
    (tmp_path / "pictures" / "0.png").write_bytes(png(9, size=(40, 20)))
    path = str(write_jsonl(tmp_path / "a.jsonl", records))
    source = SourceConfig(name="demo", kind="jsonl", path=path)
    for fit in ("crop", "stretch"):
        (sample,) = (make_corpus(source, fit=fit)[0],)
        assert isinstance(sample, Sample)
        assert sample.task == "understanding"
        assert sample.read[0].shape == (3, 16, 16)
        assert sample.read[0].dtype == torch.uint8
        assert sample.read[0][:, 0, 0].tolist() == [9, 100, 200]
