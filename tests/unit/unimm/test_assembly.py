"""A new model of released parts: what is read is read exactly, what is new is random and whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.unit.unimm.checkpoints.releases import Options, write_scale_rae
from unimm.assembly import DIT_SIZES, Assembly, assembled_config, published_config
from unimm.checkpoints.component import save_component
from unimm.checkpoints.fresh import assemble_model
from unimm.checkpoints.rae_autoencoder import KIND
from unimm.cli import run
from unimm.config_io import to_dict
from unimm.errors import CheckpointError, UserError
from unimm.pipeline import Pipeline
from unimm.testing import tiny_tokenizer
from unimm.tokenizer import IMAGE_END, IMAGE_START

WIDTH = 32
GENERATOR = "dit: {hidden_dim: 32, depth: 1, num_heads: 2}\ncondition_dropout: 0.2\n"


def without_picture_marks(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return Qwen's side of the tokenizer: all but the two marks around a picture."""
    text = tokenizer.backend_tokenizer.to_str()
    for token in (IMAGE_START, IMAGE_END):
        text = text.replace(token, f"other{token[1:-1]}")
    build: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = build(
        tokenizer_object=Tokenizer.from_str(text), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    return made


def write_qwen2(folder: Path, *, spare_rows: int, tied: bool) -> Any:
    """Write a tiny Qwen2 of Hugging Face, whose embedding has rows for no token, as Qwen's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = without_picture_marks(tiny_tokenizer())
    assert IMAGE_START not in tokenizer.get_vocab()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer) + spare_rows,
                hidden_size=WIDTH,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=tied,
            )
        )
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return model


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a tower, a decoder, a generator's description, and make it current."""
    write_scale_rae(tmp_path / "release")
    (tmp_path / "release" / "tower").rename(tmp_path / "tower")
    (tmp_path / "release" / "decoder").rename(tmp_path / "decoder")
    (tmp_path / "dit.yaml").write_text(GENERATOR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assembly(**changes: Any) -> Assembly:
    settings: dict[str, Any] = {
        "language": "qwen",
        "tower": "tower",
        "decoder": "decoder",
        "generator": "dit.yaml",
        "queries": 16,
    }
    return Assembly(**(settings | changes))


@pytest.mark.parametrize(("spare_rows", "tied"), [(0, True), (7, False)])
def test_parts_are_read_and_the_rest_is_new(parts: Path, spare_rows: int, tied: bool) -> None:
    original = write_qwen2(parts / "qwen", spare_rows=spare_rows, tied=tied)
    arguments = ["--language", "qwen", "--tower", "tower", "--decoder", "decoder"]
    assert run(["assemble", "ours", *arguments, "--generator", "dit.yaml", "--queries", "16"]) == 0
    pipeline = Pipeline.from_pretrained(parts / "ours")
    model, config = pipeline.model, pipeline.model.config
    assert config.generator.condition_dropout == 0.2
    assert config.generator.connector.in_dim == WIDTH
    assert config.chat.system == "You are a helpful assistant."
    state, expected = model.language.state_dict(), original.state_dict()
    rows = len(without_picture_marks(tiny_tokenizer()))
    for name, tensor in expected.items():
        kept = tensor[:rows] if "embed_tokens" in name or "lm_head" in name else tensor
        assert torch.equal(state[name][: len(kept)], kept), name
    vocabulary = pipeline.reader.template.tokenizer.get_vocab()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        for token in (IMAGE_START, IMAGE_END):
            row = state[name][vocabulary[token]]
            torch.testing.assert_close(row, expected[name][:rows].mean(dim=0))
    assert model.queries.embeddings.std() == pytest.approx(WIDTH**-0.5, rel=0.2)
    pixels = torch.rand(1, 3, 16, 16)
    released = Pipeline.from_pretrained(write_release_again(parts)).model
    torch.testing.assert_close(model.latents.encode(pixels), released.latents.encode(pixels))
    latents = torch.randn(1, 16, 16)
    torch.testing.assert_close(model.latents.decode(latents), released.latents.decode(latents))


def write_release_again(parts: Path) -> Path:
    """Return a whole release, of the same random parts."""
    write_scale_rae(parts / "whole")
    return parts / "whole"


def test_the_new_weights_follow_the_seed_and_the_callers_randomness_stays(parts: Path) -> None:
    write_qwen2(parts / "qwen", spare_rows=0, tied=True)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, same, other = (assemble_model(assembly(), seed=seed).model for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.projector.fc1.weight, same.projector.fc1.weight)
    assert not torch.equal(first.projector.fc1.weight, other.projector.fc1.weight)
    half = assemble_model(assembly(decoder=None), dtype=torch.bfloat16).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.config.latents.decoder is None
    frequencies = half.generator.dit.time_embed.frequencies
    torch.testing.assert_close(frequencies, first.generator.dit.time_embed.frequencies)


def test_a_decoder_of_our_own_training_is_read(parts: Path) -> None:
    write_qwen2(parts / "qwen", spare_rows=0, tied=True)
    space: Any = assemble_model(assembly()).model.latents
    for tokens, name in ((16, "own"), (4, "other")):
        config = replace(space.config, image_size=4 * round(tokens**0.5))
        save_component(parts / name, kind=KIND, config=to_dict(config), module=space, source=parts)
    made = assemble_model(assembly(decoder="own")).model
    latents = torch.randn(1, 16, 16)
    torch.testing.assert_close(made.latents.decode(latents), space.decode(latents))
    with pytest.raises(CheckpointError, match="other was trained on other latents: num_tokens 4"):
        assemble_model(assembly(decoder="other"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--tower", "absent"], "no model directory absent"),
        (["--tower", "qwen"], "is no vision tower"),
        (["--language", "tower"], "tower is no language model"),
        (["--queries", "15"], "queries must be a square number"),
        (["--generator", "3B"], "generator must be one of 0.5B, 2.4B"),
        (
            ["--generator", "wrong.yaml"],
            "wrong.yaml: dit: unknown key 'dept'; did you mean 'depth'?",
        ),
        (["--generator", "narrow.yaml"], "hidden_dim (8) must be at least latent_dim (16)"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    parts: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    write_qwen2(parts / "qwen", spare_rows=0, tied=True)
    (parts / "wrong.yaml").write_text("dit: {dept: 3}\n")
    (parts / "narrow.yaml").write_text("dit: {hidden_dim: 8, num_heads: 2}\n")
    arguments = ["--language", "qwen", "--tower", "tower", "--generator", "dit.yaml"]
    capsys.readouterr()
    assert run(["assemble", "ours", *arguments, "--queries", "16", *changed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (parts / "ours").exists()


def test_published_sizes_need_no_files() -> None:
    released = Assembly(
        language="Qwen/Qwen2.5-1.5B-Instruct", tower="facebook/webssl-dino300m-full2b-224"
    )
    config = published_config(released)
    assert (config.latents.dim, config.num_queries, config.latents.image_size) == (1024, 256, 224)
    assert config == assembled_config(released, config.language, config.latents)
    assert "2.4B" in DIT_SIZES
    with pytest.raises(UserError, match="the sizes of own/tower are not built in; known: google"):
        published_config(Assembly(language=released.language, tower="own/tower"))


def test_the_command_of_an_assembly_is_the_one_to_type() -> None:
    made = assembly().command(Path("ours"))
    assert made == (
        "unimm assemble ours --language qwen --tower tower --decoder decoder "
        "--generator dit.yaml --queries 16"
    )


def test_a_vae_is_drawn_where_the_tower_only_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    release = write_scale_rae(tmp_path / "release", Options(vae=True))
    write_qwen2(tmp_path / "qwen", spare_rows=0, tied=True)
    (tmp_path / "dit.yaml").write_text(GENERATOR)
    arguments = ["--language", "qwen", "--tower", "release/tower", "--vae", "release/vae"]
    assert run(["assemble", "ours", *arguments, "--generator", "dit.yaml", "--queries", "16"]) == 0
    model = Pipeline.from_pretrained("ours").model
    assert model.config.latents == release.config.latents
    assert model.config.seen.num_tokens == 16
    assert model.projector.fc1.in_features == model.config.seen.dim
    state = model.state_dict()
    for name, tensor in release.state_dict().items():
        if name.startswith(("latents.", "vision.")):
            assert torch.equal(state[name], tensor), name


def test_a_vae_and_a_decoder_are_one_too_many() -> None:
    with pytest.raises(ValueError, match=r"give decoder \(decoder\) or vae \(flux\)"):
        assembly(vae="flux")
    with pytest.raises(UserError, match=r"sizes of flux are not built in; known: black-forest"):
        published_config(
            Assembly(
                language="Qwen/Qwen2.5-1.5B-Instruct",
                tower="google/siglip2-so400m-patch14-224",
                vae="flux",
            )
        )
