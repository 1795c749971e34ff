"""Where samples are stored: each kind of source gives the record at an integer position."""

from collections.abc import Sequence
from typing import Protocol, assert_never

from ..config import DataConfig, SourceConfig
from ..conversation import Record


class Source(Protocol):
    """Records by position."""

    @property
    def block_sizes(self) -> Sequence[int]:
        """Samples of each file or run of neighbours, in stored order."""

    @property
    def num_bytes(self) -> int:
        """Size on disk; 0 where it is not known."""

    @property
    def is_stream(self) -> bool:
        """Whether positions must be read in rising order, and go on over all passes."""

    def key(self, index: int) -> str:
        """Return where a record is, for a person."""

    def record(self, index: int, *, with_images: bool = True) -> Record:
        """Return a record.

        Raises:
            SampleError: It is damaged.
        """


def open_source(config: SourceConfig, data: DataConfig, *, seed: int) -> Source:
    """Return a source; positions inside its files are found first if they are not known.

    Raises:
        UserError: A file is missing, empty or of another layout.
        MissingExtraError: It needs a package that is not installed.
    """
    match config.kind:
        case "wds":
            from .tars import TarSource

            return TarSource(config, data.index_dir)
        case "jsonl":
            from .jsonl import JsonlSource

            return JsonlSource(config, data.index_dir)
        case "hf":
            from .huggingface import ParquetSource

            return ParquetSource(config, data.index_dir)
        case "hf_stream":
            from .huggingface import StreamSource

            buffer = data.shuffle_buffer if data.shuffle else None
            return StreamSource(config, seed=seed, buffer=buffer)
        case _:
            assert_never(config.kind)
