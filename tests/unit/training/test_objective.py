"""The unified objective: means over the whole step, however it is divided."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training.batch import Blanks, Example, TrainingBatch, collate, share_of
from training.cost import StepCost, part_sizes, state_bytes, work_of
from training.counts import StepCounts
from training.imperfect import noised_by_seed
from training.losses.behaviour import AlignmentConfig
from training.objective import (
    Imperfect,
    JointObjective,
    ObjectiveConfig,
    Pictures,
    draw,
)
from training.ranks import ALONE
from training.rereading import reread
from unimm.chat import ChatTemplate, Segment
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.testing import tiny_config, tiny_model, tiny_tokenizer

CONFIG = ObjectiveConfig(times_per_picture=2, read_noise=0.3)
NOISED = replace(CONFIG, alignment=AlignmentConfig(weight=0.5, share=1.0, noise=1.0))
PREDICTED = replace(
    CONFIG,
    read_back_share=1.0,
    alignment=AlignmentConfig(weight=0.5, share=1.0, source="exit"),
)
BLANK = torch.zeros((3, 16, 16), dtype=torch.uint8)


def picture(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, 16, 16), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    model = tiny_model()
    return ChatTemplate(tiny_tokenizer(), model.config.chat)


@pytest.fixture(scope="module")
def samples(template: ChatTemplate) -> list[Example]:
    """Return conversations that draw, read and only talk, of unequal lengths."""
    made = []
    for n in range(8):
        match n % 4:
            case 0 | 1:
                segments = template.draw("a red circle", reply="done" * (n + 1))
                made.append(Example(segments, drawn=(picture(n),), seed=n))
            case 2:
                segments = template.ask("what color is the circle?", answer="red" * n)
                prompts = (template.draw("a red circle"),) if n < 4 else ()
                made.append(Example(segments, read=(picture(n),), seed=n, prompts=prompts))
            case _:
                made.append(Example(template.say("hello", answer="hi"), seed=n))
    return made


def model_with_exit() -> UniMM:
    config = tiny_config()
    dit = replace(config.generator.dit, exit_depth=1)
    return tiny_model(config=replace(config, generator=replace(config.generator, dit=dit)))


def batch_of(
    model: UniMM, samples: Sequence[Example], config: ObjectiveConfig = CONFIG
) -> TrainingBatch:
    def lay_out(rows: Sequence[Sequence[Segment]]) -> Layout:
        return model.lay_out(rows, pad_id=0, padding_side="right")

    batch = collate(samples, lay_out=lay_out, blanks=Blanks(BLANK, BLANK))
    return replace(batch, rereading=reread(samples, config.rereading, lay_out=lay_out))


def gradients(
    samples: Sequence[Example], parts: int, config: ObjectiveConfig = CONFIG
) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of a step divided into equal parts, summed over them."""
    model = tiny_model() if config is CONFIG else model_with_exit()
    model.train_only(["language", "queries", "projector", "generator"])
    objective = JointObjective(model, config)
    each = len(samples) // parts
    batches = [batch_of(model, samples[i : i + each], config) for i in range(0, len(samples), each)]
    of = StepCounts.of(batches, ALONE).totals
    assert of.tokens == sum(b.num_tokens for b in batches)
    total = 0.0
    for batch in batches:
        clean, drawn = (model.latents.encode(p.float() / 255) for p in (batch.read, batch.drawn))
        read = noised_by_seed(clean, config.read_noise, batch.read_seeds)
        draws = draw(batch.drawn_seeds, drawn, model, config)
        pictures = Pictures(read, drawn, batch.is_drawn.float())
        again = batch.rereading and Imperfect(batch.rereading, clean, batch.read_seeds)
        loss = objective(batch.layout, pictures, draws, of, again)["loss"]
        torch.autograd.backward(loss)
        total += loss.item()
    named = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return total, {name: grad for name, grad in named.items() if grad is not None}


@pytest.mark.parametrize(
    ("parts", "config"),
    [(2, CONFIG), (4, CONFIG), (8, CONFIG), (8, NOISED), (2, PREDICTED), (8, PREDICTED)],
)
def test_loss_and_gradients_do_not_depend_on_how_a_step_is_divided(
    samples: list[Example], parts: int, config: ObjectiveConfig
) -> None:
    whole_loss, whole = gradients(samples, 1, config)
    loss, divided = gradients(samples, parts, config)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert set(divided) == set(whole)
    for name, expected in whole.items():
        scale = expected.abs().max().item()
        assert (divided[name] - expected).abs().max().item() <= 1e-5 * max(scale, 1e-3), name


@pytest.mark.parametrize("config", [CONFIG, NOISED, PREDICTED])
def test_every_batch_reaches_every_parameter(
    template: ChatTemplate, config: ObjectiveConfig
) -> None:
    """A process that left a parameter out would let the others wait for its gradient."""
    _, reached = gradients([Example(template.say("hello", answer="hi"))], 1, config)
    model = tiny_model() if config is CONFIG else model_with_exit()
    model.train_only(["language", "queries", "projector", "generator"])
    assert set(reached) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(g.any() for n, g in reached.items() if not n.startswith("language."))


@pytest.mark.parametrize("chunks", [2, 5, 1000], ids=["halves", "uneven", "some empty"])
def test_logits_in_chunks_change_nothing(samples: list[Example], chunks: int) -> None:
    whole, expected = gradients(samples, 1, replace(CONFIG, loss_chunks=1))
    chunked, found = gradients(samples, 1, replace(CONFIG, loss_chunks=chunks))
    assert chunked == pytest.approx(whole, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_stand_in_picture_is_not_counted(template: ChatTemplate) -> None:
    batch = batch_of(tiny_model(), [Example(template.say("hello", answer="hi"))])
    assert (len(batch.read), len(batch.drawn), batch.num_drawn, batch.num_samples) == (1, 1, 0, 1)
    assert batch.num_tokens == batch_of_tokens(template)


def batch_of_tokens(template: ChatTemplate) -> int:
    return len(template.encode("hi")) + 1  # and the end of the turn


def test_a_step_is_shared_out_without_gap_or_overlap() -> None:
    shares = [
        share_of(24, rank=rank, ranks=3, micro=micro, micros=2)
        for micro in range(2)
        for rank in range(3)
    ]
    assert [n for share in shares for n in share] == list(range(24))
    with pytest.raises(
        ValueError, match="24 samples of a step cannot be shared out evenly among 5"
    ):
        share_of(24, rank=0, ranks=5, micro=0, micros=1)


def test_operations_are_those_that_torch_counts(
    samples: list[Example], template: ChatTemplate
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model()
    model.train_only(["language", "queries", "projector", "generator"])
    drawing = samples[:1]
    work = work_of(
        drawing, latents=model.config.latents, num_queries=model.config.num_queries, copies=2
    )
    with FlopCounterMode(display=False) as counter:
        gradients(drawing, 1)
    # The stand-in row of a batch without pictures to read is work, too, that no plan counts.
    estimate = StepCost.of(model).flops(work)
    assert 0.6 * counter.get_total_flops() < estimate < counter.get_total_flops()


def test_memory_by_zero_stage_is_the_papers() -> None:
    """Rajbhandari et al. 2019: 16 bytes a parameter, of which 2, 2 and 12 are shared out."""
    model = tiny_model()
    model.train_only(["language", "queries", "projector", "generator"])
    sizes = part_sizes(model)
    count = sum(size.trained for size in sizes)

    def bytes_of(stage: int) -> float:
        return state_bytes(sizes, stage, ranks=4, itemsize=2, keeps_average=False)  # type: ignore[arg-type]

    assert sum(size.total for size in sizes) == count  # this latent space has no weights
    assert [bytes_of(stage) / count for stage in range(4)] == [16, 4 + 3, 2 + 3.5, 4]
