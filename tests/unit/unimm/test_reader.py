"""Writing text: greedy, sampled, stopped, in batches."""

import pytest
import torch

from unimm.chat import ImageSegment
from unimm.errors import UserError
from unimm.options import TextOptions
from unimm.reader import Reader, choose_tokens, split_at_image
from unimm.testing import tiny_pipeline


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny_pipeline().reader


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 16, 48, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_greedy_text_equals_the_argmax_without_a_cache(reader: Reader) -> None:
    sequence = reader.template.ask("what color is the circle")
    options = TextOptions(max_new_tokens=6)
    (written,) = reader.write(reader.read([sequence], images(1)), options, stop_ids=[-1])
    layout = reader.model.lay_out([sequence], pad_id=0)
    embeds = reader.model.embed(layout, images(1))
    for token in written:
        assert token == int(reader.model.lm.next_token_logprobs(embeds)[0].argmax())
        embeds = torch.cat([embeds, reader.model.lm.embed(torch.tensor([[token]]))], dim=1)
    assert len(written) == 6


@torch.no_grad()
def test_a_batch_of_two_writes_what_two_batches_of_one_write(reader: Reader) -> None:
    questions = ["what", "what color is the circle left of a square"]
    turns = [reader.template.ask(question) for question in questions]
    options = TextOptions(max_new_tokens=8)
    both = reader.write(reader.read(turns, images(2)), options)
    alone = [
        reader.write(reader.read([turn], picture[None]), options)[0]
        for turn, picture in zip(turns, images(2), strict=True)
    ]
    assert both == alone


@torch.no_grad()
def test_writing_stops_at_a_stop_token_and_leaves_it_out(reader: Reader) -> None:
    state = reader.read([reader.template.ask("what")], images(1))
    (free,) = reader.write(state, TextOptions(max_new_tokens=8), stop_ids=[-1])
    (stopped,) = reader.write(state, TextOptions(max_new_tokens=8), stop_ids=[free[0]])
    assert stopped == []
    (later,) = reader.write(state, TextOptions(max_new_tokens=8), stop_ids=[free[-1]])
    assert later == free[: free.index(free[-1])]


@torch.no_grad()
def test_writing_ends_with_the_context(reader: Reader) -> None:
    state = reader.read([reader.template.ask("what" + " circle" * 200)], images(1))
    (written,) = reader.write(state, TextOptions(max_new_tokens=10_000), stop_ids=[-1])
    assert len(written) == reader.model.lm.context_length - state.length


def test_temperature_draws_from_the_distribution() -> None:
    """4,000 draws: 4 standard errors of a share of 0.75 are 0.027."""
    logits = torch.tensor([0.75, 0.25]).log().expand(4000, 2)
    generator = torch.Generator().manual_seed(0)
    drawn = choose_tokens(logits, TextOptions(temperature=1.0), generator)
    assert (drawn == 0).float().mean().item() == pytest.approx(0.75, abs=0.027)


def test_top_p_leaves_out_the_tail() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(500, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = choose_tokens(logits, TextOptions(temperature=1.0, top_p=0.6), generator)
    assert set(drawn.tolist()) == {0, 1}


def test_the_same_seed_writes_the_same_text(reader: Reader) -> None:
    state = reader.read([reader.template.ask("what")], images(1))
    options = TextOptions(max_new_tokens=12, temperature=2.0, seed=3)
    assert reader.write(state, options) == reader.write(state, options)


def test_split_puts_the_picture_into_the_rest(reader: Reader) -> None:
    turn = reader.template.verify("a red circle")
    shared, rest = split_at_image(turn)
    assert shared + rest == turn
    assert isinstance(rest[0], ImageSegment)
    assert split_at_image(shared) == (shared, [])


def test_a_prompt_that_exceeds_the_context_is_refused_with_the_limit(reader: Reader) -> None:
    """The limit named in the message is exact."""
    long = " circle" * 400
    with pytest.raises(UserError, match=r"has 400 tokens; at most \d+ fit .* 256") as error:
        reader.check_prompt(long, reader.template.verify(long))
    limit = int(str(error.value).split("at most ")[1].split()[0])
    fits, too_long = " circle" * limit, " circle" * (limit + 1)
    reader.check_prompt(fits, reader.template.verify(fits))
    with pytest.raises(UserError):
        reader.check_prompt(too_long, reader.template.verify(too_long))
