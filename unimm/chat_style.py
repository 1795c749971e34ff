"""How each kind of turn is worded: what a model was trained on, so part of its configuration."""

from collections.abc import Iterable
from dataclasses import dataclass
from string import Formatter


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatStyle:
    """The wording of each kind of turn.

    ``{image}`` stands for the picture. A picture that comes last but for a fixed short question
    lets all candidates share the key-value cache of the text before it.

    Args:
        system: Text of the system turn; None for no system turn.
        draw: Asks for a picture of ``{prompt}``.
        ask: Asks ``{question}`` about a picture.
        verify: Asks whether a picture matches ``{prompt}``.
        describe: Asks for the text of a picture.
        preface: Most tokens that the model may write before a picture; 0 opens the picture at
            once. A model that was trained to say something first draws best after that.
        restates: Whether the text after a picture says in the prompt's usual words what was drawn.
            In a chat, where a person may ask in any words, the candidates are judged by that text.
        yes: Spellings of a positive answer; each must be one token.
        no: Spellings of a negative answer; each must be one token.
    """

    system: str | None = None
    draw: str = "{prompt}"
    ask: str = "{image}\n{question}"
    verify: str = "{prompt}\n{image}\nmatch?"
    describe: str = "{image}\ndescribe"
    preface: int = 0
    restates: bool = False
    yes: tuple[str, ...] = ("yes",)
    no: tuple[str, ...] = ("no",)

    def __post_init__(self) -> None:
        for name, fields in _FIELDS.items():
            template = getattr(self, name)
            found = sorted(field for _, field, _, _ in Formatter().parse(template) if field)
            if found != sorted(fields):
                raise ValueError(
                    f"{name} must contain each of {_braces(fields)} once, got {template!r}"
                )
        if self.preface < 0:
            raise ValueError(f"preface must be at least 0, got {self.preface}")
        if not self.yes or not self.no or set(self.yes) & set(self.no):
            raise ValueError(f"yes {self.yes} and no {self.no} must be non-empty and differ")

    @classmethod
    def scale_rae(cls) -> "ChatStyle":
        """Return the wording of Scale-RAE (arXiv:2601.16208): picture first, then the question."""
        return cls(
            system="You are a helpful assistant.",
            draw="Generate an image of {prompt}",
            verify="{image}\nDoes this image align with the prompt: {prompt}?",
            describe="{image}\nDescribe this image.",
            preface=512,
            yes=("yes", "Yes", "YES", " yes", " Yes", " YES"),
            no=("no", "No", "NO", " no", " No", " NO"),
        )


_FIELDS = {
    "draw": ("prompt",),
    "ask": ("image", "question"),
    "verify": ("image", "prompt"),
    "describe": ("image",),
}


def _braces(fields: Iterable[str]) -> str:
    return " and ".join(f"{{{field}}}" for field in fields)
