"""Conversations. The tiny model is random, so a script decides which tokens it writes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from unimm.chat import ImageSegment, QuerySegment, Segment, TextSegment
from unimm.errors import UserError
from unimm.generation import Generation
from unimm.options import GenerationOptions, TextOptions
from unimm.pipeline import Pipeline
from unimm.session import (
    MAX_PICTURES,
    ChatSession,
    PictureFinished,
    PictureStarted,
    TextDelta,
)
from unimm.testing import tiny_pipeline

DRAW = "<im_start>"
END = "<|im_end|>"
Script = Callable[..., None]


@pytest.fixture
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def script(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Return a function that decides what the model writes next, as text and special tokens."""
    template = pipeline.reader.template
    special = {DRAW: template.image_start_id, END: template.turn_end_id}
    planned: list[int] = []

    def plan(*pieces: str) -> None:
        for piece in pieces:
            planned.extend([special[piece]] if piece in special else template.encode(piece))

    def choose(logits: Tensor, *args: Any) -> Tensor:
        return torch.tensor([planned.pop(0)])

    monkeypatch.setattr("unimm.session.choose_tokens", choose)
    return plan


@pytest.fixture
def read_lengths(pipeline: Pipeline) -> list[int]:
    """Return a list that grows by the number of positions of every forward call."""
    lengths: list[int] = []

    def note(module: object, args: object, kwargs: dict[str, Any]) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1])

    base: Any = pipeline.model.language.base_model
    base.register_forward_pre_hook(note, with_kwargs=True)
    return lengths


def whole_conversation(
    pipeline: Pipeline, segments: list[Segment], images: Tensor | None
) -> Tensor:
    layout = pipeline.model.lay_out([segments], pad_id=pipeline.reader.template.pad_id)
    with torch.no_grad():
        hidden: Tensor = pipeline.model(layout, images)
    return hidden[0]


def test_the_model_draws_goes_on_and_ends(pipeline: Pipeline, script: Script) -> None:
    script("a", " picture", DRAW, " of", " red", END)
    reply = pipeline.chat().send("a red circle")
    assert reply.text == "a picture of red"
    (generation,) = reply.generations
    assert reply.images == (generation.image,)
    assert generation.prompt == "a red circle"
    assert generation.latents.shape == (16, 48)


def test_events_come_in_order(pipeline: Pipeline, script: Script) -> None:
    script("a", DRAW, " red", DRAW, END)
    kinds = [type(event) for event in pipeline.chat().stream("two circles")]
    picture = [PictureStarted, PictureFinished]
    assert kinds == [TextDelta, *picture, TextDelta, *picture]


def test_a_drawing_in_chat_equals_one_by_generate(pipeline: Pipeline, script: Script) -> None:
    """The same sequence and the same seeds, read in two pieces instead of one."""
    options = GenerationOptions(best_of=2, seed=5)
    script(DRAW, END)
    (drawn,) = pipeline.chat(options).send("a red circle").generations
    (expected,) = pipeline.generate("a red circle", options)
    torch.testing.assert_close(drawn.latents, expected.latents, rtol=1e-4, atol=1e-4)
    assert [c.seed for c in drawn.candidates] == [c.seed for c in expected.candidates]


def test_candidates_are_judged_by_the_prompt_as_the_model_words_it(
    pipeline: Pipeline, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = pipeline.reader.template
    template.style = replace(template.style, restates=True)
    restated = [*template.encode("a picture of red"), template.turn_end_id]
    monkeypatch.setattr("unimm.reader.choose_tokens", lambda *args: torch.tensor([restated.pop(0)]))
    script(DRAW, "a picture of red", END)
    reply = pipeline.chat(GenerationOptions(best_of=3)).send("red, please")
    (generation,) = reply.generations
    assert generation.prompt == reply.text == "a picture of red"
    scores = pipeline.verify(
        "a picture of red", torch.stack([c.latents for c in generation.candidates])
    )
    assert [c.score for c in generation.candidates] == pytest.approx(scores, abs=1e-4)


def test_a_model_that_says_nothing_after_a_picture_is_judged_by_what_was_asked(
    pipeline: Pipeline, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = pipeline.reader.template
    template.style = replace(template.style, restates=True)
    monkeypatch.setattr(
        "unimm.reader.choose_tokens", lambda *args: torch.tensor([template.turn_end_id])
    )
    script(DRAW, END)
    (generation,) = pipeline.chat().send("a red circle").generations
    assert generation.prompt == "a red circle"


@pytest.mark.parametrize("request_text", ["draw a blue square", "please draw me a blue square"])
def test_the_shipped_model_words_a_request_as_its_prompts_are_worded(request_text: str) -> None:
    session = Pipeline.from_pretrained().chat(GenerationOptions(num_steps=1))
    (generation,) = session.send(request_text).generations
    assert generation.prompt == "a picture of a blue square"


def test_the_cache_holds_what_reading_everything_at_once_gives(
    pipeline: Pipeline, script: Script
) -> None:
    """Two turns with a drawing, cached, equal one uncached pass over the whole conversation."""
    template = pipeline.reader.template
    session = pipeline.chat()
    script(DRAW, " red", END, "yes", END)
    (picture,) = session.send("a red circle").generations
    session.send("what color")
    segments = template.draw("a red circle", reply=" red")
    segments = template.say("what color", num_images=1, after=segments)
    segments.append(TextSegment(template.encode("yes")))
    expected = whole_conversation(pipeline, segments, picture.latents[None])
    state: Any = session._state
    assert session.length == len(expected)
    torch.testing.assert_close(state.last[0], expected[-1], rtol=1e-4, atol=1e-4)


def test_each_turn_is_read_once(
    pipeline: Pipeline, script: Script, read_lengths: list[int]
) -> None:
    session = pipeline.chat()
    script("a", END, " red", END)
    session.send("what is red")
    assert sum(read_lengths) == session.length
    session.send("why")
    assert sum(read_lengths) == session.length
    assert session.length > 2 * len(pipeline.reader.template.encode("what is red"))


def test_the_next_turn_sees_the_models_own_picture(pipeline: Pipeline, script: Script) -> None:
    """Latents reach the cache, and other latents give another cache; nothing is decoded for it."""
    caches = []
    decoded: list[int] = []
    decode = pipeline.model.latents.decode

    def counted(latents: Tensor) -> Any:
        decoded.append(len(latents))
        return decode(latents)

    pipeline.model.latents.decode = counted
    for brightness in (0.0, 1.0):
        session = pipeline.chat()
        script(DRAW, END, END)
        (generation,) = session.send("a red circle").generations
        seen: Any = session._pictures[0]
        assert torch.equal(seen, generation.latents)
        session._pictures[0] = seen + brightness
        before = session.length
        session.send("what color")
        assert session.length - before > pipeline.model.config.latents.num_tokens
        state: Any = session._state
        caches.append(state.cache.layers[1].keys[:, :, before:])
    assert not torch.allclose(caches[0], caches[1])
    assert decoded == [1, 1]


def test_a_picture_is_seen_in_one_turn_only(
    pipeline: Pipeline, script: Script, read_lengths: list[int]
) -> None:
    session = pipeline.chat()
    script(DRAW, END, END, END)
    session.send("a red circle")
    del read_lengths[:]
    session.send("why")
    session.send("why")
    num_tokens = pipeline.model.config.latents.num_tokens
    # The picture between its two markers and a line end that only a turn with a picture has.
    assert read_lengths[0] - read_lengths[1] == num_tokens + 3


def test_images_and_latents_can_be_shown(pipeline: Pipeline, script: Script) -> None:
    (generation,) = pipeline.generate("a red circle")
    lengths = []
    for pictures in ((), (generation.image,), (generation.image, generation.latents)):
        session = pipeline.chat()
        script(END)
        session.send("which", pictures)
        lengths.append(session.length)
    assert lengths[0] < lengths[1] < lengths[2]


def test_every_picture_of_a_conversation_has_its_own_noise(
    pipeline: Pipeline, script: Script
) -> None:
    session = pipeline.chat()
    script(DRAW, END, DRAW, END)
    drawn: list[Generation] = [
        *session.send("a red circle").generations,
        *session.send("a red circle").generations,
    ]
    assert drawn[0].candidates[0].seed != drawn[1].candidates[0].seed


def test_an_abandoned_turn_leaves_the_conversation_as_it_was(
    pipeline: Pipeline, script: Script
) -> None:
    session = pipeline.chat()
    script("a", END)
    session.send("what")
    length = session.length
    script("a")
    events = session.stream("why")
    assert isinstance(next(events), TextDelta)
    del events
    assert (session.length, session.num_turns) == (length, 1)


def test_stopping_a_drawing_leaves_the_conversation_as_it_was(
    pipeline: Pipeline, script: Script
) -> None:
    session = pipeline.chat()
    script(DRAW)

    def stop(count: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        session.send("a red circle", on_step=stop)
    assert (session.length, session.num_drawn, session.num_turns) == (0, 0, 0)


def test_no_more_pictures_than_the_limit(pipeline: Pipeline, script: Script) -> None:
    script(*[DRAW] * (MAX_PICTURES + 1))
    session = pipeline.chat()
    assert len(session.send("a red circle").generations) == MAX_PICTURES


def test_a_full_context_says_so(pipeline: Pipeline, script: Script) -> None:
    session = pipeline.chat()
    with pytest.raises(UserError, match="the model's context has 256; start a new conversation"):
        session.send("circle " * 300)
    script(*[DRAW] * 3, END)
    with pytest.raises(UserError, match="the model's context has 256"):
        session.send("circle " * 200)
    assert session.length == 0


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_message_must_not_be_empty(pipeline: Pipeline, text: Any) -> None:
    with pytest.raises(UserError, match="the message is empty"):
        pipeline.chat().send(text)


def test_a_message_must_be_text(pipeline: Pipeline) -> None:
    """Or the shape check, where it is on, says so first."""
    bad: Any = 3
    with pytest.raises((UserError, TypeCheckError), match="int"):
        pipeline.chat().send(bad)


def test_reset_forgets(pipeline: Pipeline, script: Script) -> None:
    session = pipeline.chat()
    script(DRAW, END)
    session.send("a red circle")
    session.reset()
    assert (session.length, session.num_drawn, session._pictures) == (0, 0, [])


def test_unscripted_text_is_greedy_and_repeats(pipeline: Pipeline) -> None:
    options = TextOptions(max_new_tokens=5)
    replies = [pipeline.chat(text_options=options).send("what").text for _ in range(2)]
    assert replies[0] == replies[1]


def test_characters_of_several_tokens_come_whole(pipeline: Pipeline, script: Script) -> None:
    script("日本 é", END)
    deltas = [e.text for e in pipeline.chat().stream("what") if isinstance(e, TextDelta)]
    assert "".join(deltas) == "日本 é"
    assert all("\N{REPLACEMENT CHARACTER}" not in delta for delta in deltas)


def test_a_question_is_laid_out_as_in_training(pipeline: Pipeline) -> None:
    """What the session reads for text and picture is the template's own turn."""
    template = pipeline.reader.template
    assert template.say("what", num_images=1) == template.ask("what")
    kinds = [type(segment) for segment in template.draw("what")]
    assert kinds.count(QuerySegment) == 1
    assert ImageSegment not in kinds
    assert isinstance(pipeline.chat(), ChatSession)
