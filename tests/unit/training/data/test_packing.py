"""Packed rows cost nothing: every sample has the losses that it has alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.data.conftest import MakeCorpus
from tests.unit.training.data.layouts import reading_records, turns, write_jsonl, write_tars
from training.data.config import SourceConfig
from training.data.corpus import Corpus
from training.data.packed_layout import packed
from training.data.packer import pack_rows
from training.data.sample import Sample
from unimm.chat import ChatTemplate
from unimm.model import UniMM
from unimm.testing import tiny_model

lengths = st.lists(st.integers(1, 50), max_size=40)


def samples_of(lengths: list[int]) -> list[Sample]:
    return [Sample(n, str(n), "demo", (), (), (), length) for n, length in enumerate(lengths)]


@settings(deadline=None)
@given(lengths)
def test_all_samples_are_packed_once_and_fit(lengths: list[int]) -> None:
    rows = pack_rows(samples_of(lengths), 50)
    assert sorted(s.number for row in rows for s in row) == list(range(len(lengths)))
    assert all(0 < sum(s.length for s in row) <= 50 for row in rows)
    # Of two rows that are at most half full, first fit would have made one.
    assert len(rows) < 2 * sum(lengths) / 50 + 1


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 51 positions, a row has 50"):
        pack_rows(samples_of([51]), 50)


@pytest.fixture
def corpus(tmp_path: Path, make_corpus: MakeCorpus) -> Corpus:
    """Return drawing, reading and talk."""
    asked = [*reading_records(tmp_path, 4), {"conversations": turns("hello", "hi", "a", "b")}]
    read = SourceConfig(
        name="read", kind="jsonl", path=str(write_jsonl(tmp_path / "a.jsonl", asked)), weight=2
    )
    tars = str(write_tars(tmp_path / "tars", [4]))
    drawn = SourceConfig(name="drawn", kind="wds", path=tars, weight=1)
    return make_corpus(read, drawn, row_length=220, max_length=200)


def test_packed_losses_equal_the_separate_ones(corpus: Corpus, template: ChatTemplate) -> None:
    model = tiny_model()
    batch = corpus.batch(range(9))
    assert {sample.task for sample in batch.samples} == {"generation", "understanding", "text"}
    assert max(map(len, batch.rows)) > 1
    layout = packed(model, pad_id=template.pad_id, length=220)([s.segments for s in batch.samples])
    expected = model.lay_out_packed(batch.forks(), pad_id=template.pad_id, length=220)
    assert torch.equal(layout.token_ids, expected.token_ids)
    hidden = model(layout, latents(model, batch.read))
    losses, rows = model.token_losses(hidden, layout)
    assert torch.equal(rows, rows.sort().values)
    states = model.query_states(hidden, layout)
    alone = [separate(model, template, sample) for sample in batch.samples]
    # Sums of up to 220 terms in another order.
    torch.testing.assert_close(losses, torch.cat([a for a, _ in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states, torch.cat([s for _, s in alone]), rtol=1e-4, atol=1e-5)


def latents(model: UniMM, pictures: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    if not pictures:
        return None
    encoded: torch.Tensor = model.latents.encode(torch.stack(pictures).float() / 255)
    return encoded


def separate(
    model: UniMM, template: ChatTemplate, sample: Sample
) -> tuple[torch.Tensor, torch.Tensor]:
    layout = model.lay_out([sample.segments], pad_id=template.pad_id)
    hidden = model(layout, latents(model, sample.read))
    return model.token_losses(hidden, layout)[0], model.query_states(hidden, layout)


def test_a_packed_sample_does_not_see_its_neighbours(
    corpus: Corpus, template: ChatTemplate
) -> None:
    model = tiny_model()
    row = max(corpus.batch(range(9)).rows, key=len)
    lay_out = packed(model, pad_id=template.pad_id, length=220)
    last = row[-1].segments
    before = [s.segments for s in row[:-1]]
    layout = lay_out([*before, last])
    changed = layout.token_ids.clone()
    end = sum(s.length for s in row[:-1])
    changed[:, :end] = (changed[:, :end] + 7) % 300
    pictures = latents(model, tuple(p for s in row for p in s.read))
    hidden = model(layout, pictures)
    layout.token_ids.copy_(changed)
    other = model(layout, pictures)
    stop = end + row[-1].length
    torch.testing.assert_close(hidden[0, end:stop], other[0, end:stop])
    assert not torch.allclose(hidden[0, :end], other[0, :end])
