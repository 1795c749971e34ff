"""A model directory: whole, strict, and bit for bit what was saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unimm.checkpoint import CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, unique_state
from unimm.errors import CheckpointError, NotEnoughMemoryError, OutputError, UserError
from unimm.pipeline import Pipeline
from unimm.testing import tiny_pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def directory(pipeline: Pipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_is_bit_exact(pipeline: Pipeline, directory: Path) -> None:
    loaded = Pipeline.from_pretrained(directory)
    saved, found = pipeline.model.state_dict(), loaded.model.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    assert loaded.model.config == pipeline.model.config
    assert loaded.space == pipeline.space
    # What is not a tensor of the state dict must be rebuilt the same, too.
    buffers = dict(pipeline.model.named_buffers())
    for name, buffer in loaded.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_files_are_those_of_the_format(directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    assert {CONFIG_NAME, WEIGHTS_NAME, "README.md", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".partial"))]
    tree = json.loads((directory / CONFIG_NAME).read_text())
    assert (tree["model_type"], tree["format"]) == ("unimm", 1)


def test_others_may_read_the_files_as_they_may_any_new_file(directory: Path) -> None:
    (directory.parent / "usual").touch()
    usual = (directory.parent / "usual").stat().st_mode
    assert {path.stat().st_mode for path in directory.iterdir()} == {usual}


def test_tied_weights_are_stored_once(pipeline: Pipeline, directory: Path) -> None:
    names = load_file(directory / WEIGHTS_NAME).keys()
    assert names == unique_state(pipeline.model).keys()
    assert "language.lm_head.weight" not in names


def test_half_precision_on_disk_loads_in_the_asked_precision(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / WEIGHTS_NAME)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    full = Pipeline.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in full.model.parameters()} == {torch.float32}
    assert full.space == pipeline.space
    half = Pipeline.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.generate("a red circle")[0].latents.isfinite().all()


def test_shards_are_joined(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimm.checkpoint._MAX_SHARD", "100KB")
    pipeline.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    loaded = Pipeline.from_pretrained(tmp_path / "model").model.state_dict()
    saved = pipeline.model.state_dict()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    weight_map = json.loads((tmp_path / "model" / INDEX_NAME).read_text())["weight_map"]
    (tmp_path / "model" / sorted(set(weight_map.values()))[0]).unlink()
    with pytest.raises(CheckpointError, match=r"has no model-00001-of-"):
        Pipeline.from_pretrained(tmp_path / "model")


def test_every_tensor_that_does_not_fit_is_listed(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS_NAME)
    del tensors["projector.fc1.bias"], tensors["queries.embeddings"]
    tensors["projector.fc2.bias"] = torch.zeros(7)
    tensors["surprise"] = torch.zeros(1)
    save_file(tensors, directory / WEIGHTS_NAME)
    with pytest.raises(CheckpointError) as error:
        Pipeline.from_pretrained(directory)
    message = str(error.value)
    assert "missing: queries.embeddings, projector.fc1.bias" in message
    assert "unexpected: surprise" in message
    assert "of the wrong shape: projector.fc2.bias (7,) instead of (32,)" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, "tokenizer.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        Pipeline.from_pretrained(directory)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff junk", b"{"])
def test_a_corrupt_file_is_named(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Pipeline.from_pretrained(directory)


def test_a_truncated_weights_file_is_named(directory: Path) -> None:
    path = directory / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt"):
        Pipeline.from_pretrained(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "describes a 'llama' model"),
        ({"format": 99}, "has format 99"),
        ({"num_queries": "many"}, "num_queries"),
        ({"querys": 3}, "unknown key 'querys'"),
    ],
)
def test_a_config_of_another_kind_is_refused(
    directory: Path, change: dict[str, object], message: str
) -> None:
    path = directory / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        Pipeline.from_pretrained(directory)


def test_saving_again_replaces_and_leaves_nothing_behind(
    pipeline: Pipeline, directory: Path
) -> None:
    (directory / "old.txt").write_text("old")
    pipeline.save_pretrained(directory)
    assert not (directory / "old.txt").exists()
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model(
    pipeline: Pipeline, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    before = (directory / WEIGHTS_NAME).read_bytes()
    monkeypatch.setattr("unimm.checkpoint.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        pipeline.save_pretrained(directory)
    assert (directory / WEIGHTS_NAME).read_bytes() == before
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


@pytest.mark.usefixtures("small_files")
def test_weights_that_do_not_fit_on_the_disk_are_one_clear_error(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*model: File too large"):
        pipeline.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_says_how_much_is_needed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimm.memory.available_memory", lambda device: 2**18)
    with pytest.raises(NotEnoughMemoryError, match=r"needs \d+ MiB of memory in .*cpu has 0 MiB"):
        Pipeline.from_pretrained(directory)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_an_unknown_device_is_refused(directory: Path, device: str) -> None:
    with pytest.raises(UserError, match="device"):
        Pipeline.from_pretrained(directory, device=device)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model directory"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"an id like owner/name"):
        Pipeline.from_pretrained("nowhere")


def test_offline_the_cache_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"cannot download owner/name .*{tmp_path}"):
        Pipeline.from_pretrained("owner/name")


def test_the_space_is_the_encoders_not_the_decoders(pipeline: Pipeline) -> None:
    assert pipeline.space.startswith("patches-16x48-")
    assert tiny_pipeline(seed=1).space == pipeline.space
