"""Low-rank additions to the language model (Hu et al. 2021, arXiv:2106.09685), by peft."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from unimm.errors import MissingExtraError, UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """Size of the additions.

    Args:
        rank: Of each addition.
        alpha: Its scale, times ``rank``.
        dropout: Of its input.
        targets: Names of the linear layers that get one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank ({self.rank}) and alpha ({self.alpha}) must be at least 1, dropout "
                f"({self.dropout}) in [0, 1)"
            )


def add_lora(language: nn.Module, config: LoRAConfig) -> None:
    """Add trained low-rank layers in place and freeze all else.

    Raises:
        MissingExtraError: peft is not installed.
        UserError: The model has no layer of the names in ``targets``.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise MissingExtraError("peft", extra="lora") from error
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
    )
    try:
        inject_adapter_in_model(settings, language)
    except ValueError as error:
        raise UserError(f"model.lora.targets {config.targets}: {error}") from error
    for name, parameter in language.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_lora(language: nn.Module) -> None:
    """Turn a model with additions into a plain one that computes the same."""
    for parent in list(language.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_base_layer") and hasattr(child, "merge"):
                layer: Any = child
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
