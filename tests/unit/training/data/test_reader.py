"""After a kill, training goes on with the very next sample, on any number of ranks and workers."""

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from training.data.packed_reader import PackedReader, merge_states
from training.data.reader import BatchReader
from training.data.sample import Sample, SampleBatch, Skipped
from unimm.errors import UserError

many = settings(max_examples=25, deadline=None)


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
    return make_corpus(words, drawn, row_length=200, max_length=120, open_rows=3)


def numbers(batch: SampleBatch) -> list[int]:
    return [s.number for s in batch.samples] + [s.number for s in batch.skipped]


def batch_readers(corpus: Corpus, ranks: int, batch_size: int) -> list[BatchReader]:
    return [
        BatchReader(corpus, batch_size=batch_size, rank=r, world_size=ranks) for r in range(ranks)
    ]


class Synthetic:
    """Stands in for a corpus: samples of a length that follows from their number."""

    fingerprint = "synthetic"

    def __init__(self, row_length: int = 100, open_rows: int = 4) -> None:
        self.config: Any = type("C", (), {"row_length": row_length, "open_rows": open_rows})

    def __getitem__(self, number: int) -> Sample | Skipped:
        if number % 11 == 3:
            return Skipped(number, str(number), "demo", "broken")
        length = 1 + number * 7919 % 100
        return Sample(number, str(number), "demo", (), (), (), length)

    def batch(self, numbers: Iterable[int]) -> SampleBatch:
        items = [self[number] for number in numbers]
        return SampleBatch(
            tuple((item,) for item in items if isinstance(item, Sample)),
            tuple(item for item in items if isinstance(item, Skipped)),
        )


@many
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(1, 5)
)
def test_batches_continue_on_any_number_of_ranks(
    before: int, after: int, size: int, steps: int, more: int
) -> None:
    corpus: Any = Synthetic()
    seen: list[int] = []
    readers = batch_readers(corpus, before, size)
    running: list[Iterator[SampleBatch]] = [iter(reader) for reader in readers]
    for _ in range(steps):
        for batches in running:
            seen += numbers(next(batches))
    states = [reader.state_dict() for reader in readers]
    assert all(state == states[0] for state in states)
    for reader in batch_readers(corpus, after, size):
        reader.load_state_dict(states[0])
        for batch in islice(reader, more):
            seen += numbers(batch)
    assert sorted(seen) == list(range(steps * size * before + more * size * after))


@many
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_every_number_of_ranks_sees_the_same_global_batches(ranks: int, steps: int) -> None:
    corpus: Any = Synthetic()
    readers = [iter(reader) for reader in batch_readers(corpus, ranks, 4 // ranks)]
    for step in range(steps):
        together = sorted(n for reader in readers for n in numbers(next(reader)))
        assert together == list(range(4 * step, 4 * step + 4))


@many
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), st.data())
def test_packed_rows_lose_and_repeat_nothing_over_restarts(
    worlds: list[int], rows: int, data: st.DataObject
) -> None:
    """Ranks are killed at different speeds, and come back as more or fewer."""
    corpus: Any = Synthetic()
    seen: list[int] = []
    states: list[dict[str, Any]] = []
    for world in worlds:
        readers = [
            PackedReader(corpus, rows=rows, rank=rank, world_size=world) for rank in range(world)
        ]
        for reader in readers:
            if states:
                reader.load_state_dict(states)
            for batch in islice(reader, data.draw(st.integers(0, 4))):
                seen += numbers(batch)
                assert all(sum(s.length for s in row) <= 100 for row in batch.rows)
        states = [reader.state_dict() for reader in readers]
    left = merge_states(states)
    assert len(set(seen)) == len(seen)
    assert sorted([*seen, *left.owed]) == list(range(left.frontier))


@many
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 2))
def test_packed_rows_go_on_bit_by_bit_on_as_many_ranks(world: int, steps: int, rank: int) -> None:
    rank = min(rank, world - 1)
    corpus: Any = Synthetic()

    def readers() -> list[PackedReader]:
        return [PackedReader(corpus, rows=2, rank=r, world_size=world) for r in range(world)]

    def rows(reader: PackedReader, count: int) -> list[Any]:
        return [[[s.number for s in row] for row in b.rows] for b in islice(reader, count)]

    whole = rows(readers()[rank], steps + 3)
    first = readers()
    for reader in first:
        rows(reader, steps)
    again = readers()[rank]
    again.load_state_dict([reader.state_dict() for reader in first])
    assert rows(again, 3) == whole[steps:]


def test_rows_are_well_filled() -> None:
    corpus: Any = Synthetic(row_length=400, open_rows=16)
    batches = list(islice(PackedReader(corpus, rows=10), 10))
    used = sum(sample.length for batch in batches for sample in batch.samples)
    assert used / (400 * 100) > 0.97


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(corpus: Corpus, workers: int) -> None:
    alone = list(islice(BatchReader(corpus, batch_size=3), 6))
    helped = list(islice(BatchReader(corpus, batch_size=3, num_workers=workers), 6))
    assert_same(alone, helped)


def test_packed_rows_do_not_depend_on_workers_either(corpus: Corpus) -> None:
    alone, helped = PackedReader(corpus, rows=2), PackedReader(corpus, rows=2, num_workers=2)
    assert_same(list(islice(alone, 4)), list(islice(helped, 4)))
    assert alone.state_dict() == helped.state_dict()


def assert_same(left: list[SampleBatch], right: list[SampleBatch]) -> None:
    assert len(left) == len(right)
    assert any(batch.drawn for batch in left)
    for one, other in zip(left, right, strict=True):
        assert [[s.key for s in row] for row in one.rows] == [
            [s.key for s in row] for row in other.rows
        ]
        assert one.skipped == other.skipped
        for mine, theirs in zip(one.drawn, other.drawn, strict=True):
            assert torch.equal(mine, theirs)


def test_a_real_mixture_goes_on_with_the_very_next_sample(corpus: Corpus) -> None:
    whole = [numbers(b) for b in islice(BatchReader(corpus, batch_size=4), 6)]
    reader = BatchReader(corpus, batch_size=4)
    before = [numbers(b) for b in islice(reader, 2)]
    later = BatchReader(corpus, batch_size=2, num_workers=1)
    later.load_state_dict(reader.state_dict())
    after = [numbers(b) for b in islice(later, 8)]
    assert sorted(n for b in (*before, *after) for n in b) == sorted(n for b in whole for n in b)


@pytest.mark.parametrize(("ranks", "workers", "after"), [(2, 2, 3), (1, 0, 4)])
def test_killed_processes_lose_and_repeat_nothing(
    corpus: Corpus, tmp_path: Path, ranks: int, workers: int, after: int
) -> None:
    """Every batch is saved as it is done; the ranks are killed wherever they are."""
    logs = [tmp_path / f"rank{rank}.jsonl" for rank in range(ranks)]
    processes = [
        get_context("fork").Process(target=log_batches, args=(corpus, log, rank, ranks, workers))
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    while min(map(count_lines, logs)) < 5:
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    for process in processes:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    step = min(map(count_lines, logs))
    saved = [[json.loads(line) for line in log.read_text().split("\n")[:step]] for log in logs]
    seen = [n for lines in saved for line in lines for n in line["numbers"]]
    for reader in batch_readers(corpus, after, 2):
        reader.load_state_dict(saved[0][-1]["state"])
        for batch in islice(reader, 3):
            seen += numbers(batch)
    assert sorted(seen) == list(range(step * ranks * 3 + 3 * after * 2))


def log_batches(corpus: Corpus, log: Path, rank: int, ranks: int, workers: int) -> None:
    os.setsid()  # so that its workers die with it
    reader = BatchReader(corpus, batch_size=3, rank=rank, world_size=ranks, num_workers=workers)
    with log.open("w") as file:
        for batch in reader:
            line = {"numbers": numbers(batch), "state": reader.state_dict()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            time.sleep(0.005)


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_positions_of_other_data_are_refused(
    corpus: Corpus, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    words = SourceConfig(name="words", kind="jsonl", path=str(tmp_path / "a.jsonl"))
    other = make_corpus(words, row_length=200)
    with pytest.raises(UserError, match="not what the checkpoint was trained on"):
        BatchReader(other, batch_size=1).load_state_dict(
            BatchReader(corpus, batch_size=1).state_dict()
        )
    reader = PackedReader(corpus, rows=1, rank=0, world_size=2)
    with pytest.raises(UserError, match="data states of 2 ranks"):
        reader.load_state_dict([reader.state_dict()])


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
