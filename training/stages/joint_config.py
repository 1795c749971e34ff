"""What a run of the joint stage is made of, and the model that it begins with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unimm.checkpoint import load_model, read_config
from unimm.config import UniMMConfig
from unimm.config_io import from_dict, to_dict
from unimm.model import Part, UniMM

from ..build import merged
from ..config import OptimizerConfig, RunConfig
from ..data.joint import JointBatchConfig
from .bank import BankConfig
from .rewards import RewardConfig

READERS: tuple[Part, ...] = ("language", "queries", "projector")


@dataclass(frozen=True, kw_only=True, slots=True)
class JointConfig:
    """A run of the joint stage.

    Args:
        run: Length, place, machine.
        init: Model directory of the stage before.
        model: Overrides of the stage before's configuration: generator, sampling, chat.
        optimizer: AdamW and its schedule.
        batch: What a step is made of.
        bank: Generated pictures for the verifier.
        reward: Generated pictures for the generator.
        flow_weight: Of the flow-matching loss.
        reading_weight: Of the cross-entropy on captions, answers and replies.
        matching_weight: Of the cross-entropy on yes and no.
        read_noise: Largest standard deviation of noise on latents that are read.
        language: Train language model, queries and projector too. Where they are frozen nothing
            is read, and a step costs half: what the queries say is known, the DiT learns.
        drawing: ``keep`` freezes the generator, and holds the language model to the conditions
            that it gave in ``init``: reading improves, the pictures stay.
        keep_weight: Of the distance from these conditions.
        keep_generator: Go on from the generator in ``init`` instead of a fresh one.
        compile_blocks: Compile each block of the language model and the DiT; takes minutes to
            start, and a C++ compiler on a CPU.
    """

    run: RunConfig
    init: Path
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: JointBatchConfig = field(default_factory=JointBatchConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    flow_weight: float = 2.0
    reading_weight: float = 1.0
    matching_weight: float = 1.0
    read_noise: float = 0.3
    language: Literal["full", "frozen"] = "full"
    drawing: Literal["learn", "keep"] = "learn"
    keep_weight: float = 10.0
    keep_generator: bool = False
    compile_blocks: bool = False

    def __post_init__(self) -> None:
        if not self.keep_weight >= 0:
            raise ValueError(f"keep_weight must not be negative, got {self.keep_weight}")
        if self.drawing == "learn":
            return
        if self.language == "frozen" or not self.keep_generator:
            raise ValueError(
                "drawing=keep is for a language model that learns beside a generator that is "
                "there; set language=full and keep_generator=true"
            )
        if self.batch.num_prompts < 2:
            raise ValueError(
                "drawing=keep measures distances by the variance over prompts; set "
                f"batch.num_prompts to at least 2, got {self.batch.num_prompts}"
            )
        if self.batch.pictures_per_prompt > 1:
            raise ValueError(
                "drawing=keep learns nothing from pictures of its prompts; set "
                f"batch.pictures_per_prompt to 1, got {self.batch.pictures_per_prompt}"
            )
        if self.batch.num_blends:
            raise ValueError(
                "drawing=keep learns nothing from blends, whose conditions it does not keep; set "
                f"batch.num_blends=0, got {self.batch.num_blends}"
            )
        if self.reward.num_prompts:
            raise ValueError("drawing=keep has no use for rewards; set reward.num_prompts=0")

    @property
    def trained(self) -> tuple[Part, ...]:
        """The parts that learn."""
        readers = READERS if self.language == "full" else ()
        return readers if self.drawing == "keep" else (*readers, "generator")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part of the loss."""
        return {
            "flow": self.flow_weight,
            "reward": self.reward.weight,
            "kept": self.keep_weight,
            "reading": self.reading_weight,
            "shown": self.reading_weight,
            "replies": 0.1 * self.reading_weight,
            "chats": 0.3 * self.reading_weight,
            "matching": self.matching_weight,
            "judged": self.matching_weight,
        }


def build_model(config: JointConfig) -> UniMM:
    """Return the model of the stage before, with this stage's overrides.

    Parts whose shape an override changes keep their fresh initial weights.
    """
    stored, _ = read_config(config.init)
    tree = merged(to_dict(stored), config.model)
    model_config = from_dict(UniMMConfig, tree)
    model = UniMM(model_config, attention="eager")
    before = load_model(config.init, stored, device=torch.device("cpu"), dtype=torch.float32)
    kept = {
        name: tensor
        for name, tensor in before.state_dict().items()
        if config.keep_generator or not name.startswith("generator.")
    }
    missing = set(model.load_state_dict(kept, strict=False).missing_keys)
    untrained = {name for name in missing if not name.startswith("generator.")}
    if untrained:
        raise ValueError(f"{config.init} lacks {sorted(untrained)[:3]}; it is no such model")
    return model
