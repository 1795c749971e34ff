"""The miniature world as single conversations, for the unified stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unimm.chat import ChatTemplate, Segment
from unimm.scenes import Grammar, sample_prompt, sample_scene

from ..batch import Example, mixed_seed
from .chats import request
from .scenes import SceneSample, match_case, reading_conversation, render_samples
from .stream import Reading

STREAM = 6
_TEXT_ONLY = (("hello", "hello! what picture?"), ("thanks", "ok"))

Task = Literal["drawing", "reading", "matching", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneDataConfig:
    """What is drawn from the miniature world.

    Args:
        drawing: Relative share of pictures to draw.
        reading: Of pictures with questions.
        matching: Of pictures with a prompt, true or a near miss.
        text: Of talk without a picture.
        num_questions: About each picture.
        request_share: Share of prompts worded as a request in a chat.
    """

    drawing: float = 0.6
    reading: float = 0.2
    matching: float = 0.15
    text: float = 0.05
    num_questions: int = 2
    request_share: float = 0.15

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ValueError(f"shares must not be negative, and one positive, got {self.shares}")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of ``TASKS``."""
        return (self.drawing, self.reading, self.matching, self.text)


TASKS: tuple[Task, ...] = ("drawing", "reading", "matching", "text")


class SceneSource:
    """Samples of the miniature world by number."""

    def __init__(
        self, config: SceneDataConfig, grammar: Grammar, template: ChatTemplate, *, seed: int
    ) -> None:
        self.config, self.grammar, self.template, self.seed = config, grammar, template, seed

    fingerprint = "scenes"

    def read(self, numbers: Iterable[int]) -> Reading:
        """Return the conversations of some numbers; every one can be used."""
        return Reading([self.sample(number) for number in numbers])

    def sample(self, number: int) -> Example:
        """Return the conversation of a number."""
        rng = np.random.default_rng([self.seed, STREAM, number])
        shares = np.asarray(self.config.shares)
        task = TASKS[int(rng.choice(len(TASKS), p=shares / shares.sum()))]
        seed = mixed_seed(self.seed, STREAM, number)
        if task == "text":
            said, answer = _TEXT_ONLY[int(rng.integers(len(_TEXT_ONLY)))]
            return Example(self.template.say(said, answer=answer), seed=seed)
        prompt = sample_prompt(rng, self.grammar)
        scene = SceneSample(prompt, sample_scene(rng, self.grammar, prompt))
        picture = render_samples([scene])[0]
        segments = self._segments(task, scene, rng)
        if task == "drawing":
            return Example(segments, drawn=(picture,), seed=seed)
        # A verifier sees what was drawn from the prompt that the picture is true to.
        asked = (self.template.draw(prompt.text),) if task == "matching" else ()
        return Example(segments, read=(picture,), seed=seed, prompts=asked)

    def _segments(
        self, task: Task, scene: SceneSample, rng: np.random.Generator
    ) -> Sequence[Segment]:
        if task == "drawing":
            wording = request(scene.prompt, rng, self.config.request_share)
            return self.template.draw(wording, reply=scene.prompt.text)
        if task == "matching":
            case = match_case(scene, rng, self.grammar)
            return self.template.verify(case.text, answer=case.is_match)
        return reading_conversation(
            scene, self.template, rng, self.grammar, num_questions=self.config.num_questions
        )
