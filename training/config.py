"""What every training run is configured by, whatever it trains."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The optimiser and its learning-rate schedule: warm up, stay, decay.

    Args:
        hidden: What trains the weights of hidden linear layers; AdamW trains all else.
        muon_momentum: Muon's.
        lr: Peak learning rate.
        part_lr: Peak learning rate of single parts of the model, by name, where it differs.
        betas: AdamW's moment decays.
        part_betas: Moment decays of single parts, by name, where they differ.
        eps: AdamW's denominator floor.
        weight_decay: Decoupled decay of matrices; vectors are never decayed.
        grad_clip: Largest global gradient norm; 0 does not clip.
        spike_factor: A gradient norm this many times its running mean is a spike, whose step is
            left out; 0 takes every finite step.
        warmup_steps: Steps of linear warm-up from 0.
        decay_share: Last share of all steps, in [0, 1], over which the rate falls to
            ``final_lr_ratio``; 1 with ``cosine`` is the usual cosine schedule.
        decay_shape: How it falls.
        final_lr_ratio: Last learning rate over the peak.
    """

    hidden: Literal["adamw", "muon"] = "adamw"
    muon_momentum: float = 0.95
    lr: float = 1e-3
    part_lr: dict[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.99)
    part_betas: dict[str, tuple[float, float]] = field(default_factory=dict)
    eps: float = 1e-8
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    spike_factor: float = 0.0
    warmup_steps: int = 200
    decay_share: float = 0.2
    decay_shape: Literal["linear", "cosine"] = "linear"
    final_lr_ratio: float = 0.02

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum must be in [0, 1), got {self.muon_momentum}")
        if self.spike_factor != 0 and self.spike_factor <= 1:
            raise ValueError(f"spike_factor must be 0 or above 1, got {self.spike_factor}")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"decay_share must be in [0, 1], got {self.decay_share}")
        if self.warmup_steps < 0 or self.grad_clip < 0:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) and grad_clip ({self.grad_clip}) "
                f"must not be negative"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long a run is, where it writes, and what it runs on.

    Args:
        output_dir: Where checkpoints, metrics, pictures and the final model go.
        num_steps: Optimiser steps in all; may be raised or lowered on resuming.
        seed: Of the weights, the data and the noise.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: Of the weights and activations that a step computes with; the optimiser keeps
            float32 master weights either way.
        num_threads: CPU threads of a step; 0 leaves torch's choice.
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        ema_decay: Of the moving average of the weights; 0 keeps none.
        log_every: Steps between lines of ``metrics.jsonl``.
        save_every: Steps between checkpoints.
        keep_last: Checkpoints that are kept.
        keep_every: Also keep the checkpoint of every step that this divides; 0 for none.
        sample_every: Steps between grids of sample pictures; 0 for none.
        peak_tflops: Peak of one device, of which the metrics give the share that is used (MFU);
            0 leaves it out.
        wandb_project: Also report to Weights & Biases, under this project; empty does not.
        max_bad_steps: Steps in a row without a finite loss and gradient before the run stops.
    """

    output_dir: Path
    num_steps: int
    seed: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    num_threads: int = 0
    num_workers: int = 1
    ema_decay: float = 0.0
    log_every: int = 20
    save_every: int = 500
    keep_last: int = 2
    keep_every: int = 0
    sample_every: int = 500
    peak_tflops: float = 0.0
    wandb_project: str = ""
    max_bad_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("num_steps", "log_every", "save_every", "keep_last", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_threads", "num_workers", "sample_every", "keep_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.peak_tflops < 0:
            raise ValueError(f"peak_tflops must not be negative, got {self.peak_tflops}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


Offload = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How a step is divided over processes and micro-batches.

    Args:
        kind: ``local`` keeps the whole optimiser in every process; ``deepspeed`` shards it.
        zero_stage: What ZeRO shards (arXiv:1910.02054): 1 optimiser states, 2 gradients too, 3
            parameters too; 0 nothing, which is ``local``.
        accumulation: Micro-batches of a step in each process.
        offload_optimizer: Where the optimiser's states live when not on the GPU.
        offload_parameters: Where parameters live that no layer needs now; ZeRO-3 only.
        nvme_path: Folder on a fast disk; needed by ``nvme``.
        bucket_size: Elements of one reduction or gathering.
        persistence_threshold: ZeRO-3 keeps parameters of fewer elements whole.
    """

    kind: Literal["local", "deepspeed"] = "local"
    zero_stage: Literal[0, 1, 2, 3] = 2
    accumulation: int = 1
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"
    nvme_path: Path | None = None
    bucket_size: int = 200_000_000
    persistence_threshold: int = 100_000

    def __post_init__(self) -> None:
        if self.accumulation < 1 or self.bucket_size < 1 or self.persistence_threshold < 0:
            raise ValueError(
                f"accumulation ({self.accumulation}) and bucket_size ({self.bucket_size}) must be "
                f"at least 1, persistence_threshold ({self.persistence_threshold}) at least 0"
            )
        offloads = (self.offload_optimizer, self.offload_parameters)
        if not self.is_sharded and offloads != ("none", "none"):
            raise ValueError("offloading needs kind deepspeed and zero_stage 1, 2 or 3")
        if self.zero_stage != 3 and self.offload_parameters != "none":
            raise ValueError(f"offload_parameters needs zero_stage 3, got {self.zero_stage}")
        if self.zero_stage != 3 and self.offload_optimizer == "nvme":
            raise ValueError(f"offload_optimizer nvme needs zero_stage 3, got {self.zero_stage}")
        if "nvme" in offloads and self.nvme_path is None:
            raise ValueError("offloading to nvme needs nvme_path, a folder on a fast disk")

    @property
    def is_sharded(self) -> bool:
        """Whether processes share one optimiser."""
        return self.kind == "deepspeed" and self.zero_stage > 0
