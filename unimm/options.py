"""What a caller may choose for one generation, and the model's own defaults."""

from dataclasses import dataclass
from typing import Literal, get_args

from unimm.errors import UserError

SamplerName = Literal["euler", "heun", "midpoint", "official"]
VerifierName = Literal["yes_no", "prompt_likelihood", "ensemble"]

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """How a model is sampled when the caller does not say.

    Args:
        num_steps: Sampler steps from noise to a picture.
        guidance_scale: Weight of classifier-free guidance; 1 turns it off.
        guidance_interval: Times, from 0 (data) to 1 (noise), between which guidance is on.
        exit_scale: Weight of guidance away from the model's early exit (RAEv2, arXiv:2605.18324),
            which costs no further evaluation; 1 turns it off. With classifier-free guidance it
            comes first, on both predictions.
        exit_interval: Times between which that is on; RAEv2's exempts the last steps.
        sampler: How a step is taken; ``official`` repeats Scale-RAE's released sampler, with its
            errors: a wrong last step, and no guidance.
        verifier: How candidates are scored.
    """

    num_steps: int = 25
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    exit_scale: float = 1.0
    exit_interval: tuple[float, float] = (0.1, 1.0)
    sampler: SamplerName = "euler"
    verifier: VerifierName = "yes_no"

    def __post_init__(self) -> None:
        check_at_least("num_steps", self.num_steps, 1)
        check_scale("guidance_scale", self.guidance_scale)
        check_interval("guidance_interval", self.guidance_interval)
        check_scale("exit_scale", self.exit_scale)
        check_interval("exit_interval", self.exit_interval)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How to draw. ``None`` means the model's default.

    Args:
        best_of: Candidates to draw and choose among.
        num_steps: Sampler steps from noise to a picture.
        guidance_scale: Weight of classifier-free guidance; 1 turns it off.
        guidance_interval: Times, from 0 (data) to 1 (noise), between which guidance is on.
        exit_scale: Weight of guidance away from the model's early exit; 1 turns it off.
        exit_interval: Times between which that is on.
        sampler: How a step is taken.
        seed: Same seed, same candidates, however many there are.
        verifier: How candidates are scored.
        batch_size: Most candidates to denoise or score at once. In float32 on a CPU they go one by
            one whatever this says: the size of a matrix product decides in which order it sums, so
            a candidate would otherwise depend on its company in the last bits.
    """

    best_of: int = 1
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    exit_scale: float | None = None
    exit_interval: tuple[float, float] | None = None
    sampler: SamplerName | None = None
    seed: int = 0
    verifier: VerifierName | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_at_least("best_of", self.best_of, 1)
        check_at_least("batch_size", self.batch_size, 1)
        if self.num_steps is not None:
            check_at_least("num_steps", self.num_steps, 1)
        for name in ("guidance_scale", "exit_scale"):
            if (scale := getattr(self, name)) is not None:
                check_scale(name, scale)
        for name in ("guidance_interval", "exit_interval"):
            if (interval := getattr(self, name)) is not None:
                check_interval(name, interval)
        check_choice("sampler", self.sampler, get_args(SamplerName))
        check_choice("verifier", self.verifier, get_args(VerifierName))
        if type(self.seed) is not int or not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"seed must be a whole number from 0 to 2**64 - 1, got {self.seed!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedOptions:
    """Generation options with every default filled in."""

    best_of: int
    num_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    exit_scale: float
    exit_interval: tuple[float, float]
    sampler: SamplerName
    seed: int
    verifier: VerifierName
    batch_size: int


def resolve(options: GenerationOptions, defaults: SamplingDefaults) -> ResolvedOptions:
    """Fill what the caller left open with the model's defaults."""
    return ResolvedOptions(
        best_of=options.best_of,
        num_steps=options.num_steps or defaults.num_steps,
        guidance_scale=(
            defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale
        ),
        guidance_interval=options.guidance_interval or defaults.guidance_interval,
        exit_scale=defaults.exit_scale if options.exit_scale is None else options.exit_scale,
        exit_interval=options.exit_interval or defaults.exit_interval,
        sampler=options.sampler or defaults.sampler,
        seed=options.seed,
        verifier=options.verifier or defaults.verifier,
        batch_size=options.batch_size,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """How to write text.

    Args:
        max_new_tokens: Most tokens to write.
        temperature: 0 always takes the likeliest token; 1 samples the model's distribution.
        top_p: Sample only among the likeliest tokens that together have this probability.
        seed: Of the sampling, when the temperature is not 0.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or more, got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")


def check_at_least(name: str, value: int, limit: int) -> None:
    """Raise UserError unless ``value`` is a whole number of at least ``limit``."""
    if type(value) is not int or value < limit:
        raise UserError(f"{name} must be a whole number of at least {limit}, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UserError unless ``value`` is None or one of ``choices``."""
    if value is not None and value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_scale(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number that is not negative."""
    if not 0 <= value < float("inf"):
        raise UserError(
            f"{name} must be a number of at least 0 (1 turns guidance off), got {value!r}"
        )


def check_early_exit(exit_scale: float, *, exit_depth: int) -> None:
    """Raise UserError for guidance by an early exit that a model does not have."""
    if exit_scale != 1.0 and not exit_depth:
        raise UserError(
            f"exit_scale must be 1 for a model whose DiT has no early exit, got {exit_scale!r}; "
            f"train one with generator.dit.exit_depth"
        )


def check_interval(name: str, value: tuple[float, float]) -> None:
    """Raise UserError unless ``value`` is an interval inside [0, 1]."""
    if not 0 <= value[0] <= value[1] <= 1:
        raise UserError(f"{name} must be two rising times in [0, 1], got {value!r}")


def check_text(name: str, value: object) -> None:
    """Raise UserError unless ``value`` is text with something in it."""
    if not isinstance(value, str):
        raise UserError(f"a {name} must be text, got {type(value).__name__}")
    if not value.strip():
        raise UserError(f"the {name} is empty; say what you want in a few words")
