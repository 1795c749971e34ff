"""``unimm`` commands on several processes at once, as a launcher would start them."""

import json
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unimm.checkpoint import save_checkpoint
from unimm.config import UniMMConfig
from unimm.latents import LatentSpaceConfig
from unimm.latents.decoder import RAEDecoderConfig
from unimm.scenes import Grammar
from unimm.testing import tiny_config, tiny_model, tiny_tokenizer

NUM_STEPS = 6

TINY = (
    f"run.num_steps={NUM_STEPS}",
    "run.precision=float32",
    "run.num_workers=0",
    "run.num_threads=1",
    "run.log_every=1",
    "run.save_every=2",
    "run.keep_last=3",
    "run.sample_every=0",
    "run.ema_decay=0.5",
    "optimizer.lr=1e-2",
    "optimizer.warmup_steps=2",
    "optimizer.part_betas={generator: [0.9, 0.95]}",
    "samples_per_step=8",
    "objective.times_per_picture=2",
    "model.fresh=[]",
    "model.config={}",
)
SPEEDS = {"samples_per_s", "tokens_per_s", "tflops"}


class Launcher:
    """Runs ``unimm`` on several processes."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self.server, self.folder = server, folder

    def __call__(self, *arguments: str, ranks: int = 1, **order: Any) -> list[int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        order |= {"arguments": arguments, "ranks": ranks, "port": port}
        order |= {"output": str(self.folder / "rank")}
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        statuses: list[int] = json.loads(self.server.stdout.readline())
        return statuses

    def said(self, rank: int = 0, stream: str = "stderr") -> str:
        return (self.folder / f"rank.{rank}.{stream}").read_text()


class Runs:
    """Runs of one recipe in folders of their own."""

    def __init__(self, launch: Launcher, folder: Path, init: Path) -> None:
        self.launch, self.folder, self.init = launch, folder, init

    def __call__(self, name: str, *overrides: str, **order: Any) -> list[int]:
        place = (f"run.output_dir={self.folder / name}", f"model.init={self.init}")
        return self.launch("train", "scenes/zero", *TINY, *place, *overrides, **order)

    def metrics(self, name: str) -> list[dict[str, float]]:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in SPEEDS} for line in lines]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / "model.safetensors")

    def checkpoints(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.folder / name / "checkpoints").iterdir())


def tiny_world_model(directory: Path) -> Path:
    """Write a model whose pictures are as large as the miniature world's."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config: UniMMConfig = tiny_config()
    latents = LatentSpaceConfig(
        image_size=64,
        patch_size=16,
        tower=tower,
        decoder=RAEDecoderConfig(
            latent_dim=16,
            image_size=64,
            patch_size=16,
            hidden_dim=16,
            depth=1,
            num_heads=2,
            mlp_dim=16,
        ),
    )
    dit = replace(config.generator.dit, latent_dim=16, num_latent_tokens=16)
    config = replace(
        config,
        latents=latents,
        generator=replace(config.generator, dit=dit),
        grammar=Grammar.small().to_dict(),
    )
    save_checkpoint(directory, tiny_model(config=config), tiny_tokenizer(), readme="Tiny.\n")
    return directory
