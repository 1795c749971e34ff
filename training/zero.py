"""DeepSpeed's ZeRO behind the engine protocol.

Checkpoints are our own (:mod:`training.fragments`): DeepSpeed's are pickles, tied to the number of
processes and the ZeRO stage, and its conversion of them mixes up groups of parameters.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unimm.errors import MissingExtraError

from .config import EngineConfig, OptimizerConfig
from .engine import StepReport, set_learning_rate
from .fragments import FragmentReader, write_fragments
from .optimizer import ParameterGroup
from .ranks import Ranks
from .spikes import SpikeGuard
from .zero_optimizer import AVERAGE, MASTER, ShardedAdamW
from .zero_shards import Shards, build_shards


class DeepSpeedEngine:
    """Train a module whose optimiser, gradients or parameters are shared out among processes.

    Args:
        module: What calling the engine runs; holds all trained parameters.
        groups: What is trained.
        names: Name of every trained parameter, by which checkpoints know it.
        config: AdamW and its schedule.
        engine: How the state is shared out.
        num_steps: Steps of the whole run.
        ema_decay: Of the moving average; 0 keeps none.
        ranks: The processes of the run.
        device: Of this process.
        whole: Parameters that are read outside of their own module's forward pass.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ParameterGroup],
        names: Mapping[nn.Parameter, str],
        config: OptimizerConfig,
        engine: EngineConfig,
        *,
        num_steps: int,
        ema_decay: float,
        ranks: Ranks,
        device: torch.device,
        whole: Sequence[nn.Parameter] = (),
    ) -> None:
        self.ranks, self.config, self.num_steps = ranks, config, num_steps
        self.parts = [group.part for group in groups]
        self.guard = SpikeGuard(config.spike_factor)
        self.optimizer = ShardedAdamW(groups, config, ema_decay=ema_decay)
        deepspeed = import_deepspeed(device)
        dtype = groups[0].parameters[0].dtype
        settings = deepspeed_config(
            engine, config, ranks=ranks, dtype=dtype, on_gpu=device.type == "cuda"
        )
        self._engine, zero, *_ = deepspeed.initialize(
            model=module, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        self._zero: Any = zero
        self.shards: Shards = build_shards(engine.zero_stage, zero, self.optimizer, names)
        if engine.zero_stage == 3:
            for parameter in whole:
                deepspeed.zero.register_external_parameter(module, parameter)
        self._whole = list(whole) if engine.zero_stage == 3 else []
        self._gathered = deepspeed.zero.GatheredParameters
        self.optimizer.gate = lambda: self.guard.allows(self._norm())

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        # DeepSpeed takes the mean over processes; the protocol wants the sum.
        self._engine.backward(loss * self.ranks.size, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch

    def update(self, step: int) -> StepReport:
        set_learning_rate(self.optimizer, step, self.num_steps, self.config)
        lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.begin()
        self._engine.step()
        norm, taken = self._norm(), self.optimizer.was_taken
        self.guard.note(norm, taken=taken)
        return StepReport(lr, norm, not taken, self._part_norms(norm))

    def _norm(self) -> float:
        return float(self._zero._global_grad_norm)  # noqa: SLF001

    def _part_norms(self, norm: float) -> dict[str, float]:
        """Return the norm of each part's gradients, which the optimiser saw clipped and in part."""
        clip = self.config.grad_clip
        scale = max(1.0, norm / clip) if clip else 1.0
        squares = self.ranks.sum(torch.tensor(self.optimizer.squares, dtype=torch.float64))
        norms = (squares.sqrt() * scale).tolist()
        return dict(zip(self.parts, norms, strict=True))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.optimizer.ema_decay:
            self.shards.publish(AVERAGE)
        try:
            with self._gathered(self._whole):
                yield
        finally:
            if self.optimizer.ema_decay:
                self.shards.publish(MASTER)

    def save(self, directory: Path) -> dict[str, Any]:
        kinds = (MASTER, *self.optimizer.state_names)
        fragments = (f for kind in kinds for f in self.shards.fragments(kind))
        write_fragments(fragments, directory / f"rank-{self.ranks.rank:05d}.safetensors")
        steps = [float(state["step"]) for state in self.optimizer.state.values()]
        return {"steps": max(steps), "guard": self.guard.state_dict()}

    def load(self, directory: Path, state: dict[str, Any]) -> None:
        with FragmentReader(directory) as reader:
            for kind in (MASTER, *self.optimizer.state_names):
                # A run that begins to keep an average begins it at the weights.
                stored = kind if kind in reader.kinds else MASTER
                self.shards.replace(kind, partial(reader.read, kind=stored))
        for shard_state in self.optimizer.state.values():
            shard_state["step"].fill_(state["steps"])
        self.guard.load_state_dict(state["guard"])
        self.shards.publish(MASTER)


def import_deepspeed(device: torch.device) -> Any:
    """Return DeepSpeed, set up for the device.

    Raises:
        MissingExtraError: It is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import deepspeed.ops
    except ModuleNotFoundError as error:
        raise MissingExtraError("deepspeed", extra="deepspeed") from error
    if device.type == "cpu":
        # On a CPU it would compile a kernel for shared memory, which gloo does without.
        ops: Any = deepspeed.ops
        if hasattr(ops, "__compatible_ops__"):
            known: dict[str, bool] = ops.__compatible_ops__
            ops.__compatible_ops__ = {**known, "deepspeed_shm_comm": False}
    # Torch 2.13 renamed collectives, and says so at every call of DeepSpeed's.
    warnings.filterwarnings("ignore", message=r".*is deprecated. Please use `torch\.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl", auto_mpi_discovery=False
    )
    return deepspeed


def deepspeed_config(
    engine: EngineConfig,
    optimizer: OptimizerConfig,
    *,
    ranks: Ranks,
    dtype: torch.dtype,
    on_gpu: bool,
) -> dict[str, Any]:
    """Return DeepSpeed's own configuration."""
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
        "reduce_bucket_size": engine.bucket_size,
        "allgather_bucket_size": engine.bucket_size,
    }
    if engine.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": engine.persistence_threshold,
            "stage3_prefetch_bucket_size": engine.bucket_size,
        }
    nvme = {"nvme_path": str(engine.nvme_path)} if engine.nvme_path else {}
    for name, where in (
        ("offload_optimizer", engine.offload_optimizer),
        ("offload_param", engine.offload_parameters),
    ):
        if where != "none":
            zero[name] = {
                "device": where,
                "pin_memory": on_gpu,
                **(nvme if where == "nvme" else {}),
            }
    config = {
        "train_micro_batch_size_per_gpu": 1,  # bookkeeping only; batches are the stage's
        "gradient_accumulation_steps": engine.accumulation,
        "gradient_clipping": optimizer.grad_clip,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if dtype == torch.bfloat16 and engine.accumulation > 1 and engine.zero_stage > 1:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
