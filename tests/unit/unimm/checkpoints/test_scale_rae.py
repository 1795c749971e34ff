import json
from pathlib import Path

import pytest
import torch

from tests.unit.unimm.checkpoints.releases import (
    DIM,
    Options,
    config_of,
    official_state,
    write_scale_rae,
    write_shards,
)
from unimm.checkpoints.foreign import ForeignModel, load_scale_rae
from unimm.errors import CheckpointError
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline

CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ForeignModel:
    return load_scale_rae(folder, device=CPU, dtype=dtype)


VARIANTS = {
    "tied": Options(),
    "tied, head stored": Options(stores_head=True),
    "untied, one pickle": Options(tied=False, pickled=True, shards=1),
    "wide head, sharded pickles": Options(ddt=True, pickled=True),
    "WebSSL, never dropped": Options(webssl=True, dropout=0.0),
    "wrapped by training": Options(prefix="_fsdp_wrapped_module."),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_read_exactly(tmp_path: Path, options: Options) -> None:
    expected = write_scale_rae(tmp_path / "release", options)
    model = load(tmp_path / "release").model
    assert model.config == config_of(options)
    ours = model.state_dict()
    assert set(ours) == set(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_parameters_take_the_dtype_asked_for_and_tables_keep_theirs(tmp_path: Path) -> None:
    write_scale_rae(tmp_path / "release")
    model = load(tmp_path / "release", torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {
        torch.float32
    }


def test_a_pipeline_opens_the_released_layout_and_its_conversion_draws_the_same(
    tmp_path: Path,
) -> None:
    write_scale_rae(tmp_path / "release")
    released = Pipeline.from_pretrained(tmp_path / "release")
    released.save_pretrained(tmp_path / "ours")
    converted = Pipeline.from_pretrained(tmp_path / "ours")
    options = GenerationOptions(num_steps=2, sampler="official")
    (first,) = released.generate("a red circle", options)
    (second,) = converted.generate("a red circle", options)
    assert torch.equal(first.latents, second.latents)
    assert first.nfe == 1  # the released sampler takes a step less than it says


def test_statistics_of_the_latents_are_read_and_the_projector_still_sees_raw_features(
    tmp_path: Path,
) -> None:
    options = Options(shards=1)
    expected = write_scale_rae(tmp_path / "release", options)
    state = official_state(expected, options)
    mean, std = torch.linspace(-1, 1, DIM), torch.linspace(0.5, 2, DIM)
    state |= {"diff_head.data_mean": mean, "diff_head.data_std": std}
    write_shards(tmp_path / "release", state, options)
    model = load(tmp_path / "release").model
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    raw, latents = expected.latents.encode(pixels), model.latents.encode(pixels)
    torch.testing.assert_close(latents, (raw - mean) / std)
    torch.testing.assert_close(model.latents.decode(latents), expected.latents.decode(raw))
    # A tolerance for the changed order of the sums.
    torch.testing.assert_close(
        model.projector(latents), expected.projector(raw), atol=1e-5, rtol=1e-5
    )


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion_model_depth": 48}, "diffusion_model_depth gives 48, but the tensors say 1"),
        ({"diffusion_model_heads": 4}, "diffusion_model_heads gives 4, but the tensors say 2"),
        ({"diffusion_model_channels": 1152}, "is 1152, but the tensors say 16"),
        ({"vocab_size": 7}, "vocab_size is 7"),
        ({"vision_loss": "regression-loss"}, "vision_loss 'regression-loss'"),
        ({"diffusion_model_depth": "many"}, "diffusion_model_depth must be a number or two"),
        ({"tie_word_embeddings": False}, "'lm_head.weight'"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_scale_rae(tmp_path / "release")
    edit_config(tmp_path / "release", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path / "release")
    assert "release" in str(caught.value)
    assert "\n" not in str(caught.value)


def shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_scale_rae(tmp_path / "release")
    path = shard(tmp_path / "release")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{path.name} is corrupt"):
        load(tmp_path / "release")


def test_a_renamed_shard_is_named(tmp_path: Path) -> None:
    write_scale_rae(tmp_path / "release")
    path = shard(tmp_path / "release")
    path.rename(path.with_name("other.safetensors"))
    with pytest.raises(CheckpointError, match=f"has no {path.name}"):
        load(tmp_path / "release")


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshaped"])
def test_a_wrong_tensor_is_named_with_its_file(tmp_path: Path, change: str) -> None:
    options = Options(shards=1)
    model = write_scale_rae(tmp_path / "release", options)
    state = official_state(model, options)
    key = "diff_head.model.final_layer.linear.bias"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        key = "diff_head.model.surprise"
        state[key] = torch.zeros(2)
    else:
        state[key] = torch.zeros(3)
    write_shards(tmp_path / "release", state, options)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "release")
    message = str(caught.value)
    # Of a missing tensor there is no file to name.
    assert ("generator.dit.final.out.bias" if change == "missing" else key) in message
    assert change == "missing" or "model-00001-of-00001.safetensors" in message


def test_positions_of_another_kind_are_refused(tmp_path: Path) -> None:
    options = Options(shards=1)
    model = write_scale_rae(tmp_path / "release", options)
    state = official_state(model, options)
    state["diff_head.model.pos_embed"] = -state["diff_head.model.pos_embed"]
    write_shards(tmp_path / "release", state, options)
    with pytest.raises(CheckpointError, match="pos_embed is not the fixed sin-cos table"):
        load(tmp_path / "release")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    write_scale_rae(tmp_path / "release")
    (tmp_path / "release" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"release has no tokenizer\.json"):
        load(tmp_path / "release")


def test_a_decoder_of_another_encoder_is_refused(tmp_path: Path) -> None:
    write_scale_rae(tmp_path / "release")
    path = tmp_path / "release" / "decoder" / "model.pt"
    state = torch.load(path)
    state["decoder_embed.weight"] = torch.zeros(16, DIM + 1)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"model\.pt.*belongs to another encoder"):
        load(tmp_path / "release")


def test_a_missing_tower_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_scale_rae(tmp_path / "release")
    (tmp_path / "release" / "tower").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="--tower FOLDER"):
        load(tmp_path / "release")
    (tmp_path / "elsewhere").rename(tmp_path / "eyes")  # beside, as the repository is called
    assert load(tmp_path / "release").model.latents.dim == DIM
