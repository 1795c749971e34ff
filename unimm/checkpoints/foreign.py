"""Load a released model of another system as one of ours."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from metaquery.rope import sincos_embedding
from unimm.checkpoints import scale_rae
from unimm.checkpoints.assemble import LoadProgress, Slots, Source, empty_parameters, fill
from unimm.checkpoints.scale_rae import ScaleRAESource
from unimm.checkpoints.spaces import Place, Spaces, open_spaces
from unimm.checkpoints.tensors import read_json
from unimm.config import UniMMConfig
from unimm.errors import CheckpointError
from unimm.footprint import Footprint, footprint, foreign_shapes
from unimm.model import UniMM
from unimm.tokenizer import IMAGE_END, IMAGE_START, PAD, TURN_END, TURN_START, encode_text

_SPECIAL = (PAD, TURN_START, TURN_END, IMAGE_START, IMAGE_END)


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A model read from another system's files.

    Args:
        model: Ours.
        tokenizer: Its tokenizer.
        card: Its model card.
    """

    model: UniMM
    tokenizer: PreTrainedTokenizerFast
    card: str


def is_foreign(directory: Path) -> bool:
    """Tell whether a model folder is of another system that can be read."""
    path = directory / "config.json"
    return path.is_file() and read_json(path).get("model_type") in scale_rae.MODEL_TYPES


@dataclass(frozen=True, slots=True)
class ScaleRAERelease:
    """A released model with its tower and decoder, read as far as the headers of its files.

    Args:
        source: Language model, queries and DiT.
        spaces: Vision tower, and pixel decoder or VAE.
        tokenizer: Its tokenizer.
        config: Ours.
    """

    source: ScaleRAESource
    spaces: Spaces
    tokenizer: PreTrainedTokenizerFast
    config: UniMMConfig

    @property
    def sources(self) -> list[Source]:
        """All tensors and where they go."""
        dit = self.config.generator.dit
        rules = scale_rae.model_rules(dit.depth, dit.ddt_depth, tied=self.source.tied)
        return [Source(self.source.weights, rules, scale_rae.PREFIXES), *self.spaces.sources]

    @property
    def footprint(self) -> Footprint:
        """What it needs of memory."""
        return footprint(self.source.directory, foreign_shapes(self.sources))


def open_scale_rae(
    directory: Path, *, tower: Place = None, decoder: Place = None
) -> ScaleRAERelease:
    """Return a released model, no tensor read; arguments as in :func:`load_scale_rae`."""
    source = ScaleRAESource.open(directory)
    tokenizer = load_tokenizer(directory, num_rows=source.shape("model.embed_tokens.weight")[0])
    spaces = open_spaces(source, tower, decoder)
    config = scale_rae.model_config(source, spaces.latents, vision=spaces.vision)
    return ScaleRAERelease(source, spaces, tokenizer, single_token_answers(config, tokenizer))


@torch.no_grad()
def load_scale_rae(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    parts: Mapping[str, torch.device] | None = None,
    tower: Place = None,
    decoder: Place = None,
    progress: LoadProgress | None = None,
) -> ForeignModel:
    """Return a released Scale-RAE model with its tower and decoder.

    Args:
        directory: Its folder.
        device: Where to put it.
        dtype: Of its parameters, whatever the files hold.
        parts: Devices of parts that are elsewhere.
        tower: Folder or hub id of its vision tower; looked for when None.
        decoder: Folder or hub id of its pixel decoder, or of its VAE; looked for when None.
        progress: Called while tensors are read.

    Raises:
        CheckpointError: A file is missing, corrupt or of another model.
        NotEnoughMemoryError: The model is larger than the free memory.
    """
    release = open_scale_rae(directory, tower=tower, decoder=decoder)
    release.footprint.check(dtype, device, parts=parts)
    source = release.source
    check_positions(source, release.config)
    with empty_parameters():
        model = UniMM(release.config)
    slots = Slots(model, device=device, dtype=dtype, parts=parts)
    fill(slots, release.sources, progress=progress)
    statistics = _statistics(source, release.config)
    for name, tensor in zip(("latent_mean", "latent_scale"), statistics, strict=False):
        slots.put(f"latents.{name}", tensor, where=f"{directory}: diff_head.data_*")
    slots.finish(where=directory, optional=_optional(slots, release))
    if statistics:
        _read_standardised(model, *statistics)
    card = directory / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {directory.name}\n"
    return ForeignModel(model.eval().requires_grad_(False), release.tokenizer, text)


def single_token_answers(config: UniMMConfig, tokenizer: PreTrainedTokenizerFast) -> UniMMConfig:
    """Return a configuration whose spellings of yes and no are single tokens."""
    style = config.chat
    single = replace(
        style,
        yes=tuple(word for word in style.yes if len(encode_text(tokenizer, word)) == 1),
        no=tuple(word for word in style.no if len(encode_text(tokenizer, word)) == 1),
    )
    return replace(config, chat=single)


def _optional(slots: Slots, release: ScaleRAERelease) -> tuple[str, ...]:
    source = release.source
    if "diff_head_projector.weight" not in source.shapes:
        # Without a projector the hidden states are the condition themselves.
        width = source.shape("model.embed_tokens.weight")[1]
        where = f"{source.directory}: diff_head_projector"
        slots.put("generator.connector.project.weight", torch.eye(width), where=where)
        slots.put("generator.connector.project.bias", torch.zeros(width), where=where)
    return (*scale_rae.OPTIONAL, *release.spaces.optional)


def _statistics(source: ScaleRAESource, config: UniMMConfig) -> tuple[Tensor, ...]:
    """Return mean and deviation of the latents that the DiT was trained on, if there are any."""
    if not config.latents.statistics:
        return ()
    found = []
    for name in ("mean", "std"):
        key = f"diff_head.data_{name}"
        tensor = _find(source, key).float()
        tensor = tensor.reshape(-1, tensor.shape[-1])
        if not torch.equal(tensor, tensor[:1].expand_as(tensor)):
            raise CheckpointError(
                f"{source.directory}: {key} differs from token to token; only statistics by "
                f"channel can be read"
            )
        found.append(tensor[:1].expand(config.latents.num_tokens, -1))
    return tuple(found)


def _find(source: ScaleRAESource, key: str) -> Tensor:
    names = Source(source.weights, (), scale_rae.PREFIXES)
    (stored,) = [name for name in source.weights.shapes if names.clean(name) == key]
    return source.weights.get(stored)


def _read_standardised(model: UniMM, mean: Tensor, scale: Tensor) -> None:
    """Let the projector, trained on raw features, read standardised ones: the same sums."""
    linear = model.projector.fc1
    weight, bias = linear.weight.double(), linear.bias.double()
    shift, factor = mean[0].to(weight), scale[0].to(weight)
    linear.bias.copy_(bias + weight @ shift)
    linear.weight.copy_(weight * factor)


def check_positions(source: ScaleRAESource, config: UniMMConfig) -> None:
    """Raise CheckpointError if the stored position table is not the one that we compute."""
    key = "diff_head.model.pos_embed"
    if key not in source.shapes:
        return
    dit = config.generator.dit
    ours = sincos_embedding(dit.num_latent_tokens, dit.hidden_dim)
    stored = _find(source, key).float().reshape(-1, source.shape(key)[-1])
    if stored.shape != ours.shape or not torch.allclose(stored, ours, atol=1e-2):
        raise CheckpointError(
            f"{source.directory}: {key} is not the fixed sin-cos table; the model's positions "
            f"are of another kind"
        )


def load_tokenizer(directory: Path, *, num_rows: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a released model, from either kind of files.

    Args:
        directory: The model's folder.
        num_rows: Rows of its embedding.

    Raises:
        CheckpointError: Files or special tokens are missing, or the embedding is too short.
    """
    fast = (directory / "tokenizer.json").is_file()
    slow = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not fast and not slow:
        raise CheckpointError(
            f"{directory} has no tokenizer.json, nor vocab.json with merges.txt; the model needs "
            f"its tokenizer"
        )
    factory: Any = PreTrainedTokenizerFast if fast else Qwen2Tokenizer
    try:
        tokenizer: PreTrainedTokenizerFast = factory.from_pretrained(
            str(directory), local_files_only=True
        )
    # The Rust library raises bare Exception for whatever is wrong with the file.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot read the tokenizer in {directory}: {reason}") from error
    vocabulary = tokenizer.get_vocab()
    for token in _SPECIAL:
        if token not in vocabulary:
            raise CheckpointError(f"the tokenizer in {directory} has no token {token!r}")
        if vocabulary[token] >= num_rows:
            raise CheckpointError(
                f"the tokenizer in {directory} gives {token!r} the id {vocabulary[token]}, but "
                f"model.embed_tokens.weight has {num_rows} rows"
            )
    return tokenizer
