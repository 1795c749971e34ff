"""Conversations that are read with imperfect pictures: which, and what the model then sees."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from metaquery.flow import interpolate, sample_times, velocity_to_x_0
from training.batch import Blanks, Example, PromptRows, TrainingBatch, collate, mixed_seed
from training.imperfect import noised, noised_by_seed, predicted
from training.losses.behaviour import AlignmentConfig, answer_divergences
from training.objective import (
    Imperfect,
    JointObjective,
    ObjectiveConfig,
    Pictures,
    Totals,
    check_objective,
    draw,
)
from training.rereading import ALIGNMENT, READ_BACK, RereadingPlan, reread
from unimm.chat import ChatTemplate, Segment
from unimm.errors import UserError
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.testing import tiny_config, tiny_model, tiny_tokenizer

BLANK = torch.zeros(16, 48)
EXIT = AlignmentConfig(weight=0.5, share=1.0, source="exit", max_time=0.7)


@pytest.fixture(scope="module")
def model() -> UniMM:
    config = tiny_config()
    dit = replace(config.generator.dit, exit_depth=1)
    return tiny_model(config=replace(config, generator=replace(config.generator, dit=dit)))


@pytest.fixture(scope="module")
def template(model: UniMM) -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), model.config.chat)


@pytest.fixture(scope="module")
def samples(template: ChatTemplate) -> list[Example]:
    """Return a picture to draw, two yes/no cases with their prompt, and a question without."""

    def latents(seed: int) -> Tensor:
        return torch.randn(16, 48, generator=Generator().manual_seed(seed))

    prompts = (template.draw("a red circle"),)
    return [
        Example(template.draw("a blue square", reply="ok"), drawn=(latents(0),), seed=10),
        Example(
            template.verify("a red circle", answer=True), (latents(1),), seed=11, prompts=prompts
        ),
        Example(
            template.verify("a red square", answer=False), (latents(2),), seed=12, prompts=prompts
        ),
        Example(template.ask("what color?", answer="red"), read=(latents(3),), seed=13),
    ]


def batch_of(model: UniMM, samples: Sequence[Example], plan: RereadingPlan) -> TrainingBatch:
    def lay_out(rows: Sequence[Sequence[Segment]]) -> Layout:
        return model.lay_out(rows, pad_id=0, padding_side="right")

    batch = collate(samples, lay_out=lay_out, blanks=Blanks(BLANK, BLANK))
    return replace(batch, rereading=reread(samples, plan, lay_out=lay_out))


def run(
    model: UniMM, samples: Sequence[Example], config: ObjectiveConfig
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return what the objective gives, and all latents that the language model was shown."""
    batch = batch_of(model, samples, config.rereading)
    shown: list[Tensor] = []
    hook = model.projector.register_forward_pre_hook(lambda _, args: shown.append(args[0].detach()))
    imperfect = batch.rereading and Imperfect(batch.rereading, batch.read, batch.read_seeds)
    pictures = Pictures(batch.read, batch.drawn, batch.is_drawn.float())
    draws = draw(batch.drawn_seeds, batch.drawn, model, config)
    output = JointObjective(model, config)(
        batch.layout, pictures, draws, Totals(10, 1, 10), imperfect
    )
    hook.remove()
    return output, shown


def prediction(
    model: UniMM, template: ChatTemplate, x_0: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Return what the generator takes a red circle to be."""
    layout = model.lay_out([template.draw("a red circle")], pad_id=0, padding_side="right")
    condition = model.generator.condition(model.query_states(model(layout), layout))
    x_t = interpolate(x_0[None], noise[None], t).x_t
    return velocity_to_x_0(x_t, model.generator.velocity(x_t, t, condition), t)[0]


@torch.no_grad()
def test_yes_no_cases_are_read_as_the_generator_predicts_their_picture(
    model: UniMM, template: ChatTemplate, samples: list[Example]
) -> None:
    _, (shown,) = run(model, samples, ObjectiveConfig(read_back_share=1.0))
    clean = [sample.read[0] for sample in samples[1:]]
    assert torch.equal(shown[2], clean[2])  # nobody knows what would draw this one
    for i, sample in enumerate(samples[1:3]):
        generator = Generator().manual_seed(mixed_seed(mixed_seed(sample.seed, 0, 0), READ_BACK))
        shift = model.generator.config.timestep_shift
        t = sample_times(1, distribution="uniform", shift=shift, generator=generator)
        noise = torch.randn(16, 48, generator=generator)
        expected = prediction(model, template, clean[i], t, noise)
        torch.testing.assert_close(shown[i], expected, rtol=1e-4, atol=1e-4)
        assert (shown[i] - clean[i]).abs().max() > 0.1


def test_a_share_of_zero_changes_no_bit(model: UniMM, samples: list[Example]) -> None:
    assert batch_of(model, samples, ObjectiveConfig().rereading).rereading is None
    plain, (shown,) = run(model, samples, ObjectiveConfig())
    assert torch.equal(shown, torch.stack([s.read[0] for s in samples[1:]]))
    assert "alignment" not in plain
    # Where it is on but chooses nothing, stand-in rows run along and change nothing either.
    nothing, (unchanged,) = run(
        model, samples[:1] + samples[3:], ObjectiveConfig(read_back_share=1)
    )
    alone, (expected,) = run(model, samples[:1] + samples[3:], ObjectiveConfig())
    assert torch.equal(unchanged, expected)
    assert torch.equal(nothing["loss"], alone["loss"])


def test_no_gradient_flows_through_the_generator_into_what_is_read(
    model: UniMM, samples: list[Example]
) -> None:
    model.requires_grad_(True)
    model.zero_grad()
    config = ObjectiveConfig(flow_weight=0.0, read_back_share=1.0, alignment=EXIT)
    output, _ = run(model, samples[1:], config)
    torch.autograd.backward(output["loss"])
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    assert any(name.startswith("projector.") for name in reached)
    assert not any(name.startswith(("generator.", "queries.")) for name in reached)


@pytest.mark.parametrize("source", ["noise", "exit"])
@torch.no_grad()
def test_answers_are_aligned_with_those_about_the_true_pictures(
    model: UniMM, samples: list[Example], source: str
) -> None:
    config = ObjectiveConfig(alignment=replace(EXIT, source=source, noise=2.0))  # type: ignore[arg-type]
    plain, _ = run(model, samples, ObjectiveConfig())
    output, shown = run(model, samples, config)
    clean = torch.stack([sample.read[0] for sample in samples[1:]])
    assert torch.equal(shown[0], clean)  # what is read and learned as ever
    assert torch.equal(shown[1], clean)  # the teacher's
    assert (shown[2] - clean).flatten(1).std(dim=1).min() > 0.001
    rows = [sample.segments for sample in samples[1:]]
    layout = model.lay_out(rows, pad_id=0, padding_side="right")
    expected = answer_divergences(model, layout, clean, shown[2]).sum() / 10
    torch.testing.assert_close(output["alignment"], expected)
    torch.testing.assert_close(output["loss"], plain["loss"] + 0.5 * expected)
    assert expected > 1e-3
    seed = mixed_seed(mixed_seed(11, 0, 0), ALIGNMENT)
    if source == "noise":
        once = noised(clean[:1], 2.0, Generator().manual_seed(seed))
        assert torch.equal(shown[2][:1], once)


@torch.no_grad()
def test_a_picture_without_a_prompt_is_predicted_from_the_null_condition(model: UniMM) -> None:
    x_0 = torch.randn(2, 16, 48, generator=Generator().manual_seed(0))
    seeds = torch.tensor([1, 2])
    plan = RereadingPlan(aligned=1.0, aligned_by_exit=True)
    template = ChatTemplate(tiny_tokenizer(), model.config.chat)
    samples = [
        Example(template.ask("what?", answer="red"), (x,), seed=i) for i, x in enumerate(x_0)
    ]
    rereading = batch_of(model, samples, plan).rereading
    assert rereading is not None
    assert rereading.aligned is not None
    rows = rereading.aligned.prompts
    assert isinstance(rows, PromptRows)
    assert not rows.is_prompted.any()
    found = predicted(model, rows, x_0, seeds, lambda _: torch.full((1,), 0.5), head="exit")
    noise = torch.stack([torch.randn(16, 48, generator=Generator().manual_seed(s)) for s in (1, 2)])
    t = torch.full((2,), 0.5)
    x_t = interpolate(x_0, noise, t).x_t
    null = model.generator.null_condition(2).expand(2, 16, -1)
    velocity = model.generator.dit(x_t, t, null, head="exit")
    torch.testing.assert_close(found, velocity_to_x_0(x_t, velocity, t), rtol=1e-4, atol=1e-4)


def test_the_share_is_of_conversations_and_does_not_depend_on_the_batch(
    model: UniMM, samples: list[Example]
) -> None:
    many = [replace(samples[1], seed=1000 + i) for i in range(200)]
    plan = RereadingPlan(read_back=0.3, aligned=0.5)
    rereading = batch_of(model, many, plan).rereading
    assert rereading is not None
    assert rereading.read_back is not None
    assert rereading.aligned is not None
    chosen = rereading.read_back.pictures.tolist()
    assert 40 < len(chosen) < 80
    assert 80 < len(rereading.aligned.pictures) < 120
    alone = batch_of(model, many[chosen[0] : chosen[0] + 1], plan).rereading
    assert alone is not None
    assert alone.read_back is not None
    assert (alone.read_back.num_used, alone.read_back.pictures.tolist()) == (1, [0])


def test_noise_of_a_size_of_its_own_for_each_picture() -> None:
    clean = torch.zeros(64, 16, 48)
    seeds = torch.arange(64)
    sizes = noised_by_seed(clean, 0.5, seeds).std(dim=(1, 2))
    assert sizes.max() < 0.55
    assert 0.1 < sizes.mean() < 0.25  # a third of the largest
    assert torch.equal(noised_by_seed(clean[7:], 0.5, seeds[7:]).std(dim=(1, 2)), sizes[7:])
    assert noised_by_seed(clean, 0.0, seeds) is clean


def test_an_exit_that_is_not_there_is_asked_for_in_vain() -> None:
    with pytest.raises(UserError, match=r"objective\.alignment\.source exit needs a DiT with"):
        check_objective(ObjectiveConfig(alignment=EXIT), tiny_config())
    check_objective(ObjectiveConfig(alignment=replace(EXIT, weight=0.0)), tiny_config())
    with pytest.raises(ValueError, match=r"read_back_share must be in \[0, 1\], got 2"):
        ObjectiveConfig(read_back_share=2.0)
