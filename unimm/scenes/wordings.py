"""Other words for the same content."""

from unimm.scenes.grammar import split_of
from unimm.scenes.spec import Prompt, Spec, prompt_of
from unimm.scenes.world import OPPOSITE


def wordings(prompt: Prompt) -> tuple[str, ...]:
    """Return the prompt's text and, of two kinds of objects, that which names the other one first.

    What is true of the one is true of the other. Of a training prompt they are training prompts:
    a relation that is held out in the other wording has the prompt's own text alone.
    """
    objects, relation = prompt.spec.objects, prompt.spec.relation
    if len(objects) != 2 or prompt.skill == "counting":
        return (prompt.text,)
    other = prompt_of(Spec(objects[::-1], None if relation is None else OPPOSITE[relation]))
    if split_of(prompt) == "train" and split_of(other) != "train":
        return (prompt.text,)
    return prompt.text, other.text
