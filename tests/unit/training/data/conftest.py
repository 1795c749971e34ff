"""A stream over small data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.data.config import DataConfig, SourceConfig
from training.data.corpus import Corpus, Sizes, SpaceNames
from unimm.chat import ChatTemplate
from unimm.chat_style import ChatStyle
from unimm.testing import tiny_config, tiny_tokenizer


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    return ChatTemplate(tiny_tokenizer(), ChatStyle())


MakeCorpus = Callable[..., Corpus]


@pytest.fixture
def make_corpus(tmp_path: Path, template: ChatTemplate) -> MakeCorpus:
    """Return a function that opens sources with a tiny model's sizes."""

    def make(*sources: SourceConfig, seed: int = 0, **settings: Any) -> Corpus:
        settings = {"max_length": 200, "shuffle_buffer": 8, **settings}
        space = settings.pop("space", None)
        spaces = None if space is None else SpaceNames(space, space)
        config = DataConfig(sources=sources, index_dir=tmp_path / "index", **settings)
        sizes = Sizes.of(tiny_config())
        return Corpus(config, template=template, sizes=sizes, seed=seed, spaces=spaces)

    return make
