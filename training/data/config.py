"""What a run reads: the ``data`` section of a recipe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SourceKind = Literal["wds", "jsonl", "hf", "hf_stream"]
RecordLayout = Literal["conversations", "caption"]
Fit = Literal["crop", "stretch"]
Resample = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One part of the mixture.

    Args:
        name: What metrics and reports call it.
        kind: ``wds`` for tars, ``jsonl`` for lines of JSON beside pictures, ``hf`` for parquet
            files read by position, ``hf_stream`` for parquet files or a hub data set read from
            front to back.
        path: A manifest (``*.json`` that lists tars), a tar, a JSONL or parquet file, a folder of
            tars or parquet files, or the hub id of a streamed data set.
        weight: Share of all samples, relative to the other parts'; None for its size.
        layout: ``conversations`` for turns with ``<image>``, ``caption`` for a picture and a text.
        task: What a caption is for: ``generation`` draws the picture from its text,
            ``understanding`` describes it. Conversations say it themselves.
        image_root: Folder that picture paths start from; the JSONL file's own by default.
        image_column: Column of the picture or pictures in parquet files and captions.
        text_column: Column (or JSON key) of a caption.
        conversations_column: Column (or JSON key) of the turns.
        split: Split of a hub data set.
        num_samples: Samples of one pass over a stream, which cannot be counted beforehand.
    """

    name: str
    kind: SourceKind
    path: str
    weight: float | None = None
    layout: RecordLayout = "conversations"
    task: Literal["generation", "understanding"] = "generation"
    image_root: Path | None = None
    image_column: str = "image"
    text_column: str = "text"
    conversations_column: str = "conversations"
    split: str = "train"
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.path:
            raise ValueError(f"name ({self.name!r}) and path ({self.path!r}) must not be empty")
        if self.weight is not None and self.weight <= 0:
            raise ValueError(
                f"weight of {self.name} must be positive, got {self.weight}; delete the source "
                f"to leave it out"
            )
        if self.kind == "hf_stream" and (self.num_samples is None or self.num_samples < 1):
            raise ValueError(
                f"num_samples of {self.name} must say how many samples a pass over the stream "
                f"has, got {self.num_samples}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where samples come from and what becomes of them.

    Args:
        sources: Parts of the mixture; with a weight for each or for none.
        shuffle: Whether the order of files and samples is drawn anew in each pass.
        shuffle_buffer: Samples among which a sample can change places; files change places
            as wholes. As large as memory for the system's file cache allows.
        max_length: Positions of a sample; longer text is cut, a picture that does not fit makes
            the sample unusable.
        row_length: Positions of a packed row; None for one sample a row.
        max_images: Pictures of a sample; with more it is unusable.
        fit: How a picture becomes a square: ``stretch`` changes its proportions, as Scale-RAE
            does, ``crop`` cuts the longer side.
        resample: Filter of the scaling.
        latent_cache: Folder that ``unimm cache-latents`` wrote; None to encode while training.
        index_dir: Where positions inside of tars and JSONL files are remembered.
        max_skipped_share: Share of unusable samples, in [0, 1], above which the run stops.
        skipped_grace: Samples that are read before that share is looked at.
    """

    sources: tuple[SourceConfig, ...]
    shuffle: bool = True
    shuffle_buffer: int = 16384
    max_length: int = 512
    row_length: int | None = None
    max_images: int = 1
    fit: Fit = "crop"
    resample: Resample = "bicubic"
    latent_cache: Path | None = None
    index_dir: Path = field(default_factory=lambda: Path("runs/data-index"))
    max_skipped_share: float = 0.01
    skipped_grace: int = 1000

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources must have different names, got {', '.join(names)}")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("give each source a weight, or none for shares by size")
        for name in ("shuffle_buffer", "max_length", "skipped_grace"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_images < 0:
            raise ValueError(f"max_images must not be negative, got {self.max_images}")
        if self.row_length is not None and self.row_length < self.max_length:
            raise ValueError(
                f"row_length ({self.row_length}) must be at least max_length ({self.max_length})"
            )
        if not 0 <= self.max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share must be in [0, 1], got {self.max_skipped_share}")
