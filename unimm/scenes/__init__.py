"""The exact miniature world: prompts, pictures and questions whose answers can be checked."""

from unimm.scenes.blends import (
    BlendedPrompt,
    blend_colours,
    blend_prompt,
    colours_of,
    names_colours,
)
from unimm.scenes.detect import detect, detect_background
from unimm.scenes.frozen import load_prompts
from unimm.scenes.grammar import SPLITS, Grammar, prompts, split_of
from unimm.scenes.grouping import Detection
from unimm.scenes.judge import Verdict, judge, shows_held_out
from unimm.scenes.negatives import near_misses
from unimm.scenes.parse import parse_prompt
from unimm.scenes.questions import KINDS, Question, match_question, questions
from unimm.scenes.recognize import prompt_for, recognize
from unimm.scenes.render import render, render_background, render_batch
from unimm.scenes.sample import sample_prompt, sample_scene
from unimm.scenes.spec import NUMBERS, SKILLS, ObjectSpec, Prompt, Spec, prompt_of
from unimm.scenes.text import VOCABULARY, dense_caption, words
from unimm.scenes.wordings import wordings
from unimm.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_SIZE,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    UNKNOWN,
    Scene,
    SceneObject,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "KINDS",
    "NUMBERS",
    "PICTURE_SIZE",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SKILLS",
    "SPLITS",
    "STYLES",
    "TEXTURES",
    "UNKNOWN",
    "VOCABULARY",
    "BlendedPrompt",
    "Detection",
    "Grammar",
    "ObjectSpec",
    "Prompt",
    "Question",
    "Scene",
    "SceneObject",
    "Spec",
    "Verdict",
    "blend_colours",
    "blend_prompt",
    "colours_of",
    "dense_caption",
    "detect",
    "detect_background",
    "judge",
    "load_prompts",
    "match_question",
    "names_colours",
    "near_misses",
    "parse_prompt",
    "prompt_for",
    "prompt_of",
    "prompts",
    "questions",
    "recognize",
    "render",
    "render_background",
    "render_batch",
    "sample_prompt",
    "sample_scene",
    "shows_held_out",
    "split_of",
    "wordings",
    "words",
]
