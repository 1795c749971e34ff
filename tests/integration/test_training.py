"""The stages as processes: killed, continued, chained, and what comes out is a model.

One process imports everything once and forks for each command, so that the commands are real
processes, which can be killed, and still start at once.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

NUM_STEPS = 6

SERVER = """
import json, os, signal, sys
import torch.utils.tensorboard, unimm.cli, unimm.pipeline
import training.run, training.stages.vision, training.stages.decoder
import training.stages.reading, training.stages.joint
import eval.scenes.run, eval.speed
from training.metrics import Reporter

write = Reporter.write

def write_then_signal(reporter, step, values):
    write(reporter, step, values)
    if step == order["at_step"]:
        os.killpg(0, order["signal"])

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        Reporter.write = write_then_signal
        status = unimm.cli.run(order["arguments"])
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

TINY_RUN = (
    f"run.num_steps={NUM_STEPS}",
    "run.log_every=1",
    "run.save_every=2",
    "run.sample_every=3",
    "run.num_threads=1",
    "run.ema_decay=0.5",
    "optimizer.warmup_steps=2",
)

TINY = {
    "vision": (
        "batch_size=8",
        "reading_batch_size=4",
        "text_tower.hidden_dim=16",
        "text_tower.depth=1",
        "model.language.hidden_size=32",
        "model.language.intermediate_size=64",
        "model.language.num_hidden_layers=1",
        "model.language.num_attention_heads=2",
        "model.language.num_key_value_heads=1",
        "model.latents.tower.hidden_size=32",
        "model.latents.tower.intermediate_size=64",
        "model.latents.tower.num_hidden_layers=1",
        "model.latents.tower.num_attention_heads=2",
        "model.latents.decoder.latent_dim=32",
        "model.latents.decoder.hidden_dim=32",
        "model.latents.decoder.depth=1",
        "model.latents.decoder.num_heads=2",
        "model.latents.decoder.mlp_dim=64",
        "model.generator.connector.in_dim=32",
        "model.generator.connector.out_dim=32",
        "model.generator.dit.latent_dim=32",
        "model.generator.dit.cond_dim=32",
        "model.generator.dit.hidden_dim=32",
        "model.generator.dit.depth=1",
        "model.generator.dit.num_heads=2",
    ),
    "decoder": ("batch_size=8",),
    "reading": ("batch.num_pictures=2", "batch.num_questions=2", "batch.matching_rows=2"),
    "joint": (
        "batch.num_prompts=4",
        "batch.num_blends=2",
        "batch.pictures_per_prompt=2",
        "batch.reading_rows=2",
        "batch.chat_rows=1",
        "batch.matching_rows=2",
        "bank.start=2",
        "bank.every=2",
        "bank.num_prompts=2",
        "bank.pictures_per_prompt=2",
        "bank.rows=2",
        "bank.num_steps=2",
        "model.generator.dit.hidden_dim=32",
        "model.generator.dit.depth=1",
        "model.generator.dit.num_heads=2",
    ),
    "reward": (
        "batch.num_prompts=3",
        "batch.num_blends=1",
        "batch.reading_rows=2",
        "batch.matching_rows=2",
        "bank.every=3",
        "bank.num_prompts=2",
        "bank.pictures_per_prompt=2",
        "bank.rows=2",
        "bank.num_steps=2",
        "reward.num_prompts=2",
        "reward.num_blends=1",
        "reward.pictures_per_prompt=3",
        "reward.rows=4",
        "reward.num_steps=2",
    ),
    "verifier": (
        "batch.num_prompts=2",
        "batch.reading_rows=2",
        "batch.matching_rows=2",
        "bank.every=2",
        "bank.num_prompts=2",
        "bank.pictures_per_prompt=2",
        "bank.failed_share=0.5",
        "bank.rows=2",
        "bank.num_steps=2",
    ),
}


@dataclass(frozen=True)
class Done:
    """What a command left behind; a negative status is the signal that it died of."""

    status: int
    stdout: str
    stderr: str


class Commands:
    """Runs ``unimm`` commands in processes of their own."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self.server, self.folder = server, folder

    def __call__(
        self, *arguments: str, at_step: int = -1, kill_by: signal.Signals = signal.SIGKILL
    ) -> Done:
        """Run a command; once the metrics of ``at_step`` are written, signal all its processes."""
        names = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        order = {"arguments": arguments, "at_step": at_step, "signal": int(kill_by), **names}
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        return Done(status, *(Path(path).read_text() for path in names.values()))


@pytest.fixture(scope="module")
def unimm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield Commands(server, tmp_path_factory.mktemp("output"))
        assert server.stdin
        server.stdin.close()


class Stage:
    """One stage with a folder for each of its runs."""

    def __init__(self, name: str, folder: Path, *, init: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self.overrides = [*TINY_RUN, *TINY[name], *([f"init={init}"] if init else [])]

    def arguments(self, run: str, *more: str) -> list[str]:
        return [
            *("train", f"scenes/{self.name}", *self.overrides, *more),
            f"run.output_dir={self.folder / run}",
        ]

    def metrics(self, run: str) -> list[str]:
        """Return the lines of the metrics without what depends on the clock, as text: NaN too."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [json.dumps({k: v for k, v in row.items() if k != "samples_per_s"}) for row in rows]

    def checkpoints(self, run: str) -> list[str]:
        return sorted(path.name for path in (self.folder / run / "checkpoints").glob("step-*"))

    def model(self, run: str) -> Path:
        return self.folder / run / "model"

    def check_same(self, interrupted: str, whole: str) -> None:
        """Check that two runs wrote the same losses and the same model, bit for bit."""
        assert self.metrics(interrupted) == self.metrics(whole)
        assert len(self.metrics(whole)) == NUM_STEPS
        ours, theirs = (self.model(run) / "model.safetensors" for run in (interrupted, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def train_whole(unimm: Commands, stage: Stage, *more: str) -> Stage:
    done = unimm(*stage.arguments("whole", *more))
    assert done.status == 0, done.stderr
    assert done.stdout == f"{stage.model('whole')}\n"
    return stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def vision(unimm: Commands, folder: Path) -> Stage:
    return train_whole(unimm, Stage("vision", folder / "vision"), "run.num_workers=1")


@pytest.fixture(scope="module")
def decoder(unimm: Commands, folder: Path, vision: Stage) -> Stage:
    stage = Stage("decoder", folder / "decoder", init=vision.model("whole"))
    return train_whole(unimm, stage, "run.num_workers=0")


@pytest.fixture(scope="module")
def reading(unimm: Commands, folder: Path, decoder: Stage) -> Stage:
    stage = Stage("reading", folder / "reading", init=decoder.model("whole"))
    return train_whole(unimm, stage, "run.num_workers=0")


@pytest.fixture(scope="module")
def joint(unimm: Commands, folder: Path, reading: Stage) -> Stage:
    stage = Stage("joint", folder / "joint", init=reading.model("whole"))
    return train_whole(unimm, stage, "run.num_workers=1")


def test_a_killed_vision_run_goes_on_as_if_nothing_had_happened(
    unimm: Commands, vision: Stage
) -> None:
    """Without workers, so that also how batches are prepared is shown not to matter."""
    command = vision.arguments("killed", "run.num_workers=0")
    assert unimm(*command, at_step=5).status == -signal.SIGKILL
    assert vision.checkpoints("killed") == ["step-00000002", "step-00000004"]
    assert len(vision.metrics("killed")) == 5  # the last of them will be written again
    done = unimm(*command)
    assert done.status == 0, done.stderr
    vision.check_same("killed", "whole")


def test_a_terminated_decoder_run_saves_and_goes_on(unimm: Commands, decoder: Stage) -> None:
    """The signal reaches the workers too, as it does when a terminal or a scheduler stops."""
    command = decoder.arguments("stopped", "run.num_workers=1")
    done = unimm(*command, at_step=3, kill_by=signal.SIGTERM)
    assert (done.status, done.stdout) == (0, ""), done.stderr
    assert "the same command goes on from there" in done.stderr
    assert decoder.checkpoints("stopped") == ["step-00000002", "step-00000003"]
    assert not decoder.model("stopped").exists()
    assert unimm(*command).status == 0
    decoder.check_same("stopped", "whole")


def test_a_killed_reading_run_goes_on(unimm: Commands, reading: Stage) -> None:
    command = reading.arguments("killed", "run.num_workers=0")
    assert unimm(*command, at_step=5).status == -signal.SIGKILL
    assert unimm(*command).status == 0
    reading.check_same("killed", "whole")


def test_a_killed_joint_run_remembers_its_judged_pictures(unimm: Commands, joint: Stage) -> None:
    command = joint.arguments("killed", "run.num_workers=0")
    assert unimm(*command, at_step=5).status == -signal.SIGKILL
    assert unimm(*command).status == 0
    joint.check_same("killed", "whole")
    parts = [set(json.loads(line)) for line in joint.metrics("whole")]
    assert ["judged" in names for names in parts] == [False, False, True, True, True, True]


def test_a_killed_reward_run_draws_and_judges_the_same_pictures_again(
    unimm: Commands, folder: Path, joint: Stage
) -> None:
    reward = Stage("reward", folder / "reward", init=joint.model("whole"))
    train_whole(unimm, reward, "run.num_workers=0")
    command = reward.arguments("killed", "run.num_workers=1")
    assert unimm(*command, at_step=5).status == -signal.SIGKILL
    assert unimm(*command).status == 0
    reward.check_same("killed", "whole")
    for line in map(json.loads, reward.metrics("whole")):
        assert {"reward", "rewarded", "judged"} <= set(line)
    config = json.loads((reward.model("whole") / "config.json").read_text())
    assert config["sampling"]["num_steps"] == 8  # the recipe's; the joint stage's were 20


def test_a_killed_verifier_run_is_held_to_the_same_conditions(
    unimm: Commands, folder: Path, joint: Stage
) -> None:
    """What is kept is what the model said at the beginning, not when it was killed."""
    verifier = Stage("verifier", folder / "verifier", init=joint.model("whole"))
    train_whole(unimm, verifier, "run.num_workers=0")
    command = verifier.arguments("killed", "run.num_workers=0")
    assert unimm(*command, at_step=5).status == -signal.SIGKILL
    assert unimm(*command).status == 0
    verifier.check_same("killed", "whole")
    before, after = (
        load_file(model / "model.safetensors")
        for model in (joint.model("whole"), verifier.model("whole"))
    )
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"language", "queries", "projector"}


def test_a_run_leaves_pictures_scalars_and_its_configuration(joint: Stage) -> None:
    run = joint.folder / "whole"
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["step-00000003.png", "step-00000006.png"]
    assert list((run / "tensorboard").glob("events.*"))
    assert f"num_steps: {NUM_STEPS}" in (run / "config.yaml").read_text()


def test_the_last_stage_gives_a_model_that_draws_and_reads(
    unimm: Commands, joint: Stage, tmp_path: Path
) -> None:
    model = str(joint.model("whole"))
    picture = tmp_path / "picture.png"
    done = unimm(
        *("generate", "a picture of a blue circle", "--model", model, "--best-of", "2"),
        *("--steps", "2", "--seed", "1", "--out", str(picture), "--json"),
    )
    assert done.status == 0, done.stderr
    assert len(json.loads(done.stdout)["candidates"]) == 2
    answered = unimm("ask", str(picture), "what color is the circle?", "--model", model, "--json")
    assert answered.status == 0, answered.stderr


def test_the_model_is_measured(unimm: Commands, joint: Stage, tmp_path: Path) -> None:
    done = unimm(
        *("eval", "scenes", "--model", str(joint.model("whole")), "--best-of", "2"),
        *("--num-prompts", "2", "--num-pictures", "3", "--steps", "1", "--split", "pair"),
        *("--out", str(tmp_path / "results.json")),
    )
    assert done.status == 0, done.stderr
    assert done.stdout == (tmp_path / "results.json").read_text()
    results = json.loads(done.stdout)
    assert results["reconstruction"]["count"] == 3
    assert results["reading"]["count"] == 12
    assert results["drawing"]["pair"]["pictures"] == 4
    assert list(results["drawing"]["pair"]["oracle_of_n"]) == ["1", "2"]
    assert set(results["drawing"]["pair"]["chosen"]) >= {"yes_no", "prompt_likelihood"}
    assert {place: r["count"] for place, r in results["chat"]["by_place"].items()} == {
        "1": 2,
        "2": 2,
        "3": 2,
    }


def test_several_processes_measure_what_one_does(unimm: Commands, joint: Stage) -> None:
    command = (
        *("eval", "scenes", "--model", str(joint.model("whole")), "--best-of", "2", "--steps", "1"),
        *("--num-prompts", "18", "--split", "train", "--part", "drawing", "--part", "chat"),
    )
    one, two = (unimm(*command, "--processes", count) for count in ("1", "2"))
    assert (one.status, two.status) == (0, 0), two.stderr
    results = [json.loads(done.stdout) for done in (one, two)]
    assert [tree.pop("settings")["processes"] for tree in results] == [1, 2]
    assert results[0] == results[1]
    assert results[0]["drawing"]["train"]["prompts"] == 18


def test_the_model_is_timed(unimm: Commands, joint: Stage) -> None:
    done = unimm(
        *("eval", "speed", "--model", str(joint.model("whole")), "--steps", "1"),
        *("--num-runs", "1", "--batch-size", "2", "--best-of", "2"),
    )
    assert done.status == 0, done.stderr
    *tables, last = done.stdout.splitlines()
    assert any("pictures/s" in line for line in tables)
    assert json.loads(last)["throughput"][0]["batch_size"] == 2


def test_training_steps_are_compared(unimm: Commands, joint: Stage) -> None:
    done = unimm(
        *("eval", "training-speed", "--model", str(joint.model("whole")), "--rounds", "1"),
        *("--variant", "padded", "--variant", "packed", "--steps", "2", "--samples", "8"),
    )
    assert done.status == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["variants"]
    assert rows["packed"]["samples_per_s"] > 0
    assert rows["padded"]["memory_gib"] > 0.1


def test_a_model_that_is_not_there_is_named(unimm: Commands, folder: Path) -> None:
    stage = Stage("decoder", folder / "orphan", init=folder / "absent")
    done = unimm(*stage.arguments("run"))
    assert done.status == 2
    assert "absent has no config.json" in done.stderr
    assert not (folder / "orphan").exists()
