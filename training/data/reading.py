"""Batches of the reading stage: questions, descriptions and matching about true pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from unimm.chat import ChatTemplate, Segment
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.packing import Fork, fork_after_picture
from unimm.scenes import KINDS, Grammar, dense_caption, questions

from .scenes import (
    SceneSample,
    check_weights,
    match_case,
    render_samples,
    sample_scenes,
    step_rng,
)

STREAM = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingBatchConfig:
    """What a step of reading is made of.

    Args:
        num_pictures: Pictures that are asked about.
        num_questions: Questions about each, each answered without sight of the others.
        caption_share: Share of pictures that are also described fully.
        prompt_share: Share of pictures that are also described by their prompt, so that the
            prompt's likelihood means something.
        question_tries: How often a picture is tried for a question of each kind, 1 where
            nothing is said.
        matching_rows: Yes/no cases, near misses among them, each with a picture of its own.
        reading_length: Positions of a row of questions.
        matching_length: Positions of a matching row.
    """

    num_pictures: int = 24
    num_questions: int = 7
    caption_share: float = 0.7
    prompt_share: float = 0.3
    matching_rows: int = 64
    reading_length: int = 200
    matching_length: int = 52
    question_tries: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_weights("question_tries", self.question_tries, KINDS)
        for name in ("num_pictures", "num_questions", "matching_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ReadingBatch:
    """One step's data.

    Args:
        pictures: Those that are asked about, then those of the matching rows, uint8.
        reading: A row of questions and descriptions for each picture.
        matching: Yes/no rows.
    """

    pictures: Tensor
    reading: Layout
    matching: Layout


def reading_batch(
    step: int,
    *,
    seed: int,
    config: ReadingBatchConfig,
    grammar: Grammar,
    template: ChatTemplate,
    model: UniMM,
) -> ReadingBatch:
    """Return the batch of a step."""
    rng = step_rng(seed, STREAM, step)
    asked = sample_scenes(rng, grammar, config.num_pictures)
    matched = sample_scenes(rng, grammar, config.matching_rows)
    forks = [conversations(sample, template, rng, grammar, config) for sample in asked]
    cases = [match_case(sample, rng, grammar) for sample in matched]
    matching = [template.verify(case.text, answer=case.is_match) for case in cases]
    return ReadingBatch(
        pictures=render_samples([*asked, *matched]),
        reading=model.lay_out_packed(
            [[fork] for fork in forks], pad_id=template.pad_id, length=config.reading_length
        ),
        matching=model.lay_out(
            matching, pad_id=template.pad_id, length=config.matching_length, padding_side="right"
        ),
    )


class Talk(Protocol):
    """What is said about a picture; the configurations of several batches say it."""

    @property
    def num_questions(self) -> int: ...

    @property
    def caption_share(self) -> float: ...

    @property
    def prompt_share(self) -> float: ...

    @property
    def question_tries(self) -> Mapping[str, float]: ...


def conversations(
    sample: SceneSample,
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    talk: Talk,
) -> Fork:
    """Return questions and descriptions of one picture, blind to each other."""
    asked = questions(
        sample.scene, sample.prompt, rng, grammar, talk.num_questions, tries=talk.question_tries
    )
    turns: list[list[Segment]] = [template.ask(q.question, answer=q.answer) for q in asked]
    if rng.random() < talk.caption_share:
        turns.append(template.describe(answer=dense_caption(sample.scene, rng)))
    if rng.random() < talk.prompt_share:
        turns.append(template.describe(answer=sample.prompt.text))
    return fork_after_picture(turns)
