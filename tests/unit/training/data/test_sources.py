"""Every layout gives its records by position, and says what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.layouts import (
    drawing_members,
    png,
    reading_records,
    turns,
    write_jsonl,
    write_parquet,
    write_tar,
    write_tars,
)
from training.data.config import DataConfig, SourceConfig
from training.data.sample import SampleError
from training.data.sources import Source, open_source
from unimm.errors import UserError


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def open_it(kind: Any, path: Path | str, **settings: Any) -> Source:
        source = SourceConfig(name="demo", kind=kind, path=str(path), **settings)
        data = DataConfig(sources=(source,), index_dir=tmp_path / "index")
        return open_source(source, data, seed=0)

    return open_it


def test_a_manifests_tars_are_read_by_position(tmp_path: Path, opened: Any) -> None:
    source = opened("wds", write_tars(tmp_path / "tars", [3, 1, 2]))
    assert list(source.block_sizes) == [3, 1, 2]
    for index in (5, 0, 3, 4):
        record = source.record(index)
        assert record.fields["conversations"][0]["value"] == f"draw {index}"
        assert record.images == ((f"{index}.png", png(index)),)
    assert source.key(3).endswith("001.tar:3")
    assert source.record(0, with_images=False).images == ()


def test_a_folder_of_tars_and_one_tar_are_read_alike(tmp_path: Path, opened: Any) -> None:
    write_tars(tmp_path / "tars", [2, 2])
    assert list(opened("wds", tmp_path / "tars").block_sizes) == [2, 2]
    assert list(opened("wds", tmp_path / "tars" / "001.tar").block_sizes) == [2]


def test_what_webdataset_writes_is_read(tmp_path: Path, opened: Any) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "written.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            text = f"picture {number}"
            writer.write({"__key__": f"a/{number:04d}", "png": png(number), "txt": text})
    source = opened("wds", path, layout="caption")
    record = source.record(2)
    assert record.fields == {"text": "picture 2"}
    assert record.images == (("a/0002.png", png(2)),)


def test_a_tars_index_is_remembered_until_the_tar_changes(tmp_path: Path, opened: Any) -> None:
    path = write_tar(tmp_path / "a.tar", drawing_members(0, 2))
    opened("wds", path)
    (stored,) = (tmp_path / "index").iterdir()
    opened("wds", path)
    assert list((tmp_path / "index").iterdir()) == [stored]
    write_tar(path, drawing_members(0, 3))
    assert list(opened("wds", path).block_sizes) == [3]


def test_a_damaged_header_costs_its_sample_only(tmp_path: Path, opened: Any) -> None:
    path = write_tar(tmp_path / "a.tar", drawing_members(0, 3))
    content = bytearray(path.read_bytes())
    at = content.index(b"1.json\0")
    content[at : at + 200] = b"\xff" * 200
    path.write_bytes(content)
    source = opened("wds", path)
    assert list(source.block_sizes) == [3]
    with pytest.raises(SampleError, match=r"it has no \.json member"):
        source.record(1)
    assert source.record(2).images == (("2.png", png(2)),)


def test_a_tar_that_was_cut_short_loses_its_last_sample_only(tmp_path: Path, opened: Any) -> None:
    path = write_tar(tmp_path / "a.tar", drawing_members(0, 3))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"2.png\0") + 512 + 20])
    source = opened("wds", path)
    assert source.record(1).images == (("1.png", png(1)),)
    with pytest.raises(SampleError, match=r"2\.png is cut short: 20 of"):
        source.record(2)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.json", b"{")], "no JSON"),
        ([("0.json", b"[]")], "no object"),
        ([("0.json", b'{"image_filename": ["b.png"]}'), ("0.png", b"")], "b.png is not among"),
    ],
)
def test_damaged_members_are_named(
    tmp_path: Path, opened: Any, members: list[tuple[str, bytes]], reason: str
) -> None:
    source = opened("wds", write_tar(tmp_path / "a.tar", members))
    with pytest.raises(SampleError, match=reason):
        source.record(0)


def test_lines_are_read_by_position(tmp_path: Path, opened: Any) -> None:
    records = reading_records(tmp_path, 4)
    source = opened("jsonl", write_jsonl(tmp_path / "a.jsonl", records))
    assert sum(source.block_sizes) == 4
    record = source.record(2)
    assert record.fields == records[2]
    assert [content for _, content in record.images] == [png(2)]
    assert record.key.endswith("a.jsonl:3")


def test_line_ends_do_not_matter(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"conversations": turns("a", f"b{n}")}) for n in range(3)]
    for ending, last in (("\n", ""), ("\n", "\n"), ("\r\n", "\r\n\r\n  \n")):
        path.write_bytes((ending.join(lines) + last).encode())
        source = opened("jsonl", path)
        answers = [source.record(i).fields["conversations"][1]["value"] for i in range(3)]
        assert sum(source.block_sizes) == 3
        assert answers == ["b0", "b1", "b2"]


def test_a_bad_line_costs_itself_only(tmp_path: Path, opened: Any) -> None:
    good = json.dumps({"conversations": turns("a", "b")})
    path = tmp_path / "a.jsonl"
    path.write_text(f"{good}\n{{half\n\n[1]\n{good}\n")
    source = opened("jsonl", path)
    for line in (1, 2, 3):
        with pytest.raises(SampleError, match="JSON"):
            source.record(line)
    assert source.record(4).fields["conversations"]


def test_a_missing_picture_is_named(tmp_path: Path, opened: Any) -> None:
    record = {"image": "gone.png", "conversations": turns("<image>", "b")}
    source = opened("jsonl", write_jsonl(tmp_path / "a.jsonl", [record]))
    with pytest.raises(SampleError, match=r"cannot read the picture .*gone\.png"):
        source.record(0)


def test_parquet_rows_are_read_by_position(tmp_path: Path, opened: Any) -> None:
    source = opened("hf", write_parquet(tmp_path / "a.parquet", 5))
    assert sum(source.block_sizes) == 5
    record = source.record(3)
    assert record.fields["conversations"][0]["value"] == "draw 3"
    assert [content for _, content in record.images] == [png(3)]


def test_a_stream_goes_on_from_any_position(tmp_path: Path, opened: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", 5)
    front = opened("hf_stream", path, num_samples=5)
    texts = [front.record(i).fields["conversations"][0]["value"] for i in range(12)]
    assert sorted(texts[:5]) == sorted(texts[5:10]) == [f"draw {n}" for n in range(5)]
    for start in (3, 7):
        later = opened("hf_stream", path, num_samples=5)
        assert later.record(start).fields["conversations"][0]["value"] == texts[start]
    with pytest.raises(UserError, match="stream ended before sample 5; num_samples says 6"):
        opened("hf_stream", path, num_samples=6).record(5)


def test_an_only_picture_is_the_samples_whatever_its_name(tmp_path: Path, opened: Any) -> None:
    members = [("0.json", b'{"image_filename": "b.png"}'), ("0.jpg", b"picture")]
    source = opened("wds", write_tar(tmp_path / "a.tar", members))
    assert source.record(0).images == (("0.jpg", b"picture"),)


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("wds", "a.tar", None, "there is no file"),
        ("wds", "a.tar", b"", "is empty"),
        ("wds", "a.tar", b"x" * 2000, "is no tar"),
        ("wds", "a.tgz", b"x", "must be a .tar file or a folder"),
        ("wds", "a_wds.json", b"{", "is no JSON"),
        ("wds", "a_wds.json", b'{"tars": []}', "must be"),
        ("wds", "a_wds.json", b'{"tars": ["b.tar"]}', "there is no file .*b.tar"),
        ("wds", "a_wds.json", b'{"tars": ["gs://b/c.tar"]}', "lists gs://b/c.tar"),
        ("jsonl", "a.jsonl", None, "there is no file"),
        ("jsonl", "a.jsonl", b"\n \n", "only blank lines"),
        ("jsonl", "a.jsonl", b"[\n{}\n]\n", r"a.jsonl:1: no JSON"),
        ("jsonl", "a.jsonl", b'{"text": "a"}\n', "a.jsonl:1: no 'conversations', but text"),
        ("jsonl", "a.json", b"{}", "must be a .jsonl file"),
        ("hf", "a.parquet", b"no parquet", "cannot read"),
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, opened: Any, *, kind: str, name: str, content: bytes | None, message: str
) -> None:
    if kind == "hf":
        pytest.importorskip("datasets")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(kind, tmp_path / name)
