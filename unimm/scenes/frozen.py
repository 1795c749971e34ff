"""Frozen lists of 553 prompts for evaluation, in the proportions of GenEval's skills.

`write_prompts` makes them again; the ones in `prompts/` are used.
"""

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

from unimm.scenes.grammar import Grammar, prompt_groups
from unimm.scenes.parse import parse_prompt
from unimm.scenes.spec import Prompt

GENEVAL_PROMPTS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
"""GenEval's number of prompts by skill."""

NUM_PROMPTS = sum(GENEVAL_PROMPTS.values())

GRAMMARS = {"full": Grammar.full(), "small": Grammar.small()}
"""Grammars with frozen lists, by name."""

FROZEN_LISTS = {
    "full": ("train", "pair", "count", "count_five", "relation"),
    "small": ("train", "pair", "count", "relation"),
}
"""Splits with frozen lists, by the grammar's name."""


@cache
def load_prompts(grammar_name: str, split: str = "train") -> tuple[Prompt, ...]:
    """Return the 553 frozen prompts of a grammar and split.

    They are in no order, so that the first few hundred are a fair sample too. A split lists the
    skills that it has; a skill with fewer prompts than its share repeats them evenly.

    Raises:
        ValueError: if there is no such list.
    """
    if split not in FROZEN_LISTS.get(grammar_name, ()):
        known = ", ".join(f"{g}/{s}" for g, splits in FROZEN_LISTS.items() for s in splits)
        raise ValueError(f"no frozen prompts {grammar_name}/{split}; choose one of {known}")
    resource = files("unimm.scenes") / "prompts" / f"{grammar_name}_{split}.json"
    rows = json.loads(resource.read_text(encoding="utf-8"))
    return tuple(parse_prompt(row["prompt"], GRAMMARS[grammar_name]) for row in rows)


def choose_prompts(grammar: Grammar, split: str) -> list[Prompt]:
    """Choose the prompts that the frozen list of a grammar and split has, the same every time."""
    quotas = _quotas(grammar, split)
    chosen: list[Prompt] = []
    for skill, quota in quotas.items():
        groups = prompt_groups(grammar, skill, split)
        for k, group in enumerate(groups):
            share = (quota + k) // len(groups)  # groups alike, the last one gets the odd prompt
            ordered = sorted(group, key=lambda prompt: _digest(prompt.text))
            chosen += [ordered[i % len(ordered)] for i in range(share)]
    order = sorted(range(len(chosen)), key=lambda i: _digest(f"{i} {chosen[i].text}"))
    return [chosen[i] for i in order]


def _quotas(grammar: Grammar, split: str) -> dict[str, int]:
    """Share 553 prompts among the split's skills in GenEval's proportions, largest rests first."""
    weights = {
        skill: number
        for skill, number in GENEVAL_PROMPTS.items()
        if prompt_groups(grammar, skill, split)
    }
    total = sum(weights.values())
    quotas = {skill: NUM_PROMPTS * weight // total for skill, weight in weights.items()}
    rests = sorted(weights, key=lambda skill: -(NUM_PROMPTS * weights[skill] % total))
    for skill in rests[: NUM_PROMPTS - sum(quotas.values())]:
        quotas[skill] += 1
    return quotas


def _digest(text: str) -> bytes:
    # A hash and no generator: numpy does not promise the same draws in every version.
    return hashlib.sha256(f"frozen prompts: {text}".encode()).digest()


def write_prompts(directory: Path) -> list[Path]:
    """Write every frozen list as JSON into an existing directory and return the files."""
    written = []
    for name, splits in FROZEN_LISTS.items():
        for split in splits:
            prompts = choose_prompts(GRAMMARS[name], split)
            lines = [
                json.dumps({"skill": prompt.skill, "prompt": prompt.text}) for prompt in prompts
            ]
            path = directory / f"{name}_{split}.json"
            path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
            written.append(path)
    return written
