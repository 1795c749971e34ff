"""Cached latents are those that encoding would give, of this encoder and preprocessing only."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.unit.training.data.conftest import MakeCorpus
from tests.unit.training.data.layouts import png, reading_records, write_jsonl
from training.cli import cache_latents_app, parse_part
from training.data.caching import cache_latents
from training.data.config import DataConfig, SourceConfig
from training.data.latent_cache import (
    LatentCache,
    LatentCacheWriter,
    cache_folder,
    open_cache,
    picture_digest,
)
from training.data.preprocessing import Preprocessing
from training.data.sample import Sample, SampleError, Skipped
from unimm.errors import UserError
from unimm.latents.space import PatchLatents
from unimm.testing import tiny_pipeline

PREPROCESSING = Preprocessing(image_size=16)


@pytest.fixture
def source(tmp_path: Path) -> SourceConfig:
    """Return five questions; two pictures are alike and one is damaged."""
    records = reading_records(tmp_path, 5)
    (tmp_path / "pictures" / "3.png").write_bytes(png(1))
    (tmp_path / "pictures" / "4.png").write_bytes(png(4)[:50])
    path = write_jsonl(tmp_path / "a.jsonl", records)
    return SourceConfig(name="demo", kind="jsonl", path=str(path))


def fill(tmp_path: Path, source: SourceConfig, **options: Any) -> Any:
    config = DataConfig(sources=(source,), index_dir=tmp_path / "index")
    return cache_latents(
        config,
        PatchLatents(16, 4),
        space="patches",
        root=tmp_path / "cache",
        device=torch.device("cpu"),
        dtype=torch.float32,
        **options,
    )


def test_a_corpus_reads_what_was_cached(
    tmp_path: Path, source: SourceConfig, make_corpus: MakeCorpus
) -> None:
    report = fill(tmp_path, source, batch_size=2)
    assert (report.num_pictures, report.num_encoded) == (4, 3)
    (problem,) = report.problems
    assert "a.jsonl:5" in problem
    plain = make_corpus(source, shuffle=False)
    cached = make_corpus(source, shuffle=False, latent_cache=tmp_path / "cache", space="patches")
    for number in range(4):
        pixels, latents = plain[number], cached[number]
        assert isinstance(pixels, Sample)
        assert isinstance(latents, Sample)
        expected = PatchLatents(16, 4).encode(pixels.read[0][None].float() / 255)[0]
        torch.testing.assert_close(latents.read[0], expected)
    missing = cached[4]
    assert isinstance(missing, Skipped)
    assert "not in the latent cache" in missing.reason


def test_starting_again_encodes_nothing_twice(tmp_path: Path, source: SourceConfig) -> None:
    first = fill(tmp_path, source, part=(0, 2))
    both = fill(tmp_path, source, part=(1, 2))
    again = fill(tmp_path, source)
    assert first.num_encoded + both.num_encoded == 3
    assert again.num_encoded == 0
    assert len(LatentCache(again.folder)) == 3


def test_latents_of_another_encoder_or_preprocessing_are_not_found(
    tmp_path: Path, source: SourceConfig
) -> None:
    fill(tmp_path, source)
    root = tmp_path / "cache"
    assert len(open_cache(root, space="patches", preprocessing=PREPROCESSING)) == 3
    stretched = Preprocessing(image_size=16, fit="stretch")
    for space, preprocessing in (("other", PREPROCESSING), ("patches", stretched)):
        with pytest.raises(UserError, match=r"holds no latents for .*, but patches-"):
            open_cache(root, space=space, preprocessing=preprocessing)


def test_any_number_of_pictures_is_found_by_its_content(tmp_path: Path) -> None:
    writer = LatentCacheWriter(tmp_path, space="s", preprocessing=PREPROCESSING, shard_size=7)
    contents = [bytes([n, n // 2]) for n in range(40)]
    for content in contents:
        latents = torch.full((1, 2, 3), float(content[0]), dtype=torch.bfloat16)
        writer.add([picture_digest(content)], latents)
    assert picture_digest(contents[39]) in writer
    writer.flush()
    cache = LatentCache(cache_folder(tmp_path, space="s", preprocessing=PREPROCESSING))
    assert len(cache.shards) == 6
    for content in contents:
        found = cache.get(content)
        assert found is not None
        assert found.dtype == torch.bfloat16
        assert found.tolist() == [[content[0]] * 3] * 2
    assert cache.get(b"another") is None


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    writer = LatentCacheWriter(tmp_path, space="s", preprocessing=PREPROCESSING)
    writer.add([picture_digest(b"a")], torch.zeros(1, 2, 3))
    writer.flush()
    (shard,) = writer.folder.glob("*.safetensors")
    cache = LatentCache(writer.folder)
    size = shard.stat().st_size
    shard.write_bytes(b"\xff" * size)
    with pytest.raises(SampleError, match="damaged"):
        cache.get(b"a")
    for index in writer.folder.glob("index-*"):
        index.unlink()
    with pytest.raises(UserError, match="delete it and run unimm cache-latents again"):
        LatentCache(writer.folder)


def test_the_command_fills_a_cache(tmp_path: Path, source: SourceConfig) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    data = {
        "sources": [{"name": "demo", "kind": "jsonl", "path": source.path}],
        "index_dir": str(tmp_path / "index"),
    }
    recipe.write_text(json.dumps({"stage": "unified", "data": data}))
    command = [str(recipe), "--model", str(tmp_path / "model"), "--device", "cpu"]
    result = CliRunner().invoke(
        cache_latents_app, [*command, "--output", str(tmp_path / "cache")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "4 pictures, 3 of them new, 1 samples that cannot be read" in result.stderr
    folder = Path(result.stdout.strip())
    assert folder.parent == tmp_path / "cache"
    assert len(LatentCache(folder)) == 3
    with pytest.raises(UserError, match="name the cache"):
        CliRunner().invoke(cache_latents_app, command, catch_exceptions=False)


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2"])
def test_a_wrong_part_is_refused(text: str) -> None:
    assert parse_part("3/4") == (3, 4)
    with pytest.raises(UserError, match="--part must be I/N"):
        parse_part(text)
