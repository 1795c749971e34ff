"""What the data files hold: for ``--plan``, before anything is trained."""

from dataclasses import dataclass

import numpy as np

from .corpus import Corpus
from .sample import SampleError

_PROBES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSummary:
    """One source; what is said of a sample is estimated from some.

    Args:
        name: As configured.
        kind: Of source.
        num_samples: Samples of one pass.
        share: Of all samples of the run, in [0, 1].
        num_bytes: Size on disk; 0 where it is not known.
        read_per_sample: Pictures that a sample shows.
        drawn_per_sample: Pictures that it asks for.
        positions_per_sample: Positions of the language model that it takes.
        num_probed: Samples that were looked at.
        num_unusable: Those of them that cannot be used.
        problem: What is wrong with the first of these.
    """

    name: str
    kind: str
    num_samples: int
    share: float
    num_bytes: int
    read_per_sample: float
    drawn_per_sample: float
    positions_per_sample: float
    num_probed: int
    num_unusable: int
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSummary:
    """The whole mixture.

    Args:
        sources: Its parts.
        row_length: Positions of a packed row; None where nothing is packed.
    """

    sources: tuple[SourceSummary, ...]
    row_length: int | None

    @property
    def num_samples(self) -> int:
        """Samples of one pass over every source."""
        return sum(source.num_samples for source in self.sources)

    @property
    def num_bytes(self) -> int:
        """Size of all sources on disk."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def positions_per_sample(self) -> float:
        """Mean over the mixture."""
        return sum(s.share * s.positions_per_sample for s in self.sources)

    @property
    def drawn_per_sample(self) -> float:
        """Mean over the mixture."""
        return sum(s.share * s.drawn_per_sample for s in self.sources)

    @property
    def read_per_sample(self) -> float:
        """Mean over the mixture."""
        return sum(s.share * s.read_per_sample for s in self.sources)

    def passes(self, num_samples: int) -> dict[str, float]:
        """Return how often a run of so many samples goes through each source."""
        return {s.name: num_samples * s.share / s.num_samples for s in self.sources}

    def lines(self, num_samples: int | None = None) -> list[str]:
        """Return the summary as lines of text.

        Args:
            num_samples: Samples of the run, to say how many passes that is.
        """
        text = [_line(source) for source in self.sources]
        text += [
            f"  {s.name}: {s.num_unusable} of {s.num_probed} samples looked at cannot be used; "
            f"the first: {s.problem}"
            for s in self.sources
            if s.num_unusable
        ]
        text.append(
            f"together: {self.num_samples:,} samples, {self.num_bytes / 1e9:.2f} GB; a sample has "
            f"about {self.positions_per_sample:.0f} positions, {self.read_per_sample:.2f} pictures "
            f"to read and {self.drawn_per_sample:.2f} to draw"
        )
        if self.row_length is not None:
            packed = self.row_length / max(1.0, self.positions_per_sample)
            text.append(f"a packed row of {self.row_length} holds about {packed:.1f} samples")
        if num_samples is not None:
            passes = self.passes(num_samples)
            each = ", ".join(f"{name} {count:.2f}" for name, count in passes.items())
            text.append(f"passes in {num_samples:,} samples: {each}")
        return text


def summarise(corpus: Corpus, *, probes: int = _PROBES) -> DataSummary:
    """Return what a corpus holds.

    Args:
        corpus: Opened sources, whose samples are thereby counted.
        probes: Samples of each source that are looked at, spread over it.
    """
    weights = np.asarray(corpus.mixture.quotas, dtype=float)
    shares = weights / weights.sum()
    return DataSummary(
        sources=tuple(
            _summarise_source(corpus, place, share=float(share), probes=probes)
            for place, share in enumerate(shares)
        ),
        row_length=corpus.config.row_length,
    )


def _summarise_source(corpus: Corpus, place: int, *, share: float, probes: int) -> SourceSummary:
    source, config = corpus.sources[place], corpus.config.sources[place]
    size = corpus.source_sizes[place]
    # The first ones of a stream: those further on would have to be read up to.
    count = min(probes, size)
    indices = range(count) if source.is_stream else np.linspace(0, size - 1, count).astype(int)
    found: list[tuple[int, int, int]] = []
    problems: list[str] = []
    for index in map(int, indices):
        try:
            conversation = corpus.conversation(source.record(index), place)
        except SampleError as error:
            problems.append(f"{source.key(index)}: {error}")
            continue
        length = corpus.length(conversation.segments)
        found.append((len(conversation.read), len(conversation.drawn), length))
    read, drawn, positions = np.mean(found or [(0, 0, 0)], axis=0).tolist()
    return SourceSummary(
        name=config.name,
        kind=config.kind,
        num_samples=size,
        share=share,
        num_bytes=source.num_bytes,
        read_per_sample=read,
        drawn_per_sample=drawn,
        positions_per_sample=positions,
        num_probed=count,
        num_unusable=len(problems),
        problem=problems[0] if problems else "",
    )


def _line(source: SourceSummary) -> str:
    size = f"{source.num_bytes / 1e9:.2f} GB" if source.num_bytes else "size unknown"
    return (
        f"{source.name} ({source.kind}): {source.num_samples:,} samples, {size}, "
        f"{source.share:.1%} of the mixture; {source.positions_per_sample:.0f} positions, "
        f"{source.read_per_sample:.2f} pictures to read, {source.drawn_per_sample:.2f} to draw "
        f"per sample"
    )
