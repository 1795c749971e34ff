"""The trained tokenizer: whole words, any text, and no power for special spellings."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from unimm.errors import CheckpointError, UserError
from unimm.testing import tiny_tokenizer
from unimm.tokenizer import (
    SPECIAL_TOKENS,
    decode_text,
    encode_text,
    load_tokenizer,
    special_id,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def test_frequent_words_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    token_ids = encode_text(tokenizer, "a picture of a red circle")
    assert len(token_ids) == 6


@pytest.mark.parametrize(
    "text",
    [
        "zebra",
        "ünïcode 日本",
        "\N{GRINNING FACE}",
        "a\n\nb\t ",
        "12345",
        "x" * 500,
        "\u200f",
        "it's",
    ],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert decode_text(tokenizer, encode_text(tokenizer, text)) == text


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_special_spellings_in_text_are_only_text(
    tokenizer: PreTrainedTokenizerFast, special: str
) -> None:
    token_ids = encode_text(tokenizer, f"before {special} after")
    assert special_id(tokenizer, special) not in token_ids
    assert decode_text(tokenizer, token_ids) == f"before {special} after"


def test_special_tokens_come_first_and_are_not_decoded(tokenizer: PreTrainedTokenizerFast) -> None:
    token_ids = [special_id(tokenizer, token) for token in SPECIAL_TOKENS]
    assert token_ids == list(range(len(SPECIAL_TOKENS)))
    assert decode_text(tokenizer, token_ids) == ""


def test_round_trip_through_files(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    text = "a picture of a <|im_end|> red circle"
    assert encode_text(loaded, text) == encode_text(tokenizer, text)


def test_training_is_deterministic() -> None:
    assert tiny_tokenizer().get_vocab() == tiny_tokenizer().get_vocab()


def test_chat_template_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 261"):
        train_tokenizer(["a"], vocab_size=200)


def test_a_missing_special_token_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"<\|fim\|>"):
        special_id(tokenizer, "<|fim|>")


def test_a_missing_or_corrupt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{]")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
