"""The whole model as one value: what `config.json` of a model directory holds."""

from dataclasses import dataclass, field
from typing import Any

from metaquery.generator import GeneratorConfig
from unimm.chat_style import ChatStyle
from unimm.latents import LatentSpaceConfig
from unimm.options import (
    GenerationOptions,
    ResolvedOptions,
    SamplingDefaults,
    check_early_exit,
    resolve,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class UniMMConfig:
    """Parts of a model and how they fit together.

    Args:
        language: Hugging Face config of the causal language model, ``model_type`` included.
        latents: The latent space that the model draws in, and sees in where ``vision`` is None.
        generator: Connector and diffusion transformer.
        num_queries: Learnable queries of a picture, Q: one for each latent token, or a single one.
        chat: Wording of the turns.
        sampling: How pictures are drawn when the caller does not say.
        vision: The latent space that the model sees in, where it cannot read what it draws: a
            baseline that draws a VAE's latents. Such a model looks at its own pictures by decoding
            them to pixels and encoding those.
        grammar: What a model of a miniature world was trained on, so that the command line can
            say when a prompt lies outside; None for a model of the open world.
    """

    language: dict[str, Any]
    latents: LatentSpaceConfig
    generator: GeneratorConfig
    num_queries: int
    chat: ChatStyle = field(default_factory=ChatStyle)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    vision: LatentSpaceConfig | None = None
    grammar: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for key in ("model_type", "hidden_size"):
            if key not in self.language:
                raise ValueError(f"language must have a {key!r}, as in the model's config.json")
        width = self.language["hidden_size"]
        dit, connector = self.generator.dit, self.generator.connector
        _check_equal(
            ("generator.dit.num_latent_tokens", dit.num_latent_tokens),
            ("tokens of the latent space", self.latents.num_tokens),
        )
        _check_equal(
            ("generator.dit.latent_dim", dit.latent_dim),
            ("channels of the latent space", self.latents.dim),
        )
        _check_equal(
            ("generator.connector.in_dim", connector.in_dim), ("language.hidden_size", width)
        )
        if connector.depth:
            _check_equal(
                ("generator.connector.num_queries", connector.num_queries),
                ("num_queries", self.num_queries),
            )
        check_early_exit(self.sampling.exit_scale, exit_depth=dit.exit_depth)
        if self.num_queries not in (1, self.latents.num_tokens):
            raise ValueError(
                f"num_queries must be 1 or one for each of the {self.latents.num_tokens} latent "
                f"tokens, got {self.num_queries}"
            )

    @property
    def seen(self) -> LatentSpaceConfig:
        """The latent space that the language model reads pictures in."""
        return self.vision or self.latents

    def resolve(self, options: GenerationOptions | None) -> ResolvedOptions:
        """Return options with the model's defaults where the caller left them open.

        Raises:
            UserError: They ask for what the model does not have.
        """
        chosen = resolve(options or GenerationOptions(), self.sampling)
        check_early_exit(chosen.exit_scale, exit_depth=self.generator.dit.exit_depth)
        return chosen


def _check_equal(ours: tuple[str, int], theirs: tuple[str, int]) -> None:
    if ours[1] != theirs[1]:
        raise ValueError(f"{ours[0]} ({ours[1]}) must equal {theirs[0]} ({theirs[1]})")
