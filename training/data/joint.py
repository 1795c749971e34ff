"""Batches of the joint stage: drawing, reading and matching, as a pure function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unimm.chat import ChatTemplate, Segment
from unimm.layout import Layout, sequence_length
from unimm.model import UniMM
from unimm.packing import Fork
from unimm.scenes import KINDS, SKILLS, Grammar, sample_scene

from .blending import BlendRows, blend_rows, check_blends, draw_blends
from .chats import request, sample_chat
from .reading import conversations
from .scenes import (
    SceneSample,
    check_weights,
    draw_prompt,
    match_case,
    render_samples,
    sample_scenes,
    step_rng,
)

STREAM = 3
_COUNTS = (
    "pictures_per_prompt",
    "reading_rows",
    "pictures_per_row",
    "chat_rows",
    "pictures_per_chat",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class JointBatchConfig:
    """What a step of joint training is made of.

    Args:
        num_prompts: Prompts that the language model reads with queries after them.
        pictures_per_prompt: Different pictures that the DiT learns to draw for each of them, so
            that one pass of the language model serves several of the DiT.
        num_blends: How many of these prompts, the last ones, lie between two that differ in colours
            alone: the generator is conditioned on states between theirs, and their pictures have
            colours between. No matching row is about them.
        matching_rows: Yes/no cases about true pictures, near misses among them.
        reading_rows: Rows of descriptions of true pictures and questions about them.
        pictures_per_row: Pictures of such a row, each read without sight of the others.
        num_questions: Questions about each picture.
        caption_share: Share of these pictures that are also described fully.
        prompt_share: Share that are also described by their prompt.
        chat_rows: Chats in which pictures are asked for and talked about by turns.
        pictures_per_chat: Pictures that each of them draws.
        drawing_length: Positions of a drawing row, padded to one shape.
        matching_length: Positions of a matching row.
        reading_length: Positions of a row of questions.
        chat_length: Positions of a chat.
        request_share: Share of prompts worded as a request in a chat, such as "draw a ...".
        skill_weights: Weights of the prompts' skills, 1 where nothing is said.
        question_tries: How often a picture is tried for a question of each kind, 1 where
            nothing is said.
    """

    num_prompts: int = 32
    pictures_per_prompt: int = 8
    num_blends: int = 0
    matching_rows: int = 16
    reading_rows: int = 8
    pictures_per_row: int = 2
    num_questions: int = 2
    caption_share: float = 1.0
    prompt_share: float = 0.25
    chat_rows: int = 2
    pictures_per_chat: int = 3
    drawing_length: int = 66
    matching_length: int = 52
    reading_length: int = 240
    chat_length: int = 320
    request_share: float = 0.15
    skill_weights: dict[str, float] = field(default_factory=dict)
    question_tries: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_weights("skill_weights", self.skill_weights, SKILLS)
        check_weights("question_tries", self.question_tries, KINDS)
        if not 0 < self.matching_rows <= self.num_prompts:
            raise ValueError(
                f"matching_rows must be from 1 to num_prompts ({self.num_prompts}), "
                f"got {self.matching_rows}"
            )
        check_blends(self.num_blends, self.num_prompts - self.matching_rows, self.skill_weights)
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_pictures(self) -> tuple[int, int, int]:
        """Pictures of the drawing rows, of the reading rows and of the chats."""
        return (
            self.num_prompts * self.pictures_per_prompt,
            self.reading_rows * self.pictures_per_row,
            self.chat_rows * self.pictures_per_chat,
        )


@dataclass(frozen=True, slots=True)
class JointBatch:
    """One step's data.

    Args:
        pictures: Pictures to draw, those of a prompt side by side, then the pictures of the
            reading rows and of the chats, uint8 (P*K + R + C, 3, S, S).
        drawing: Rows of prompts with queries.
        matching: Yes/no rows; a row's picture is the first one of the prompt with its number.
        reading: Packed rows of questions.
        chats: A chat a row, which draws its pictures and sees each in the turn after it.
        requests: A row for each picture of the chats: its prompt alone, with queries.
        blends: Where the last rows of ``drawing`` are moved to; None without blends.
    """

    pictures: Tensor
    drawing: Layout
    matching: Layout
    reading: Layout
    chats: Layout
    requests: Layout
    blends: BlendRows | None


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
    num_plain = config.num_prompts - config.num_blends
    prompts = [draw_prompt(rng, grammar, config.skill_weights) for _ in range(num_plain)]
    drawn = [
        SceneSample(prompt, sample_scene(rng, grammar, prompt))
        for prompt in prompts
        for _ in range(config.pictures_per_prompt)
    ]
    drawing = [template.draw(request(p, rng, config.request_share), reply=p.text) for p in prompts]
    blends = draw_blends(
        config.num_blends,
        rng,
        grammar,
        skill_weights=config.skill_weights,
        pictures=config.pictures_per_prompt,
    )
    drawn += [SceneSample(blend.prompt, scene) for blend in blends for scene in blend.scenes]
    drawing += [template.draw(blend.prompt.text) for blend in blends]
    others = [template.draw(blend.other.text) for blend in blends]
    firsts = drawn[:: config.pictures_per_prompt][: config.matching_rows]
    cases = [match_case(sample, rng, grammar) for sample in firsts]
    _, num_read, num_chatted = config.num_pictures
    read = sample_scenes(rng, grammar, num_read, config.skill_weights)
    reading = _reading_rows(read, template, rng, grammar, config)
    chatted = sample_scenes(rng, grammar, num_chatted, config.skill_weights)
    chats = _chats(chatted, template, rng, grammar, config=config, model=model)
    lay_out = partial(model.lay_out, pad_id=template.pad_id, padding_side="right")
    return JointBatch(
        pictures=render_samples([*drawn, *read, *chatted]),
        drawing=lay_out(drawing, length=config.drawing_length),
        matching=matching_layout(
            [(case.text, case.is_match) for case in cases],
            template=template,
            model=model,
            length=config.matching_length,
        ),
        reading=model.lay_out_packed(reading, pad_id=template.pad_id, length=config.reading_length),
        chats=lay_out(chats, length=config.chat_length),
        requests=lay_out(
            [template.draw(sample.prompt.text) for sample in chatted],
            length=config.drawing_length,
        ),
        blends=blend_rows(lay_out(others, length=config.drawing_length), blends)
        if blends
        else None,
    )


def _reading_rows(
    samples: Sequence[SceneSample],
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    config: JointBatchConfig,
) -> list[list[Fork]]:
    forks = [conversations(sample, template, rng, grammar, config) for sample in samples]
    each = config.pictures_per_row
    return [forks[start : start + each] for start in range(0, len(forks), each)]


def _chats(
    samples: Sequence[SceneSample],
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    *,
    config: JointBatchConfig,
    model: UniMM,
) -> list[list[Segment]]:
    def fits(chat: list[Segment]) -> bool:
        sizes = model.config.seen.num_tokens, model.config.num_queries
        length = sequence_length(chat, num_image_tokens=sizes[0], num_queries=sizes[1])
        return length <= config.chat_length

    each = config.pictures_per_chat
    return [
        sample_chat(samples[start : start + each], template, rng, grammar, fits=fits)
        for start in range(0, len(samples), each)
    ]


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
