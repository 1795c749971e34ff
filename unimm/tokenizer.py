"""The tokenizer: Qwen2's special tokens and two markers around a picture.

A model directory holds Hugging Face's fast-tokenizer files, so any byte-level BPE of Qwen's kind
works; a small model trains its own with :func:`train_tokenizer`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unimm.errors import CheckpointError, UserError

PAD = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, IMAGE_START, IMAGE_END)

# Words with the space before them, single digits, runs of punctuation, line ends, blanks: the
# split of the GPT-4 and Qwen2 tokenizers, without their English contractions.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# ChatML, so that other programs can format a conversation for this tokenizer.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learned from ``texts``.

    Any text can be encoded: a word that was never seen falls apart into bytes.

    Args:
        texts: What the model will read and write; a frequent word becomes one token.
        vocab_size: Upper bound on all tokens, special ones and the 256 bytes included.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size must be at least {smallest}, the bytes and special tokens, "
            f"got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    build: Any = PreTrainedTokenizerFast  # its constructor is untyped
    wrapped: PreTrainedTokenizerFast = build(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START, IMAGE_START, IMAGE_END],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    return wrapped


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the tokens of plain text: a special token's spelling in it has no power.

    Without this, a prompt that contains ``<|im_end|>`` could end its own turn.
    """
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoding["input_ids"])


def decode_text(tokenizer: PreTrainedTokenizerFast, token_ids: Iterable[int]) -> str:
    """Return the text of tokens, special ones left out."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Return the id of a special token that the tokenizer must have."""
    index = tokenizer.get_vocab().get(token)
    if index is None:
        raise UserError(
            f"the tokenizer has no token {token!r}; add it as a special token and resize the "
            f"language model's embedding"
        )
    return int(index)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer saved in a model directory.

    Raises:
        CheckpointError: ``tokenizer.json`` is missing or cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} has no tokenizer.json; the model is incomplete")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            str(directory), local_files_only=True
        )
    # The Rust library raises bare Exception for whatever is wrong with the file.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"cannot read {path}: {reason}; copy the model again") from error
    return tokenizer
