"""All samples of a run by number: the same for every rank, worker and restart."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from unimm.chat import ChatTemplate, Segment
from unimm.config import UniMMConfig
from unimm.errors import ConfigError
from unimm.layout import sequence_length

from .config import DataConfig
from .conversation import Conversation, Record, build_conversation, cut_conversation
from .latent_cache import LatentCache, open_cache
from .order import Mixture, ShuffledOrder
from .packer import pack_rows
from .preprocessing import Preprocessing, decode_picture
from .sample import Sample, SampleBatch, SampleError, Skipped
from .sources import Source, open_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the model makes of a picture.

    Args:
        image_size: Side of a picture to read, in pixels.
        drawn_size: Side of a picture to draw, in pixels.
        num_image_tokens: Positions of a picture that is read.
        num_queries: Positions of a picture that is drawn.
    """

    image_size: int
    drawn_size: int
    num_image_tokens: int
    num_queries: int

    @classmethod
    def of(cls, config: UniMMConfig) -> "Sizes":
        """Return the sizes of a model."""
        return cls(
            image_size=config.seen.image_size,
            drawn_size=config.latents.image_size,
            num_image_tokens=config.seen.num_tokens,
            num_queries=config.num_queries,
        )


class SpaceNames(NamedTuple):
    """Identifiers of the latent spaces whose caches are read; mostly one and the same."""

    seen: str
    drawn: str


@dataclass(frozen=True, slots=True)
class _View:
    """How pictures of one purpose are read: as pixels, or as latents from a cache."""

    preprocessing: Preprocessing
    cache: LatentCache | None

    def picture(self, name: str, content: bytes) -> Tensor:
        if self.cache is None:
            return decode_picture(content, self.preprocessing, name=name)
        latents = self.cache.get(content)
        if latents is None:
            raise SampleError(f"{name} is not in the latent cache; run unimm cache-latents")
        return latents


class Corpus:
    """Samples by their number in the run; every number gives one, or says why not.

    A pure function of the number, so it may be called in any process and any order.

    Args:
        config: Sources and what becomes of their samples.
        template: How the model's conversations are written.
        sizes: What the model makes of a picture.
        seed: Of the order.
        spaces: The latent spaces whose caches are read; needed only with ``latent_cache``.

    Raises:
        UserError: A source's files are missing, empty or of another layout, or the cache holds no
            latents of this encoder and preprocessing.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        template: ChatTemplate,
        sizes: Sizes,
        seed: int,
        spaces: SpaceNames | None = None,
    ) -> None:
        self.config = config
        self.sizes = sizes
        self._template = template
        self._seed = seed
        self.sources: list[Source] = [
            open_source(source, config, seed=seed) for source in config.sources
        ]
        self._seen = self._view(sizes.image_size, spaces.seen if spaces else None)
        self._drawn = self._view(sizes.drawn_size, spaces.drawn if spaces else None)
        buffer = config.shuffle_buffer if config.shuffle else None
        self._orders = [
            ShuffledOrder(source.block_sizes, seed=seed, source=number, buffer=buffer)
            for number, source in enumerate(self.sources)
        ]
        self.mixture = Mixture(mixture_weights(config, self.sources), seed=seed)

    @property
    def source_sizes(self) -> list[int]:
        """Samples of one pass over each source."""
        return [order.size for order in self._orders]

    @property
    def fingerprint(self) -> str:
        """Identify the sequence: positions of another one mean other samples."""
        described = [
            [source.name, self.mixture.quotas[i], list(map(int, self.sources[i].block_sizes))]
            for i, source in enumerate(self.config.sources)
        ]
        settings = [self._seed, self.config.shuffle, self.config.shuffle_buffer, described]
        return blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()

    def __getitem__(self, number: int) -> Sample | Skipped:
        place, position = self.mixture.pick(number)
        source = self.sources[place]
        index = position if source.is_stream else self._orders[place].index(position)
        name = self.config.sources[place].name
        try:
            record = source.record(index)
            conversation = self.conversation(record, place)
            read = {i: self._seen.picture(*record.images[i]) for i in conversation.read}
            drawn = {i: self._drawn.picture(*record.images[i]) for i in conversation.drawn}
        except SampleError as error:
            return Skipped(number, source.key(index), name, str(error))
        fits = all(self.length(prompt) <= self.config.max_length for prompt in conversation.prompts)
        return Sample(
            number=number,
            key=record.key,
            source=name,
            segments=conversation.segments,
            read=tuple(read[i] for i in conversation.read),
            drawn=tuple(drawn[i] for i in conversation.drawn),
            length=self.length(conversation.segments),
            seed=_seed_of(self._seed, number),
            prompts=conversation.prompts if fits else (),
        )

    def batch(self, numbers: Iterable[int]) -> SampleBatch:
        """Return the samples of some numbers, packed into rows if the configuration says so."""
        items = [self[number] for number in numbers]
        samples = [item for item in items if isinstance(item, Sample)]
        length = self.config.row_length
        rows = tuple((s,) for s in samples) if length is None else pack_rows(samples, length)
        return SampleBatch(rows, tuple(item for item in items if isinstance(item, Skipped)))

    def length(self, segments: Sequence[Segment]) -> int:
        """Return the positions that segments take in this corpus's model."""
        return sequence_length(
            segments,
            num_image_tokens=self.sizes.num_image_tokens,
            num_queries=self.sizes.num_queries,
        )

    def conversation(self, record: Record, place: int) -> Conversation:
        """Return the conversation in a record of the source at ``place``.

        Raises:
            SampleError: It has another layout, or is too long.
        """
        if len(record.images) > self.config.max_images:
            raise SampleError(
                f"{len(record.images)} pictures; max_images is {self.config.max_images}"
            )
        conversation = build_conversation(
            record.fields,
            num_images=len(record.images),
            source=self.config.sources[place],
            template=self._template,
        )
        return cut_conversation(
            conversation,
            max_length=self.config.max_length,
            num_image_tokens=self.sizes.num_image_tokens,
            num_queries=self.sizes.num_queries,
        )

    def _view(self, size: int, space: str | None) -> _View:
        config = self.config
        preprocessing = Preprocessing(image_size=size, fit=config.fit, resample=config.resample)
        if config.latent_cache is None:
            return _View(preprocessing, None)
        if space is None:
            raise ConfigError("latent_cache needs a model with an encoder to know its latents by")
        cache = open_cache(config.latent_cache, space=space, preprocessing=preprocessing)
        return _View(preprocessing, cache)


def mixture_weights(config: DataConfig, sources: Sequence[Source]) -> list[float]:
    """Return the sources' relative shares: as configured, or by size."""
    return [
        float(sum(source.block_sizes)) if part.weight is None else part.weight
        for part, source in zip(config.sources, sources, strict=True)
    ]


def _seed_of(seed: int, number: int) -> int:
    """Return the seed of one sample: a hash, so that seeds of neighbours have nothing in common."""
    digest = blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits
