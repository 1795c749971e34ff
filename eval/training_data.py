"""Conversations of mixed lengths about the miniature world, as the files that training reads."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from unimm.scenes import Grammar, dense_caption, render_batch, sample_prompt, sample_scene

MEDIAN_WORDS = 60
SPREAD = 0.9
"""Of the words of a conversation, which are log-normal: many short, a few ten times as long."""

_DRAWN, _READ = 0.5, 0.35  # shares; the rest is text alone


def write_conversations(folder: Path, *, count: int, seed: int) -> Path:
    """Write conversations that draw, read or only talk, with their pictures; return the JSONL."""
    rng, grammar = np.random.default_rng(seed), Grammar.small()
    lines = []
    for number in range(count):
        prompt = sample_prompt(rng, grammar)
        scene = sample_scene(rng, grammar, prompt)
        text, num_words = prompt.text, rng.lognormal(np.log(MEDIAN_WORDS), SPREAD)
        while len(text.split()) < num_words:
            text += ". " + dense_caption(scene, rng)
        kind = rng.random()
        record: dict[str, object] = {"conversations": _turns(kind, text)}
        if kind < _DRAWN + _READ:
            Image.fromarray(render_batch([scene])[0]).save(folder / f"{number}.png")
            record["image"] = f"{number}.png"
        lines.append(json.dumps(record))
    path = folder / "conversations.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _turns(kind: float, text: str) -> list[dict[str, str]]:
    if kind < _DRAWN:
        asked, answer = f"draw {text}", "<image>"
    elif kind < _DRAWN + _READ:
        asked, answer = "<image>\ndescribe", text
    else:
        asked, answer = "describe", text
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
