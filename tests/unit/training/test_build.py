"""The model of a run: what begins anew in it, and what of it is trained."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training.build import MOST_SHAPES, ModelRecipe, build_model, compile_blocks
from training.config import EngineConfig, OptimizerConfig, RunConfig
from training.data.scene_samples import SceneDataConfig
from training.engine import LocalEngine
from training.loop import train
from training.losses.behaviour import AlignmentConfig
from training.objective import ObjectiveConfig
from training.plan import Machine, plan
from training.stages.unified import UnifiedStage
from training.stages.unified_config import UnifiedConfig
from unimm.chat import ChatTemplate
from unimm.checkpoint import read_config, save_checkpoint
from unimm.errors import UserError
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.scenes import Grammar
from unimm.testing import tiny_config, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
WITH_EXIT: dict[str, Any] = {"generator": {"exit_only": True, "dit": {"exit_depth": 1}}}
EXIT_ONLY: dict[str, Any] = {
    "config": WITH_EXIT,
    "fresh": ("generator.dit.exit",),
    "language": "frozen",
}


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose pictures are as large as the miniature world's."""
    config = tiny_config()
    latents = replace(config.latents, image_size=64, patch_size=16)
    dit = replace(config.generator.dit, latent_dim=latents.dim, hidden_dim=latents.dim)
    generator = replace(config.generator, dit=replace(dit, num_heads=8))
    grammar = Grammar.small().to_dict()
    config = replace(config, latents=latents, generator=generator, grammar=grammar)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(directory, tiny_model(config=config), tiny_tokenizer(), readme="Tiny.\n")
    return directory


def settings(init: Path, folder: Path, model: dict[str, Any], **changes: Any) -> UnifiedConfig:
    run = RunConfig(
        output_dir=folder / "run", num_steps=2, precision="float32", num_workers=0, sample_every=2
    )
    return UnifiedConfig(
        run=run,
        model=ModelRecipe(init=init, **model),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0),
        samples_per_step=4,
        **changes,
    )


def trained(config: UnifiedConfig) -> tuple[UnifiedStage, Path]:
    stage = UnifiedStage(config)
    engine = LocalEngine(stage.groups(), config.optimizer, num_steps=2, module=stage.objective)
    exported = train(stage, config.run, config.optimizer, config, engine=engine)
    assert exported is not None
    return stage, exported


def test_an_early_exit_is_trained_alone_on_a_model_that_keeps_its_bits(
    init: Path, tmp_path: Path
) -> None:
    only_draws = SceneDataConfig(drawing=1, reading=0, matching=0, text=0)
    stage, exported = trained(settings(init, tmp_path, EXIT_ONLY, scenes=only_draws))
    before, after = (Pipeline.from_pretrained(path).model.state_dict() for path in (init, exported))
    added = set(after) - set(before)
    assert added == {name for name in after if name.startswith("generator.dit.exit.")}
    assert set(stage.names.values()) == added
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not read_config(exported)[0].generator.exit_only  # a model to go on from like any other
    assert after["generator.dit.exit.out.weight"].any()  # which begins at zero
    drawn = Pipeline.from_pretrained(exported).generate(
        "a red circle", GenerationOptions(exit_scale=1.5, num_steps=2)
    )
    assert drawn[0].nfe == 2


def test_the_exit_alone_leaves_no_room_for_the_language_model(init: Path, tmp_path: Path) -> None:
    both = {**EXIT_ONLY, "language": "full"}
    with pytest.raises(UserError, match=r"but model\.language is 'full'; make it frozen"):
        UnifiedStage(settings(init, tmp_path, both))


def test_what_begins_anew_is_named(init: Path) -> None:
    parts = ModelRecipe(init=init, config=WITH_EXIT, fresh=("generator",), language="frozen")
    built = build_model(parts, device=CPU, dtype=torch.float32)
    assert not built.generator.dit.final.out.weight.any()
    inner = build_model(ModelRecipe(init=init, **EXIT_ONLY), device=CPU, dtype=torch.float32)
    assert inner.generator.dit.final.out.weight.any()
    wrong = replace(parts, fresh=("generator.dit.exti",))
    with pytest.raises(UserError, match=r"fresh names 'generator\.dit\.exti', which is no part"):
        build_model(wrong, device=CPU, dtype=torch.float32)
    wrong = replace(parts, fresh=("queries",))
    with pytest.raises(UserError, match=r"lacks \['generator\.dit\.exit.*or modules in them"):
        build_model(wrong, device=CPU, dtype=torch.float32)


def test_training_the_exit_alone_is_planned_for_less(init: Path, tmp_path: Path) -> None:
    alone = plan(settings(init, tmp_path, EXIT_ONLY), Machine())
    whole = plan(settings(init, tmp_path, {"language": "frozen"}), Machine())
    assert alone.flops < 0.6 * whole.flops
    assert sum(size.trained for size in alone.sizes) == sum(
        p.numel()
        for p in build_model(
            ModelRecipe(init=init, **EXIT_ONLY), device=CPU, dtype=torch.float32
        ).generator.dit.exit.parameters()
    )


def test_imperfect_pictures_are_trained_on_logged_and_planned(init: Path, tmp_path: Path) -> None:
    model = {**EXIT_ONLY, "language": "full", "config": {"generator": {"dit": {"exit_depth": 1}}}}
    aligned = AlignmentConfig(weight=0.5, share=1.0, source="exit")
    objective = ObjectiveConfig(read_back_share=1.0, alignment=aligned)
    scenes = SceneDataConfig(drawing=1, reading=1, matching=2, text=0)
    config = settings(init, tmp_path, model, objective=objective, scenes=scenes)
    planned = plan(config, Machine())
    plain = plan(replace(config, objective=ObjectiveConfig()), Machine())
    assert planned.work == plain.work
    assert planned.flops > plain.flops
    assert "positions read once more" in "\n".join(planned.lines())
    assert "positions read once more" not in "\n".join(plain.lines())
    stage, exported = trained(config)
    assert (exported.parent / "metrics.jsonl").exists()
    engine = LocalEngine(stage.groups(), config.optimizer, num_steps=2, module=stage.objective)
    report, _ = stage.take_step(engine, stage.batch(0), step=0)
    assert report.parts["alignment"] > 0
    # The plan is of the first step, and counts what that step does but for stand-ins.
    assert report.flops == pytest.approx(planned.flops, rel=0.25)
    assert read_config(exported)[0].generator.dit.exit_depth == 1


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
def test_compiled_blocks_compute_and_learn_the_same() -> None:
    template = ChatTemplate(tiny_tokenizer(), tiny_config().chat)
    plain, compiled = tiny_model(), tiny_model()
    compile_blocks(compiled, dynamic=False)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert torch._dynamo.config.recompile_limit >= MOST_SHAPES
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 48, generator=generator)
    outcomes = []
    for model in (plain, compiled):
        layout = model.lay_out([template.draw("a red circle")] * 2, pad_id=template.pad_id)
        states = model.query_states(model(layout), layout)
        loss = model.generator.loss(states, latents, generator=generator.manual_seed(1))
        torch.autograd.backward(loss)
        gradient = model.queries.embeddings.grad
        assert gradient is not None
        outcomes.append((loss.detach(), gradient))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-6)


def test_muon_is_refused_where_matrices_are_cut_up(init: Path, tmp_path: Path) -> None:
    config = settings(init, tmp_path, {})
    with pytest.raises(ValueError, match="whole matrices, which ZeRO cuts up"):
        replace(
            config,
            optimizer=replace(config.optimizer, hidden="muon"),
            engine=EngineConfig(kind="deepspeed", zero_stage=2),
        )


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler and there is no no-such-compiler"):
        compile_blocks(tiny_model())
