"""Build the model of an :class:`unimm.assembly.Assembly`: read what is released, draw the rest."""

from dataclasses import dataclass

import torch
from torch import nn

from metaquery.generator import LatentGenerator
from metaquery.queries import QueryTokens
from unimm.assembly import Assembly, assembled_config
from unimm.checkpoints.assemble import Slots, Source, empty_parameters, fill
from unimm.checkpoints.foreign import ForeignModel, single_token_answers
from unimm.checkpoints.keymap import below
from unimm.checkpoints.parts import PATTERNS
from unimm.checkpoints.rae_decoder import DECODER_RULES, DecoderSource, read_decoder
from unimm.checkpoints.rae_decoder import OPTIONAL as DECODER_OPTIONAL
from unimm.checkpoints.towers import TowerSource, file_rules, optional_keys, read_tower
from unimm.locate import locate_model
from unimm.memory import check_memory
from unimm.model import UniMM
from unimm.pretrained import PretrainedLanguage, load_language_model
from unimm.readback import Projector

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Sight:
    """A tower and the decoder that inverts it, read as far as the headers of their files."""

    tower: TowerSource
    decoder: DecoderSource | None

    @classmethod
    def open(cls, assembly: Assembly) -> "_Sight":
        tower = read_tower(locate_model(assembly.tower, patterns=PATTERNS))
        if assembly.decoder is None:
            return cls(tower, None)
        place = locate_model(assembly.decoder, patterns=PATTERNS)
        return cls(tower, read_decoder(place, latent_dim=int(tower.config["hidden_size"])))


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
    language = load_language_model(assembly.language, dtype=dtype)
    language.add_special_tokens()
    model = _empty_model(assembly, language, sight)
    rest = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("language"))
    check_memory(rest * dtype.itemsize, CPU, f"the rest of the model beside {assembly.language}")
    model.language = language.model
    _read_sight(model.latents, sight, dtype)
    _draw_new_parts(model, dtype, seed)
    made_of = [assembly.language, assembly.tower, *filter(None, [assembly.decoder])]
    card = (
        f"# {assembly.generator} beside {assembly.language}\n\n"
        f"Assembled by unimm of {', '.join(made_of)}, under their licences. Queries, projector "
        f"and generator are random (seed {seed}): it draws noise until it is trained.\n"
    )
    return ForeignModel(model.eval().requires_grad_(False), language.tokenizer, card)


def _empty_model(assembly: Assembly, language: PretrainedLanguage, sight: _Sight) -> UniMM:
    decoder = None if sight.decoder is None else sight.decoder.config
    latents = sight.tower.latent_space(num_tokens=assembly.queries, decoder=decoder)
    config = assembled_config(assembly, language.config, latents)
    with empty_parameters():
        return UniMM(single_token_answers(config, language.tokenizer))


def _read_sight(latents: nn.Module, sight: _Sight, dtype: torch.dtype) -> None:
    kind = sight.tower.kind
    rules = file_rules(kind, affine_norm=kind != "siglip2")
    sources = [Source(sight.tower.weights, below("", "tower.", rules))]
    optional = [f"tower.{key}" for key in optional_keys(kind)]
    if sight.decoder is not None:
        sources.append(Source(sight.decoder.weights, below("", "decoder.", DECODER_RULES)))
        optional += [f"decoder.{key}" for key in DECODER_OPTIONAL]
    slots = Slots(latents, device=CPU, dtype=dtype)
    fill(slots, sources)
    slots.finish(where=next(iter(sight.tower.weights.files.values())).parent, optional=optional)


def _draw_new_parts(model: UniMM, dtype: torch.dtype, seed: int) -> None:
    """Replace the empty new parts by random ones, as the model's own constructor makes them."""
    width = model.lm.hidden_dim
    torch.manual_seed(seed)
    model.queries = QueryTokens(model.config.num_queries, width).to(dtype)
    model.projector = Projector(model.config.latents.dim, width).to(dtype)
    generator = LatentGenerator(model.config.generator)
    # Buffers stay float32, as UniMM keeps them.
    for parameter in generator.parameters():
        parameter.data = parameter.data.to(dtype)
    model.generator = generator
