"""Encode the pictures of a corpus once: ``unimm cache-latents``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unimm.config_io import apply_override, from_dict, read_tree
from unimm.errors import ConfigError
from unimm.latents import LatentSpace

from .config import DataConfig
from .latent_cache import LatentCache, LatentCacheWriter, picture_digest
from .preprocessing import Preprocessing, decode_picture
from .sample import SampleError
from .sources import Source, open_source

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CachingReport:
    """What was done.

    Args:
        folder: Where the latents are.
        num_pictures: Pictures that were met, repeated ones counted again.
        num_encoded: Those that were new.
        problems: What could not be read, by name.
    """

    folder: Path
    num_pictures: int
    num_encoded: int
    problems: tuple[str, ...]


def read_data_config(path: Path, overrides: Sequence[str]) -> DataConfig:
    """Return the ``data`` section of a recipe.

    Raises:
        ConfigError: It has none, or it is wrong.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    section = tree.get("data")
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no section 'data'; only such recipes read files")
    try:
        return from_dict(DataConfig, section)
    except ConfigError as error:
        raise ConfigError(f"{path}: data: {error}") from None


def cache_latents(
    config: DataConfig,
    latents: LatentSpace,
    *,
    space: str,
    root: Path,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 64,
    num_workers: int = 0,
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> CachingReport:
    """Encode all pictures that the cache does not hold; started again, it goes on.

    Args:
        config: Whose pictures.
        latents: The encoder.
        space: Its identifier.
        root: The cache folder.
        device: Where the encoder is.
        dtype: In which the latents are stored.
        batch_size: Pictures that are encoded at a time.
        num_workers: Processes that decode pictures.
        part: (i, n) for the i-th of n processes, from 0, each with a share of the samples.
        progress: Called with the samples done and all samples.

    Raises:
        OutputError: The disk is full or refuses a file; whole shards stay.
    """
    preprocessing = Preprocessing(
        image_size=latents.image_size, fit=config.fit, resample=config.resample
    )
    writer = LatentCacheWriter(root, space=space, preprocessing=preprocessing, part=part[0])
    pictures = _Pictures(config, writer.folder, preprocessing)
    chosen = range(part[0], len(pictures), part[1])
    queue: dict[bytes, Tensor] = {}
    problems: list[str] = []
    counts = [0, 0]

    def encode() -> None:
        pixels = torch.stack(list(queue.values())).to(device).float() / 255
        with torch.no_grad():
            writer.add(list(queue), latents.encode(pixels).to("cpu", dtype))
        counts[1] += len(queue)
        queue.clear()

    for done, (found, problem) in enumerate(_load(pictures, chosen, num_workers), start=1):
        problems += [problem] if problem else []
        for digest, picture in found:
            counts[0] += 1
            if picture is not None and digest not in queue and digest not in writer:
                queue[digest] = picture
        if len(queue) >= batch_size:
            encode()
        if progress is not None:
            progress(done, len(chosen))
    if queue:
        encode()
    writer.flush()
    return CachingReport(writer.folder, counts[0], counts[1], tuple(problems))


_Found = tuple[list[tuple[bytes, Tensor | None]], str]


class _Pictures(Dataset[_Found]):
    """The pictures of every sample, those that are cached already without content."""

    def __init__(self, config: DataConfig, folder: Path, preprocessing: Preprocessing) -> None:
        self._sources: list[Source] = [open_source(s, config, seed=0) for s in config.sources]
        self._sizes = [sum(source.block_sizes) for source in self._sources]
        self._cache = LatentCache(folder)
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, index: int) -> _Found:
        place = 0
        while index >= self._sizes[place]:
            index -= self._sizes[place]
            place += 1
        source = self._sources[place]
        try:
            images = source.record(index).images
            return [self._picture(name, content) for name, content in images], ""
        except SampleError as error:
            return [], f"{source.key(index)}: {error}"

    def _picture(self, name: str, content: bytes) -> tuple[bytes, Tensor | None]:
        digest = picture_digest(content)
        if digest in self._cache:
            return digest, None
        return digest, decode_picture(content, self._preprocessing, name=name)


def _load(pictures: _Pictures, indices: range, num_workers: int) -> Iterator[_Found]:
    return iter(
        DataLoader(
            pictures,
            batch_size=None,
            sampler=indices,
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            collate_fn=_as_it_is,
        )
    )


def _as_it_is(found: Any) -> Any:
    return found
