"""What the stages learn from: reproducible, fitting, true, and never what is held out."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import training.data.joint
import training.data.reading
import training.stages.vision
from training.data.chats import REQUESTS
from training.data.joint import JointBatchConfig, joint_batch, tile_states
from training.data.reading import ReadingBatchConfig, reading_batch
from training.data.scenes import (
    SceneSample,
    draw_prompt,
    match_case,
    pad_token_ids,
    sample_scenes,
    step_rng,
)
from training.stages.vision import VisionStage
from unimm.chat import Segment
from unimm.layout import Layout, sequence_length
from unimm.scenes import (
    NUMBERS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Grammar,
    Prompt,
    Scene,
    judge,
    load_prompts,
    parse_prompt,
    prompts,
)
from unimm.scenes.heldout import HELD_ARRANGEMENTS, HELD_COUNTS, HELD_PAIRS, HELD_TRIPLES
from unimm.scenes.spec import SKILLS, plural
from unimm.scenes.world import COLOURS, SIZES, relation_between
from unimm.tokenizer import decode_text

GRAMMARS = pytest.mark.parametrize(
    "grammar", [Grammar.small(), Grammar.full()], ids=["small", "full"]
)
SMALL_BATCH = JointBatchConfig(
    num_prompts=8,
    pictures_per_prompt=2,
    reading_rows=8,
    matching_rows=8,
    reading_length=400,
    chat_rows=8,
    drawing_length=200,
    matching_length=200,
    chat_length=700,
)
SMALL_READING = ReadingBatchConfig(
    num_pictures=8, matching_rows=8, reading_length=600, matching_length=200
)
NUM_BATCHES = 60

Batch = Any
MakeBatch = Callable[[int], Batch]


def vision_batches(stage: VisionStage) -> MakeBatch:
    return stage.batch


def joint_batches(
    stage: VisionStage, *, grammar: Grammar | None = None, config: JointBatchConfig = SMALL_BATCH
) -> MakeBatch:
    return lambda step: joint_batch(
        step,
        seed=0,
        config=config,
        grammar=grammar or stage.grammar,
        template=stage.template,
        model=stage.unimm,
    )


def reading_batches(
    stage: VisionStage,
    *,
    grammar: Grammar | None = None,
    config: ReadingBatchConfig = SMALL_READING,
) -> MakeBatch:
    return lambda step: reading_batch(
        step,
        seed=0,
        config=config,
        grammar=grammar or stage.grammar,
        template=stage.template,
        model=stage.unimm,
    )


def tensors_of(batch: object) -> Iterator[Tensor]:
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield value
        elif value is not None:
            yield from tensors_of(value)


@pytest.mark.parametrize("source", [vision_batches, reading_batches, joint_batches])
def test_a_batch_is_a_function_of_its_step_alone(
    source: Callable[[VisionStage], MakeBatch], vision_stage: VisionStage
) -> None:
    make = source(vision_stage)
    forward = [list(tensors_of(make(step))) for step in (0, 1, 7)]
    backward = [list(tensors_of(make(step))) for step in (7, 1, 0)][::-1]
    for once, again in zip(forward, backward, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(forward[0][0], forward[1][0])


def test_streams_and_seeds_do_not_overlap() -> None:
    keys = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (0, 1, 3)]
    draws = {step_rng(*key).random() for key in keys}
    assert len(draws) == len(keys)


# Held-out words, found by reading: not with the functions that keep them out.

_TEXTURE = f"(?:(?:{'|'.join(TEXTURES)}) )?"
_SIZE = f"(?:(?:{'|'.join(SIZES)}) )?"
_COLOUR = f"(?:(?:{'|'.join(COLOURS)}) )?"


def _either(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_HELD_WORDS = _either(
    [rf"\b{c} {_TEXTURE}(?:{s}|{plural(s)})\b" for c, s in sorted(HELD_PAIRS)]
    + [rf"\b{NUMBERS[n]} {_COLOUR}{plural(s)}\b" for n, s in sorted(HELD_COUNTS)]
    + [rf"\bfive {_COLOUR}(?:{'|'.join(map(plural, SHAPES))})\b"]
    + [
        rf"\b{a} {relation} (?:the|an?) {_SIZE}{_COLOUR}{_TEXTURE}{b}\b"
        for a, relation, b in sorted(HELD_TRIPLES)
    ]
    + [
        rf"what is {relation} the {b}\?\s+assistant\s+{a}\b"
        for a, relation, b in sorted(HELD_TRIPLES)
    ]
)


def held_out_words(text: str) -> str | None:
    """Return the held-out combination that a text words, if any."""
    found = _HELD_WORDS.search(text)
    return found and found[0]


def held_out_content(prompt: Prompt, scene: Scene) -> str | None:
    """Return what of a training picture is held out, if anything."""
    objects = scene.objects
    if pairs := [(o.colour, o.shape) for o in objects if (o.colour, o.shape) in HELD_PAIRS]:
        return f"a {pairs[0]}"
    counts = Counter(o.shape for o in objects)
    if len(objects) == 5 or any((n, shape) in HELD_COUNTS for shape, n in counts.items()):
        return str(counts)
    if len(objects) == 2 and prompt.skill != "counting":
        first, second = objects
        relation = relation_between((first.x, first.y), (second.x, second.y))
        triple = (first.shape, relation, second.shape)
        forbidden = HELD_TRIPLES if prompt.spec.relation else HELD_ARRANGEMENTS
        return str(triple) if triple in forbidden else None
    return None


@pytest.mark.parametrize("split", ["pair", "count", "count_five", "relation"])
def test_the_reader_of_held_out_words_finds_them(split: str) -> None:
    for prompt in load_prompts("full", split):
        assert held_out_words(prompt.text), prompt.text
    assert held_out_words("a large red circle at the top on a mint background")
    assert not held_out_words("a picture of a red square left of a blue circle")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[SceneSample]:
    """Return the samples whose pictures the batches hold; drawing them is left out."""
    collected: list[SceneSample] = []

    def collect(samples: Sequence[SceneSample]) -> Tensor:
        collected.extend(samples)
        return torch.zeros(len(samples), 3, 64, 64, dtype=torch.uint8)

    monkeypatch.setattr(training.stages.vision, "render_samples", collect)
    monkeypatch.setattr(training.data.reading, "render_samples", collect)
    monkeypatch.setattr(training.data.joint, "render_samples", collect)
    return collected


def texts_of(stage: VisionStage, layout: Layout) -> list[str]:
    return [decode_text(stage.tokenizer, row) for row in layout.token_ids.tolist()]


@GRAMMARS
@pytest.mark.parametrize(
    ("source", "layouts", "pictures"),
    [
        (joint_batches, ("drawing", "matching", "reading", "chats", "requests"), 56),
        (reading_batches, ("matching", "reading"), 16),
    ],
)
def test_training_never_words_or_shows_what_is_held_out(
    vision_stage: VisionStage,
    grammar: Grammar,
    shown: list[SceneSample],
    *,
    source: Callable[..., MakeBatch],
    layouts: Sequence[str],
    pictures: int,
) -> None:
    make = source(vision_stage, grammar=grammar)
    for step in range(NUM_BATCHES):
        batch = make(step)
        for name in layouts:
            for text in texts_of(vision_stage, getattr(batch, name)):
                assert held_out_words(text) is None, text
    assert len(shown) == NUM_BATCHES * pictures
    for sample in shown:
        assert held_out_content(sample.prompt, sample.scene) is None, sample


def test_vision_training_never_words_or_shows_what_is_held_out(
    vision_stage: VisionStage, shown: list[SceneSample]
) -> None:
    for step in range(NUM_BATCHES):
        batch = vision_stage.batch(step)
        captions = [decode_text(vision_stage.tokenizer, row) for row in batch.caption_ids.tolist()]
        assert len(captions) == len(batch.pictures)
        for text in (*texts_of(vision_stage, batch.reading), *captions):
            assert held_out_words(text) is None, text
    for sample in shown:
        assert held_out_content(sample.prompt, sample.scene) is None, sample


# Lengths.


def longest_row(stage: VisionStage, rows: Callable[[str], Sequence[Sequence[Segment]]]) -> int:
    """Return the positions of the longest row of any prompt."""
    return max(
        sequence_length(
            row,
            num_image_tokens=stage.unimm.config.latents.num_tokens,
            num_queries=stage.unimm.config.num_queries,
        )
        for skill in SKILLS
        for prompt in prompts(stage.grammar, skill)
        for row in rows(prompt.text)
    )


def test_every_drawing_and_matching_row_fits(vision_stage: VisionStage) -> None:
    template, config = vision_stage.template, JointBatchConfig()
    drawing = longest_row(
        vision_stage,
        lambda text: [template.draw(form.format(text), reply=text) for form in REQUESTS],
    )
    assert config.drawing_length - 8 < drawing <= config.drawing_length
    matching = longest_row(vision_stage, lambda text: [template.verify(text, answer=False)])
    assert config.matching_length - 12 < matching <= config.matching_length
    assert ReadingBatchConfig().matching_length == config.matching_length


@pytest.mark.parametrize(
    ("source", "config"),
    [
        (joint_batches, JointBatchConfig(num_prompts=1, matching_rows=1, reading_rows=24)),
        (reading_batches, ReadingBatchConfig(matching_rows=1)),
    ],
)
def test_sampled_conversations_fit(
    vision_stage: VisionStage,
    shown: list[SceneSample],
    source: Callable[..., MakeBatch],
    config: Any,
) -> None:
    make = source(vision_stage, config=config)
    used = max(int(make(step).reading.mask.sum(dim=1).max()) for step in range(12))
    assert config.reading_length * 0.8 < used <= config.reading_length


def test_chats_fit(vision_stage: VisionStage, shown: list[SceneSample]) -> None:
    config = JointBatchConfig(num_prompts=1, matching_rows=1, chat_rows=24)
    make = joint_batches(vision_stage, config=config)
    used = max(int(make(step).chats.mask.sum(dim=1).max()) for step in range(12))
    assert config.chat_length * 0.9 < used <= config.chat_length


# Truth.


@GRAMMARS
def test_match_cases_are_labelled_by_the_judge(grammar: Grammar) -> None:
    rng = np.random.default_rng(0)
    labels = Counter[bool]()
    for sample in sample_scenes(rng, grammar, 400):
        case = match_case(sample, rng, grammar)
        verdict = judge(parse_prompt(case.text, grammar), sample.scene.objects)
        assert verdict.correct == case.is_match, (case, sample)
        labels[case.is_match] += 1
    assert abs(labels[True] - labels[False]) <= 4 * 400**0.5  # four standard errors of a coin


def test_a_matching_row_reads_the_first_picture_of_its_prompt(
    vision_stage: VisionStage, shown: list[SceneSample]
) -> None:
    batch = joint_batches(vision_stage)(0)
    rows = texts_of(vision_stage, batch.matching)
    firsts = shown[: 2 * SMALL_BATCH.num_prompts : 2]
    assert len(rows) == len(firsts) == SMALL_BATCH.matching_rows
    for row, sample in zip(rows, firsts, strict=True):
        found = re.search(r"a picture of [a-z ]+", row)
        assert found
        prompt = parse_prompt(found[0], vision_stage.grammar)
        is_right = judge(prompt, sample.scene.objects).correct
        assert row.split()[-1] == ("yes" if is_right else "no"), row


def test_skills_come_by_their_weights() -> None:
    rng, weights = step_rng(0, 1, 2), {"position": 3.0, "colors": 0.0}
    drawn = Counter(draw_prompt(rng, Grammar.small(), weights).skill for _ in range(3000))
    assert drawn["colors"] == 0
    share = 3 / 7  # of weights 3 + 0 + 4 x 1
    assert abs(drawn["position"] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5
    assert set(drawn) == set(SKILLS) - {"colors"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"skill_weights": {"colours": 1.0}}, "skill_weights has no 'colours'"),
        ({"skill_weights": dict.fromkeys(SKILLS, 0.0)}, "skill_weights leaves nothing"),
        ({"question_tries": {"size": -1.0}}, "question_tries.size must not be negative, got -1.0"),
        ({"question_tries": {"size": float("nan")}}, "must not be negative, got nan"),
        ({"question_tries": {"size": float("inf")}}, "must be finite, got inf"),
    ],
)
def test_wrong_weights_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        JointBatchConfig(**settings)


def test_query_states_stand_beside_their_pictures() -> None:
    states = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    assert tile_states(states, 2)[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_texts_are_cut_or_padded_to_one_length() -> None:
    table = pad_token_ids([[1, 2, 3, 4], [5]], length=3, pad_id=9)
    assert table.tolist() == [[1, 2, 3], [5, 9, 9]]


def test_every_kind_of_row_is_learned_from(
    vision_stage: VisionStage, shown: list[SceneSample]
) -> None:
    """Captions, questions, chats about drawn pictures, and descriptions all occur."""
    make = joint_batches(vision_stage)
    rows = [
        text
        for step in range(12)
        for layout in (make(step).reading, make(step).chats)
        for text in texts_of(vision_stage, layout)
    ]
    kinds = {
        "description": r"describe\s+assistant\s+a picture of",
        "caption": r"describe\s+assistant\s+(?!a picture of)an? ",
        "question": r"how many|what color|where is|is there|is the|what is",
        "request": r"\b(?:draw|show me|now|i want) ",
        "small talk": r"hello|thanks|what can you do",
    }
    for (name, pattern), text in product(kinds.items(), [" ".join(rows)]):
        assert re.search(pattern, text), name
    assert set(RELATIONS) <= {r for r in RELATIONS if r in " ".join(rows)}
