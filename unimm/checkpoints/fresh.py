"""Build the model of an :class:`unimm.assembly.Assembly`: read what is released, draw the rest."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from metaquery.generator import LatentGenerator
from metaquery.queries import QueryTokens
from unimm.assembly import Assembly, assembled_config, check_dit
from unimm.checkpoints.assemble import Slots, Source, empty_parameters, fill
from unimm.checkpoints.component import component_config
from unimm.checkpoints.foreign import ForeignModel, single_token_answers
from unimm.checkpoints.keymap import Rule, below
from unimm.checkpoints.parts import PATTERNS
from unimm.checkpoints.rae_autoencoder import KIND
from unimm.checkpoints.rae_decoder import DECODER_RULES, read_decoder
from unimm.checkpoints.rae_decoder import OPTIONAL as DECODER_OPTIONAL
from unimm.checkpoints.tensors import TensorFolder, read_json
from unimm.checkpoints.towers import file_rules, optional_keys, read_tower
from unimm.checkpoints.vae import PATTERNS as VAE_PATTERNS
from unimm.checkpoints.vae import VAE_RULES, read_vae
from unimm.errors import CheckpointError
from unimm.latents import LatentSpaceConfig, RAEDecoderConfig
from unimm.locate import locate_model
from unimm.memory import check_memory
from unimm.model import UniMM
from unimm.pretrained import PretrainedLanguage, load_language_model
from unimm.readback import Projector

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Sight:
    """A tower and what inverts it, or a VAE beside it, read as far as the headers of their files.

    Args:
        latents: The latent space that is drawn.
        vision: The tower's, if a VAE's is drawn.
        sources: Their tensors, under names of the whole model.
        optional: Names that the files may leave out.
        where: The tower's folder.
    """

    latents: LatentSpaceConfig
    vision: LatentSpaceConfig | None
    sources: list[Source]
    optional: list[str]
    where: Path

    @classmethod
    def open(cls, assembly: Assembly) -> "_Sight":
        where = locate_model(assembly.tower, patterns=PATTERNS)
        tower = read_tower(where)
        latents = tower.latent_space(num_tokens=assembly.queries, decoder=None)
        part = "latents" if assembly.vae is None else "vision"
        rules = file_rules(tower.kind, affine_norm=latents.affine_norm)
        sources = [Source(tower.weights, below("", f"{part}.tower.", rules))]
        optional = [f"{part}.tower.{key}" for key in optional_keys(tower.kind)]
        if assembly.vae is not None:
            vae = read_vae(locate_model(assembly.vae, patterns=VAE_PATTERNS))
            sources.append(Source(vae.weights, below("", "latents.vae.", VAE_RULES)))
            drawn = vae.latent_space(num_tokens=assembly.queries)
            return cls(drawn, latents, sources, optional, where)
        if assembly.decoder is not None:
            decoder, source = _decoder(locate_model(assembly.decoder, patterns=PATTERNS), latents)
            latents = replace(latents, decoder=decoder)
            sources.append(source)
            optional += [f"latents.decoder.{key}" for key in DECODER_OPTIONAL]
        return cls(latents, None, sources, optional, where)


def _decoder(place: Path, latents: LatentSpaceConfig) -> tuple[RAEDecoderConfig, Source]:
    """Return the decoder in a folder of Scale-RAE, or of our decoder stage, for a latent space."""
    if read_json(place / "config.json").get("model_type") != KIND:
        released = read_decoder(place, latent_dim=latents.dim)
        return released.config, Source(
            released.weights, below("", "latents.decoder.", DECODER_RULES)
        )
    trained = component_config(place, kind=KIND, cls=LatentSpaceConfig)
    for name in ("kind", "dim", "num_tokens", "affine_norm", "statistics"):
        ours, theirs = getattr(latents, name), getattr(trained, name)
        if ours != theirs:
            raise CheckpointError(
                f"the decoder in {place} was trained on other latents: {name} {theirs!r}, "
                f"not {ours!r}"
            )
    if trained.decoder is None:
        raise CheckpointError(f"{place} has no pixel decoder")
    rules = (Rule(r"tower\..+", None), Rule(r"(decoder\..+)", r"latents.\1"))
    return trained.decoder, Source(TensorFolder.open(place), rules)


@torch.no_grad()
def assemble_model(
    assembly: Assembly, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> ForeignModel:
    """Return a new model of released parts, on the CPU.

    Args:
        assembly: What it is made of.
        dtype: Of its weights.
        seed: Of the weights that are new.

    Raises:
        CheckpointError: A part is missing, corrupt or of another kind.
        UserError: The parts do not fit each other.
        NotEnoughMemoryError: The model is larger than the free memory.
    """
    # Constructors draw from torch's global generator, which the caller gets back as it was.
    with torch.random.fork_rng(devices=[]):
        return _assemble(assembly, dtype, seed)


def _assemble(assembly: Assembly, dtype: torch.dtype, seed: int) -> ForeignModel:
    sight = _Sight.open(assembly)  # first: headers are cheap to refuse
    check_dit(assembly, sight.latents)
    language = load_language_model(assembly.language, dtype=dtype)
    language.add_special_tokens()
    model = _empty_model(assembly, language, sight)
    rest = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("language"))
    check_memory(rest * dtype.itemsize, CPU, f"the rest of the model beside {assembly.language}")
    model.language = language.model
    spaces = nn.ModuleDict({"latents": model.latents})
    if model.vision is not None:
        spaces["vision"] = model.vision
    slots = Slots(spaces, device=CPU, dtype=dtype)
    fill(slots, sight.sources)
    slots.finish(where=sight.where, optional=sight.optional)
    _draw_new_parts(model, dtype, seed)
    parts = (assembly.language, assembly.tower, assembly.decoder, assembly.vae)
    made_of = [part for part in parts if part is not None]
    card = (
        f"# {assembly.generator} beside {assembly.language}\n\n"
        f"Assembled by unimm of {', '.join(made_of)}, under their licences. Queries, projector "
        f"and generator are random (seed {seed}): it draws noise until it is trained.\n"
    )
    return ForeignModel(model.eval().requires_grad_(False), language.tokenizer, card)


def _empty_model(assembly: Assembly, language: PretrainedLanguage, sight: _Sight) -> UniMM:
    config = assembled_config(assembly, language.config, sight.latents, vision=sight.vision)
    with empty_parameters():
        return UniMM(single_token_answers(config, language.tokenizer))


def _draw_new_parts(model: UniMM, dtype: torch.dtype, seed: int) -> None:
    """Replace the empty new parts by random ones, as the model's own constructor makes them."""
    width = model.lm.hidden_dim
    torch.manual_seed(seed)
    model.queries = QueryTokens(model.config.num_queries, width).to(dtype)
    model.projector = Projector(model.config.seen.dim, width).to(dtype)
    generator = LatentGenerator(model.config.generator)
    # Buffers stay float32, as UniMM keeps them.
    for parameter in generator.parameters():
        parameter.data = parameter.data.to(dtype)
    model.generator = generator
