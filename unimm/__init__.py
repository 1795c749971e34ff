"""A model that draws in the latent space it sees in, reads what it drew, and chooses."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimm.generation import Generation
    from unimm.model import UniMM
    from unimm.options import GenerationOptions, TextOptions
    from unimm.pipeline import Pipeline
    from unimm.session import ChatSession

__version__ = "0.1.0"

__all__ = [
    "ChatSession",
    "Generation",
    "GenerationOptions",
    "Pipeline",
    "TextOptions",
    "UniMM",
    "__version__",
]

_HOMES = {
    "ChatSession": "session",
    "Generation": "generation",
    "GenerationOptions": "options",
    "Pipeline": "pipeline",
    "TextOptions": "options",
    "UniMM": "model",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``unimm --help`` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unimm' has no attribute {name!r}")
    return getattr(import_module(f"unimm.{_HOMES[name]}"), name)
