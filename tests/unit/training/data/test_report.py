"""What cannot be used is counted and named, and too much of it stops the run."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.unit.training.data.conftest import MakeCorpus
from tests.unit.training.data.layouts import drawing_members, png, turns, write_jsonl, write_tar
from training.data.config import DataConfig, SourceConfig
from training.data.report import SkipReport
from training.data.sample import SampleBatch
from training.data.summary import summarise
from unimm.config_io import from_dict
from unimm.errors import UnimmError

DOCS = Path(__file__).resolve().parents[4] / "docs" / "data.md"


def config(**settings: float) -> DataConfig:
    source = SourceConfig(name="demo", kind="wds", path="demo.tar")
    return DataConfig(sources=(source,), **settings)  # type: ignore[arg-type]


def damaged_tar(tmp_path: Path, count: int) -> SourceConfig:
    """Return samples of which every fourth has a damaged picture."""
    members = [
        (name, content[:60] if name.endswith(".png") and place % 8 == 7 else content)
        for place, (name, content) in enumerate(drawing_members(0, count))
    ]
    path = write_tar(tmp_path / "a.tar", members)
    return SourceConfig(name="demo", kind="wds", path=str(path))


def add(report: SkipReport, batch: SampleBatch) -> None:
    report.count(len(batch.samples) + len(batch.skipped), batch.skipped)


def test_a_damaged_picture_is_skipped_counted_and_named(
    tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    corpus = make_corpus(damaged_tar(tmp_path, 8), shuffle=False)
    report = SkipReport(tmp_path / "run" / "skipped.jsonl", config(max_skipped_share=0.3))
    for first in range(0, 8, 2):
        batch = corpus.batch(range(first, first + 2))
        add(report, batch)
    assert (report.num_read, report.num_skipped) == (8, 2)
    lines = [json.loads(line) for line in report.path.read_text().splitlines()]
    assert [line["number"] for line in lines] == [3, 7]
    assert lines[0]["key"].endswith("a.tar:3")
    assert "3.png is damaged or truncated" in lines[0]["reason"]


def test_a_resumed_run_names_nothing_twice(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(damaged_tar(tmp_path, 8), shuffle=False)
    path = tmp_path / "skipped.jsonl"
    first = SkipReport(path, config())
    add(first, corpus.batch(range(4)))
    state = first.state_dict()
    add(first, corpus.batch(range(4, 8)))
    with path.open("a") as file:
        file.write('{"number": 9')  # killed here
    again = SkipReport(path, config())
    again.load_state_dict(state)
    add(again, corpus.batch(range(4, 12)))
    numbers = [json.loads(line)["number"] for line in path.read_text().splitlines() if "}" in line]
    assert numbers == [3, 7, 11]
    assert (again.num_read, again.num_skipped) == (12, 3)


def test_too_much_damage_stops_the_run(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(damaged_tar(tmp_path, 8), shuffle=False)
    patient = SkipReport(tmp_path / "a.jsonl", config(max_skipped_share=0.1, skipped_grace=9))
    add(patient, corpus.batch(range(8)))
    strict = SkipReport(tmp_path / "b.jsonl", config(max_skipped_share=0.1, skipped_grace=8))
    with pytest.raises(UnimmError, match=r"2 of 8 samples .*max_skipped_share=0\.1; the last is"):
        add(strict, corpus.batch(range(8)))


def test_the_summary_counts_what_the_files_hold(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    words = write_jsonl(tmp_path / "w.jsonl", [{"conversations": turns("a", "b")}] * 6)
    talk = SourceConfig(name="talk", kind="jsonl", path=str(words), weight=1)
    members = [*drawing_members(0, 3), ("x.json", b"{"), ("x.png", png())]
    tar = write_tar(tmp_path / "a.tar", members)
    drawn = SourceConfig(name="drawn", kind="wds", path=str(tar), weight=3)
    corpus = make_corpus(talk, drawn, row_length=400)
    summary = summarise(corpus)
    first, second = summary.sources
    assert (first.num_samples, second.num_samples, summary.num_samples) == (6, 4, 10)
    assert second.num_bytes == tar.stat().st_size
    assert (first.drawn_per_sample, second.drawn_per_sample) == (0, 1)
    assert (second.num_probed, second.num_unusable) == (4, 1)
    assert summary.drawn_per_sample == pytest.approx(0.75)
    (sample,) = {len(s.segments) and s.length for s in corpus.batch(range(4)).samples[:1]}
    assert sample in {first.positions_per_sample, second.positions_per_sample}
    assert summary.passes(16) == pytest.approx({"talk": 16 / 4 / 6, "drawn": 16 * 3 / 4 / 4})
    text = "\n".join(summary.lines(16))
    assert "drawn (wds): 4 samples" in text
    assert "1 of 4 samples looked at cannot be used; the first:" in text
    assert "a packed row of 400 holds about" in text


def test_the_documented_sections_can_be_read() -> None:
    sections = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(sections) == 2
    for section in sections:
        assert from_dict(DataConfig, yaml.safe_load(section)["data"]).sources


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_skipped_share": 1.5}, "max_skipped_share must be in"),
        ({"row_length": 100}, r"row_length \(100\) must be at least max_length"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_sources_agree_on_weights_and_differ_in_name() -> None:
    one = SourceConfig(name="a", kind="wds", path="a", weight=1)
    with pytest.raises(ValueError, match="a weight, or none"):
        DataConfig(sources=(one, SourceConfig(name="b", kind="wds", path="b")))
    with pytest.raises(ValueError, match="different names"):
        DataConfig(sources=(one, one))
    with pytest.raises(ValueError, match="num_samples of s must say"):
        SourceConfig(name="s", kind="hf_stream", path="owner/name")
