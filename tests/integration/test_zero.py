"""Training on several processes: how a step is divided must not matter, nor who goes on with it."""

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unimm.checkpoint import save_checkpoint
from unimm.config import UniMMConfig
from unimm.latents import LatentSpaceConfig
from unimm.latents.decoder import RAEDecoderConfig
from unimm.scenes import Grammar
from unimm.testing import tiny_config, tiny_model, tiny_tokenizer

pytest.importorskip("deepspeed")

NUM_STEPS = 6
ROOT = Path(__file__).parents[2]

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
LOCAL = ("engine.kind=local",)
SPEEDS = {"samples_per_s", "tokens_per_s"}


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def runs(folder: Path) -> Iterator[Runs]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ranks_server.py"))],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Runs(Launcher(server, folder), folder, tiny_world_model(folder / "init"))
        assert server.stdin
        server.stdin.close()


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


@pytest.fixture(scope="module")
def whole(runs: Runs) -> list[dict[str, float]]:
    """Return the metrics of a run on one process, with the plain optimiser."""
    assert runs("local", *LOCAL) == [0], runs.launch.said()
    return runs.metrics("local")


def assert_same_course(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert [set(line) for line in ours] == [set(line) for line in theirs]
    assert len(theirs) == NUM_STEPS
    for our, their in zip(ours, theirs, strict=True):
        for name, value in their.items():
            # Sums in another order; Adam turns what rounding leaves of a zero into a step.
            assert math.isclose(our[name], value, rel_tol=1e-4, abs_tol=1e-5), (name, our, their)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sharding_over_two_processes_changes_nothing(
    runs: Runs, whole: list[dict[str, float]], stage: int
) -> None:
    name = f"zero{stage}"
    assert runs(name, f"engine.zero_stage={stage}", ranks=2) == [0, 0], runs.launch.said()
    assert_same_course(runs.metrics(name), whole)
    for key, weight in runs.weights(name).items():
        torch.testing.assert_close(weight, runs.weights("local")[key], rtol=1e-2, atol=2e-3)
