"""Samples in parquet files, by Hugging Face's ``datasets``."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unimm.errors import MissingExtraError, UserError

from ..config import SourceConfig
from ..conversation import Record
from ..sample import SampleError
from .paths import find_files

BLOCK = 1000
"""Neighbouring rows that keep together when blocks change places."""


class ParquetSource:
    """Local parquet files, read by position.

    The library unpacks them once into memory-mapped files under ``index_dir``.
    """

    is_stream = False

    def __init__(self, config: SourceConfig, index_dir: Path) -> None:
        self._config = config
        self.files = find_files(Path(config.path), [".parquet"], source=config.name)
        cache = str(index_dir / "parquet")
        self._rows = _load(config, self.files, cache_dir=cache)
        _check_columns(config, self._rows.column_names)
        size = len(self._rows)
        if not size:
            raise UserError(f"{config.name}: {config.path} holds no rows")
        self.block_sizes: Sequence[int] = [
            min(BLOCK, size - first) for first in range(0, size, BLOCK)
        ]
        self.num_bytes = sum(file.stat().st_size for file in self.files)

    def key(self, index: int) -> str:
        return f"{self._config.path}:row {index}"

    def record(self, index: int, *, with_images: bool = True) -> Record:
        return _record(self._rows[index], self.key(index), self._config, with_images=with_images)


class StreamSource:
    """Parquet files or a data set on the hub, read from front to back.

    Every process reads the whole stream and keeps its own samples, and a restart skips what was
    read: exact, but slow for large sets.
    """

    is_stream = True
    num_bytes = 0

    def __init__(self, config: SourceConfig, *, seed: int, buffer: int | None) -> None:
        assert config.num_samples is not None
        self._config = config
        self._seed = seed
        self._buffer = buffer
        self.block_sizes: Sequence[int] = [config.num_samples]
        path = Path(config.path)
        files = find_files(path, [".parquet"], source=config.name) if path.exists() else None
        self._stream = _load(config, files, streaming=True)
        if self._stream.column_names is not None:
            _check_columns(config, self._stream.column_names)
        self._next = 0
        self._pass = 0
        self._iterator: Iterator[Any] | None = None

    def key(self, index: int) -> str:
        return f"{self._config.path}:sample {index}"

    def record(self, index: int, *, with_images: bool = True) -> Record:
        row = self._row(index)
        return _record(row, self.key(index), self._config, with_images=with_images)

    def _row(self, index: int) -> Mapping[str, Any]:
        """Return the row at a position, counted over all passes."""
        size = self.block_sizes[0]
        number, within = divmod(index, size)
        if self._iterator is None or index < self._next or number != self._pass:
            self._iterator = self._open(number, within)
            self._pass, self._next = number, index
        batch = next(islice(self._iterator, index - self._next, None), None)
        if batch is None:
            raise UserError(
                f"{self._config.name}: the stream ended before sample {within}; num_samples says "
                f"{size}, lower it"
            )
        self._next = index + 1
        return {column: values[0] for column, values in batch.items()}

    def _open(self, number: int, skipped: int) -> Iterator[Any]:
        stream = self._stream
        if self._buffer is not None:
            stream = stream.shuffle(seed=self._seed + number, buffer_size=self._buffer)
        # `iter` and not `__iter__`, which would split the files between a loader's workers.
        return iter(stream.skip(skipped).iter(batch_size=1))


def _load(
    config: SourceConfig,
    files: Sequence[Path] | None,
    *,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", extra="data") from error
    try:
        if files is None:
            rows = datasets.load_dataset(config.path, split=config.split, streaming=streaming)
        else:
            names = [str(file) for file in files]
            rows = datasets.load_dataset(
                "parquet", data_files=names, split="train", streaming=streaming, cache_dir=cache_dir
            )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{config.name}: cannot read {config.path}: {reason}") from None
    # Decoding is ours: with bounds, and a damaged picture must not end the run.
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return rows


def _check_columns(config: SourceConfig, columns: Sequence[str]) -> None:
    is_caption = config.layout == "caption"
    wanted = {config.text_column, config.image_column} if is_caption else set()
    if not is_caption and not {config.conversations_column, "messages"} & set(columns):
        wanted.add(config.conversations_column)
    missing = sorted(wanted - set(columns))
    if missing:
        raise UserError(
            f"{config.name}: {config.path} has no column {missing[0]!r}, but {', '.join(columns)}"
        )


def _record(row: Mapping[str, Any], key: str, config: SourceConfig, *, with_images: bool) -> Record:
    value = row.get(config.image_column)
    values = value if isinstance(value, list) else [] if value is None else [value]
    fields = {column: v for column, v in row.items() if column != config.image_column}
    images = [_image(v, config) for v in values] if with_images else []
    return Record(key, fields, tuple(images))


def _image(value: object, config: SourceConfig) -> tuple[str, bytes]:
    if isinstance(value, bytes):
        return config.image_column, value
    if isinstance(value, Mapping):
        path, content = value.get("path"), value.get("bytes")
        if isinstance(content, bytes):
            return str(path or config.image_column), content
        value = path
    if not isinstance(value, str):
        raise SampleError(f"{config.image_column!r} holds no picture")
    file = (config.image_root or Path()) / value
    try:
        return str(file), file.read_bytes()
    except OSError as error:
        raise SampleError(f"cannot read the picture {file}: {error.strerror}") from None
