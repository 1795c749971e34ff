"""Pictures, texts and conversations from the miniature world, as a pure function of the step."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isinf

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unimm.chat import ChatTemplate, Segment
from unimm.chat_style import ChatStyle
from unimm.scenes import (
    SKILLS,
    Grammar,
    Prompt,
    Scene,
    dense_caption,
    near_misses,
    questions,
    render_batch,
    sample_prompt,
    sample_scene,
)


@dataclass(frozen=True, slots=True)
class SceneSample:
    """A picture's content and the prompt that it was made for."""

    prompt: Prompt
    scene: Scene


def step_rng(seed: int, stream: int, step: int) -> np.random.Generator:
    """Return the randomness of one step; streams of the same seed do not overlap."""
    return np.random.default_rng([seed, stream, step])


def draw_prompt(
    rng: np.random.Generator, grammar: Grammar, skill_weights: Mapping[str, float] | None = None
) -> Prompt:
    """Return a training prompt: skills in equal shares, or by weight (1 where none is given)."""
    if not skill_weights:
        return sample_prompt(rng, grammar)
    weights = np.array([skill_weights.get(skill, 1.0) for skill in SKILLS])
    skill = SKILLS[int(rng.choice(len(SKILLS), p=weights / weights.sum()))]
    return sample_prompt(rng, grammar, skill=skill)


def sample_scenes(
    rng: np.random.Generator,
    grammar: Grammar,
    count: int,
    skill_weights: Mapping[str, float] | None = None,
) -> list[SceneSample]:
    """Return training samples, held-out combinations never; skills as ``draw_prompt`` has it."""
    prompts = [draw_prompt(rng, grammar, skill_weights) for _ in range(count)]
    return [SceneSample(prompt, sample_scene(rng, grammar, prompt)) for prompt in prompts]


def check_weights(name: str, weights: Mapping[str, float], known: Sequence[str]) -> None:
    """Refuse weights of what does not exist, negative ones, and none that is positive.

    Raises:
        ValueError: naming the entry.
    """
    for key, weight in weights.items():
        if key not in known:
            raise ValueError(f"{name} has no {key!r}; choose from {', '.join(known)}")
        if not weight >= 0:
            raise ValueError(f"{name}.{key} must not be negative, got {weight}")
        if isinf(weight):
            raise ValueError(f"{name}.{key} must be finite, got {weight}")
    if not any(weights.get(key, 1) for key in known):
        raise ValueError(f"{name} leaves nothing: one of {', '.join(known)} must be positive")


def render_samples(samples: Sequence[SceneSample]) -> UInt8[Tensor, "B 3 height width"]:
    """Return the samples' pictures."""
    pictures = render_batch([sample.scene for sample in samples])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def pixels_of(pictures: UInt8[Tensor, "B 3 height width"], dtype: torch.dtype) -> Tensor:
    """Return pictures as floats in [0, 1]."""
    return (pictures.float() / 255).to(dtype)


def reading_conversation(
    sample: SceneSample,
    template: ChatTemplate,
    rng: np.random.Generator,
    grammar: Grammar,
    *,
    num_questions: int,
) -> list[Segment]:
    """Return turns about one picture: a caption or a question first, then more questions."""
    asked = questions(sample.scene, sample.prompt, rng, grammar, num_questions)
    pairs = [(question.question, question.answer) for question in asked]
    if rng.random() < 0.5:
        turns = template.describe(answer=dense_caption(sample.scene, rng))
        pairs = pairs[1:]
    else:
        (question, answer), *pairs = pairs
        turns = template.ask(question, answer=answer)
    for question, answer in pairs:
        turns = template.say(question, answer=answer, after=turns)
    return turns


@dataclass(frozen=True, slots=True)
class MatchCase:
    """A prompt and whether it is true of a picture."""

    text: str
    is_match: bool


def match_case(
    sample: SceneSample, rng: np.random.Generator, grammar: Grammar, *, true_share: float = 0.5
) -> MatchCase:
    """Return the picture's own prompt or a near miss of it."""
    if rng.random() < true_share:
        return MatchCase(sample.prompt.text, True)
    wrong = near_misses(sample.prompt, sample.scene, rng, grammar)
    if not wrong:
        return MatchCase(sample.prompt.text, True)
    return MatchCase(wrong[int(rng.random() * len(wrong))].text, False)


def tokenizer_texts(grammar: Grammar, *, seed: int, count: int) -> Iterator[str]:
    """Return texts of every kind that a model of this world reads and writes."""
    rng = step_rng(seed, 99, 0)
    for sample in sample_scenes(rng, grammar, count):
        yield sample.prompt.text
        yield dense_caption(sample.scene, rng)
        for question in questions(sample.scene, sample.prompt, rng, grammar, 4):
            yield f"{question.question}\n"
            yield question.answer
        yield "user\nmatch?"
        yield "assistant\n"
        yield "\ndescribe"


def pad_token_ids(rows: Iterable[Sequence[int]], *, length: int, pad_id: int) -> torch.Tensor:
    """Return rows of tokens cut or padded on the right to one length, (B, length)."""
    table = [[*row[:length], *[pad_id] * (length - len(row))] for row in rows]
    return torch.tensor(table, dtype=torch.long)


class CachedTemplate(ChatTemplate):
    """A chat template that remembers the tokens of texts: the world's texts are few and recur."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, style: ChatStyle) -> None:
        self._tokens: dict[str, tuple[int, ...]] = {}
        super().__init__(tokenizer, style)

    def encode(self, text: str) -> tuple[int, ...]:
        tokens = self._tokens.get(text)
        if tokens is None:
            tokens = self._tokens[text] = super().encode(text)
        return tokens
