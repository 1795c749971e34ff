"""Pretrained language models, against transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from unimm.errors import CheckpointError, MissingExtraError
from unimm.language import LanguageModel, build_language_model
from unimm.pretrained import PretrainedLanguage, load_language_model
from unimm.testing import tiny_tokenizer
from unimm.tokenizer import SPECIAL_TOKENS, encode_text

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 32, 2, 4, 2, 64
# Of both formats: ours of transformers, and what GGUF calls it.
_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    **{
        f"model.layers.{i}.{ours}": f"blk.{i}.{theirs}"
        for i in range(LAYERS)
        for ours, theirs in _LAYER.items()
    },
}


def tiny_qwen2(tokenizer: PreTrainedTokenizerFast) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = Qwen2ForCausalLM(config)
        model.eval()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.2
    return model


def write_gguf(path: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a Qwen2 as llama.cpp's converter does, unquantised."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "qwen2")
    config = model.config
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]]
    special = set(SPECIAL_TOKENS)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in special else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|endoftext|>"])
    state = model.state_dict()
    for ours, theirs in NAMES.items():
        writer.add_tensor(theirs, state[ours].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def original(tokenizer: PreTrainedTokenizerFast) -> Any:
    return tiny_qwen2(tokenizer)


@pytest.fixture(scope="module")
def gguf_file(
    tmp_path_factory: pytest.TempPathFactory, original: Any, tokenizer: PreTrainedTokenizerFast
) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, original, tokenizer)
    return path


@pytest.fixture(scope="module")
def loaded(gguf_file: Path) -> PretrainedLanguage:
    return load_language_model(gguf_file)


def test_a_gguf_file_gives_the_same_logits(
    loaded: PretrainedLanguage, original: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = torch.tensor([encode_text(tokenizer, "a picture of a red circle")])
    model: Any = loaded.model
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["a picture of a red circle", "user\n"])
def test_a_gguf_file_gives_the_same_tokens(
    loaded: PretrainedLanguage, tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    assert encode_text(loaded.tokenizer, text) == encode_text(tokenizer, text)


def greedy(model: Any, ids: torch.Tensor, count: int) -> list[int]:
    """Write tokens one at a time with our cache."""
    lm = LanguageModel(model)
    written: list[int] = []
    with torch.no_grad():
        state = lm.read(lm.embed(ids))
        for _ in range(count):
            written.append(int(lm.logits(state.last).argmax()))
            state = lm.read(lm.embed(torch.tensor([written[-1:]])), after=state)
    return written


def test_our_cache_writes_what_transformers_generates(
    loaded: PretrainedLanguage, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = torch.tensor([encode_text(tokenizer, "a picture of")])
    model: Any = loaded.model
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )[0, ids.shape[1] :].tolist()
    ours = greedy(model, ids, 12)
    # min_new_tokens forbids the end of the turn, which ours may choose.
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in ours
    assert ours == expected


def test_a_folder_of_hugging_face_is_read_too(
    tmp_path: Path, original: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    original.save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(str(tmp_path))
    language = load_language_model(tmp_path, dtype=torch.bfloat16)
    weight = language.model.get_parameter("model.embed_tokens.weight")
    expected = original.get_input_embeddings().weight.bfloat16()
    assert torch.equal(weight, expected)
    rebuilt = build_language_model(language.config).state_dict()
    assert {k: v.shape for k, v in rebuilt.items()} == {
        k: v.shape for k, v in language.model.state_dict().items()
    }
    assert language.add_special_tokens() == 0


def test_missing_special_tokens_get_rows(
    tmp_path: Path, original: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    original.save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(str(tmp_path))
    language = load_language_model(tmp_path)
    model: Any = language.model
    rows = model.get_input_embeddings().num_embeddings
    language.tokenizer.get_vocab = dict  # type: ignore[method-assign]
    assert language.add_special_tokens() == len(SPECIAL_TOKENS)
    assert model.get_input_embeddings().num_embeddings >= rows


def test_what_is_no_language_model_is_refused(
    tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        load_language_model(tmp_path / "absent.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"broken\.gguf"):
        load_language_model(broken)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no language model"):
        load_language_model(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"unimm\[gguf\]"):
        load_language_model(gguf_file)


@pytest.mark.slow
@pytest.mark.weights
def test_a_real_gguf_model_writes_what_transformers_generates() -> None:
    """SmolLM2-135M-Instruct or any other: put its .gguf files under $UNIMM_WEIGHTS."""
    import os

    folder = os.environ.get("UNIMM_WEIGHTS")
    files = sorted(Path(folder).rglob("*.gguf")) if folder else []
    if not files:
        pytest.skip("there is no .gguf file under $UNIMM_WEIGHTS")
    pytest.importorskip("gguf")
    language = load_language_model(files[0])
    model: Any = language.model
    text = "The capital of France is"
    ids = torch.tensor([encode_text(language.tokenizer, text)])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )[0, ids.shape[1] :].tolist()
    assert greedy(model, ids, len(expected)) == expected
    assert "Paris" in language.tokenizer.decode(expected)
    factory: Any = AutoModelForCausalLM  # its methods are untyped
    assert isinstance(model, type(factory.from_config(model.config)))
