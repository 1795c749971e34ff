"""Pretrained language models: a folder or id of Hugging Face's format, or one GGUF file."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from unimm.errors import CheckpointError, MissingExtraError
from unimm.locate import locate_model
from unimm.memory import check_memory
from unimm.tokenizer import SPECIAL_TOKENS

_NOT_SIZES = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True, slots=True)
class PretrainedLanguage:
    """A causal language model and its tokenizer.

    Args:
        model: Of a class of transformers.
        tokenizer: Its tokenizer.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast

    @property
    def config(self) -> dict[str, Any]:
        """What ``UniMMConfig.language`` holds."""
        model: Any = self.model
        config: dict[str, Any] = model.config.to_diff_dict()
        kept = {key: value for key, value in config.items() if key not in _NOT_SIZES}
        return {**kept, "hidden_size": model.config.hidden_size}

    def add_special_tokens(self) -> int:
        """Give the tokenizer what our chat turns need, and the model a row for each new token.

        A new row is the mean of those of all other tokens, as Scale-RAE's; a row that the model
        holds for no token, to fill up a round number, would be as good as random.

        Returns:
            How many tokens were new.
        """
        known = self.tokenizer.get_vocab()
        new = [token for token in SPECIAL_TOKENS if token not in known]
        old_size = len(self.tokenizer)
        self.tokenizer.add_tokens(new, special_tokens=True)
        model: Any = self.model
        if len(self.tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        if new:
            rows = self.tokenizer.convert_tokens_to_ids(new)
            # The same tensor twice where the two are tied.
            for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
                weight = embedding.weight.data
                weight[rows] = weight[:old_size].mean(dim=0, dtype=torch.float32).to(weight.dtype)
        return len(new)


def load_language_model(
    name: str | Path,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> PretrainedLanguage:
    """Return a pretrained language model.

    Args:
        name: A folder, a hub id, or a file that ends in ``.gguf`` (extra ``gguf``); what a GGUF
            file has quantised is restored to ``dtype``.
        device: Where to put it; the CPU when None.
        dtype: Of its parameters.
        attention: ``attn_implementation`` of transformers.

    Raises:
        CheckpointError: There is no such model, or it cannot be read.
        MissingExtraError: It is a GGUF file, and the package that reads it is missing.
        NotEnoughMemoryError: It is larger than the free memory.
    """
    target = device or torch.device("cpu")
    file = Path(name)
    is_gguf = file.suffix.lower() == ".gguf"
    if is_gguf:
        check_memory(_gguf_parameters(file) * dtype.itemsize, target, f"the model in {file}")
    source = file.parent if is_gguf else locate_model(name)
    options: dict[str, Any] = {"gguf_file": file.name} if is_gguf else {}
    factory: Any = AutoModelForCausalLM
    tokenizers: Any = AutoTokenizer
    try:
        tokenizer = tokenizers.from_pretrained(str(source), local_files_only=True, **options)
        model = factory.from_pretrained(
            str(source),
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} is no language model that can be read: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{name} has no tokenizer of the fast kind (tokenizer.json)")
    model.to(target).eval().requires_grad_(False)
    return PretrainedLanguage(model, tokenizer)


def _gguf_parameters(path: Path) -> int:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", extra="gguf") from None
    try:
        reader = gguf.GGUFReader(str(path))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is no GGUF file, or truncated: {error}") from None
    return sum(prod(int(size) for size in tensor.shape) for tensor in reader.tensors)
