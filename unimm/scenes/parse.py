"""From a prompt's words to its content, with errors that name the word that does not fit."""

from unimm.scenes.grammar import Grammar
from unimm.scenes.spec import NUMBERS, ObjectSpec, Prompt, Spec, plural, prompt_of
from unimm.scenes.world import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES

_OPENING = ["a", "picture", "of"]

_JOINS = {("and",): None} | {tuple(relation.split()): relation for relation in RELATIONS}

_EXAMPLE = "a picture of a blue circle and a red square"


def parse_prompt(text: str, grammar: Grammar) -> Prompt:
    """Return the prompt that the text words; upper case and extra spaces are read leniently.

    Raises:
        ValueError: if a word or the form is outside the grammar, saying which.
    """
    words = text.lower().split()
    try:
        if words[:3] != _OPENING or len(words) < 5:
            raise ValueError(f"word it as in {_EXAMPLE!r}")
        prompt = prompt_of(_parse_content(words[3:], grammar))
        if prompt.text != " ".join(words):
            raise ValueError(f"word it {prompt.text!r}")
    except ValueError as error:
        raise ValueError(f"the prompt {text!r} is outside the grammar: {error}") from None
    return prompt


def _parse_content(words: list[str], grammar: Grammar) -> Spec:
    if words[0] not in ("a", "an"):
        return _parse_counting(words, grammar)
    for join, relation in _JOINS.items():
        for at in range(1, len(words) - len(join)):
            if tuple(words[at : at + len(join)]) == join:
                halves = words[:at], words[at + len(join) :]
                first, second = (_parse_object(half, grammar) for half in halves)
                return _pair(first, second, relation, grammar)
    return Spec((_parse_object(words, grammar),))


def _pair(first: ObjectSpec, second: ObjectSpec, relation: str | None, grammar: Grammar) -> Spec:
    if grammar.max_objects < 2:
        raise ValueError("it has two objects and the grammar's pictures have one")
    if first.shape == second.shape:
        raise ValueError(f"the two objects have one shape, {first.shape!r}; name two shapes")
    if (first.colour is None) != (second.colour is None):
        raise ValueError("only one of the objects has a colour; give both a colour, or none")
    if first.colour is not None and first.colour == second.colour:
        raise ValueError(f"both objects are {first.colour}; give them two colours")
    for spec in (first, second):
        if modifier := spec.size or spec.texture:
            raise ValueError(f"{modifier!r} is said of a single object only; leave it out")
    return Spec((first, second), relation)


def _parse_counting(words: list[str], grammar: Grammar) -> Spec:
    numbers = NUMBERS[2 : grammar.max_objects + 1]
    if words[0] not in numbers:
        if words[0] in NUMBERS[2:]:
            limit = f"the grammar's pictures have at most {grammar.max_objects} objects"
            raise ValueError(f"{words[0]!r} is outside it, {limit}")
        choices = ", ".join(("a", "an", *numbers))
        raise ValueError(f"{words[0]!r} is no number of it; after 'of' comes one of {choices}")
    singular = {plural(shape): shape for shape in SHAPES}
    if words[-1] in SHAPES:
        raise ValueError(f"say {plural(words[-1])!r} after {words[0]!r}")
    phrase = [*words[1:-1], singular.get(words[-1], words[-1])]
    spec = _parse_phrase(phrase, grammar)
    if modifier := spec.size or spec.texture:
        raise ValueError(f"{modifier!r} is said of a single object only; leave it out")
    return Spec((spec,) * NUMBERS.index(words[0]))


def _parse_object(words: list[str], grammar: Grammar) -> ObjectSpec:
    if words[0] not in ("a", "an"):
        raise ValueError(f"{words[0]!r} stands where 'a' or 'an' is expected")
    return _parse_phrase(words[1:], grammar)


def _parse_phrase(words: list[str], grammar: Grammar) -> ObjectSpec:
    """Read `[MODIFIER] SHAPE`."""
    if not words:
        raise ValueError("a shape is missing")
    if len(words) > 2:
        raise ValueError(f"{' '.join(words)!r} has more than one word before its shape")
    shape = _known(words[-1], "shape", SHAPES, grammar.shapes)
    if len(words) == 1:
        return ObjectSpec(shape)
    kinds = (
        ("colour", tuple(COLOURS), grammar.colours),
        ("size", tuple(SIZES), grammar.sizes),
        ("texture", TEXTURES, grammar.textures),
    )
    for kind, world, allowed in kinds:
        if words[0] in world:
            return ObjectSpec(shape, **{kind: _known(words[0], kind, world, allowed)})
    choices = ", ".join((*grammar.colours, *grammar.sizes, *grammar.textures))
    raise ValueError(f"{words[0]!r} is no word of it; before a shape comes one of {choices}")


def _known(word: str, kind: str, world: tuple[str, ...], allowed: tuple[str, ...]) -> str:
    if word in allowed:
        return word
    choices = ", ".join(allowed)
    if word in world:
        raise ValueError(f"the {kind} {word!r} is outside it, which has {choices}")
    raise ValueError(f"{word!r} is no {kind} of it; choose one of {choices}")
