"""Batches of the joint stage: drawing, reading and matching, as a pure function of the step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unimm.chat import ChatTemplate, Segment
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.scenes import Grammar, Prompt, dense_caption, questions, sample_prompt, sample_scene

from .scenes import (
    SceneSample,
    match_case,
    reading_conversation,
    render_samples,
    sample_scenes,
    step_rng,
)

STREAM = 3
_REQUESTS = ("draw {}", "draw {}", "show me {}")
_SMALL_TALK = (
    ("hello", "hello! what picture?"),
    ("hi", "hello! what picture?"),
    ("what can you do?", "a picture of circles and squares"),
    ("thanks", "ok"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JointBatchConfig:
    """What a step of joint training is made of.

    Args:
        num_prompts: Prompts that the language model reads with queries after them.
        pictures_per_prompt: Different pictures that the DiT learns to draw for each of them, so
            that one pass of the language model serves several of the DiT.
        reading_rows: Conversations about true pictures.
        matching_rows: Yes/no cases about true pictures, near misses among them.
        reading_length: Positions of a conversation, padded to one shape.
        drawing_length: Positions of a drawing or matching row.
        num_questions: Turns of a conversation.
        request_share: Share of prompts worded as a request in a chat, such as "draw a ...".
        chat_share: Share of reading rows that ask about a picture drawn in the turn before.
    """

    num_prompts: int = 32
    pictures_per_prompt: int = 8
    reading_rows: int = 8
    matching_rows: int = 16
    reading_length: int = 120
    drawing_length: int = 58
    num_questions: int = 3
    request_share: float = 0.15
    chat_share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.matching_rows <= self.num_prompts:
            raise ValueError(
                f"matching_rows must be from 1 to num_prompts ({self.num_prompts}), "
                f"got {self.matching_rows}"
            )
        if self.reading_rows < 1 or self.pictures_per_prompt < 1:
            raise ValueError(
                f"reading_rows ({self.reading_rows}) and pictures_per_prompt "
                f"({self.pictures_per_prompt}) must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class JointBatch:
    """One step's data.

    Args:
        pictures: Pictures to draw, those of a prompt side by side, then the pictures of the
            reading rows, uint8 (P*K + R, 3, S, S).
        drawing: Rows of prompts with queries, then the matching rows; a matching row's picture is
            the first one of the prompt with the same number.
        reading: Conversations.
    """

    pictures: Tensor
    drawing: Layout
    reading: Layout


def joint_batch(
    step: int,
    *,
    seed: int,
    config: JointBatchConfig,
    grammar: Grammar,
    template: ChatTemplate,
    model: UniMM,
) -> JointBatch:
    """Return the batch of a step."""
    rng = step_rng(seed, STREAM, step)
    prompts = [sample_prompt(rng, grammar) for _ in range(config.num_prompts)]
    drawn = [
        SceneSample(prompt, sample_scene(rng, grammar, prompt))
        for prompt in prompts
        for _ in range(config.pictures_per_prompt)
    ]
    drawing = [template.draw(request(p, rng, config.request_share), reply=p.text) for p in prompts]
    firsts = drawn[:: config.pictures_per_prompt][: config.matching_rows]
    cases = [match_case(sample, rng, grammar) for sample in firsts]
    matching = [template.verify(case.text, answer=case.is_match) for case in cases]
    read = sample_scenes(rng, grammar, config.reading_rows)
    reading = [_reading_row(sample, template, rng, grammar, config) for sample in read]
    return JointBatch(
        pictures=render_samples([*drawn, *read]),
        drawing=model.lay_out(
            [*drawing, *matching],
            pad_id=template.pad_id,
            length=config.drawing_length,
            padding_side="right",
        ),
        reading=model.lay_out(
            reading, pad_id=template.pad_id, length=config.reading_length, padding_side="right"
        ),
    )


def request(prompt: Prompt, rng: np.random.Generator, share: float) -> str:
    """Return the prompt, or in a share of cases what a person would say in a chat."""
    if rng.random() >= share:
        return prompt.text
    form = _REQUESTS[int(rng.random() * len(_REQUESTS))]
    text = prompt.text if rng.random() < 0.3 else prompt.text.removeprefix("a picture of ")
    return form.format(text)


def _reading_row(
    sample: SceneSample,
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    config: JointBatchConfig,
) -> list[Segment]:
    draw = rng.random()
    if draw < config.chat_share:
        return _chat_row(sample, template, rng, grammar, config)
    if draw < config.chat_share + 0.15:
        # The prompt as a description, so that its likelihood means something.
        return template.describe(answer=sample.prompt.text)
    return reading_conversation(sample, template, rng, grammar, num_questions=config.num_questions)


def _chat_row(
    sample: SceneSample,
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    config: JointBatchConfig,
) -> list[Segment]:
    """Return a chat: perhaps a greeting, a request, and a question about what was drawn."""
    turns: list[Segment] = []
    describes = rng.random() < 0.3
    if not describes and rng.random() < 0.3:
        said, answer = _SMALL_TALK[int(rng.random() * len(_SMALL_TALK))]
        turns = template.say(said, answer=answer)
    text = request(sample.prompt, rng, 0.5)
    turns = template.draw(text, reply=sample.prompt.text, after=turns)
    if describes:
        return template.ask("describe", answer=dense_caption(sample.scene, rng), after=turns)
    (asked,) = questions(sample.scene, sample.prompt, rng, grammar, 1)
    return template.ask(asked.question, answer=asked.answer, after=turns)


def matching_layout(
    cases: list[tuple[str, bool]], *, template: ChatTemplate, model: UniMM, length: int
) -> Layout:
    """Return yes/no rows for prompts and verdicts."""
    rows = [template.verify(text, answer=is_match) for text, is_match in cases]
    return model.lay_out(rows, pad_id=template.pad_id, length=length, padding_side="right")


def first_pictures(latents: Tensor, config: JointBatchConfig) -> Tensor:
    """Return the latents that the matching rows read, (matching_rows, N, D)."""
    drawn = latents[: config.num_prompts * config.pictures_per_prompt]
    return drawn[:: config.pictures_per_prompt][: config.matching_rows]


def tile_states(states: Tensor, copies: int) -> Tensor:
    """Repeat each prompt's query states for its pictures, (P, Q, H) -> (P*K, Q, H)."""
    return torch.repeat_interleave(states, copies, dim=0)
