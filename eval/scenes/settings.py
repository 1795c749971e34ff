"""What is measured of a model of the miniature world, and how."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """See ``unimm eval scenes --help``."""

    model: str | None
    parts: tuple[str, ...]
    splits: tuple[str, ...]
    best_of: int
    num_prompts: int
    num_pictures: int
    num_steps: int | None
    guidance_scale: float | None
    seed: int
    device: str
    dtype: str
    processes: int = 1
