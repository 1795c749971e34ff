"""Pictures and videos by way of qwen-vl-utils, where the extra ``vl`` is installed.

Files are opened here and by :mod:`unimm.picture_sources`, within limits; qwen-vl-utils gets images,
never names. Its rules say how many frames of a video are shown and how large everything becomes.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from unimm.errors import ImageError, MissingExtraError
from unimm.picture_sources import SourceOptions, local_path, read_source, shrink

_PACKAGE = "qwen_vl_utils"
# A decoder goes through all frames up to the last that is shown.
_MAX_VIDEO_PIXELS = 2_000_000_000
_IMAGE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_VIDEO_KEYS = (*_IMAGE_KEYS, "total_pixels")
_FRAME_KEYS = ("fps", "nframes", "min_frames", "max_frames")
_TIME_KEYS = ("video_start", "video_end")


def prepare(
    image: Image.Image, item: Mapping[str, Any], options: SourceOptions, *, patch_size: int
) -> Image.Image:
    """Return a picture resized as its message asks, if qwen-vl-utils is to do that."""
    if options.reader == "core" or (options.reader == "auto" and find_spec(_PACKAGE) is None):
        return image
    part = {"type": "image", "image": image, **_chosen(item, _IMAGE_KEYS)}
    (resized,), _ = _process(part, patch_size)
    return resized  # type: ignore[no-any-return]


def read_frames(
    item: Mapping[str, Any], options: SourceOptions, *, patch_size: int, name: str
) -> list[Image.Image]:
    """Return the frames of a video: a file, or a list of pictures.

    Raises:
        MissingExtraError: qwen-vl-utils is not installed, or the options leave it out.
        ImageError: The video cannot be read, or is too long or too large.
    """
    if options.reader == "core" or find_spec(_PACKAGE) is None:
        raise MissingExtraError("qwen-vl-utils, which prepares videos,", extra="vl")
    video = item.get("video")
    if isinstance(video, Sequence) and not isinstance(video, str | bytes):
        pictures = _listed(video, options, name)
    else:
        pictures = _decoded(_file(video, options, name), item, options, name)
    part = {"type": "video", "video": pictures, **_chosen(item, _VIDEO_KEYS)}
    _, (frames,) = _process(part, patch_size)
    # It repeats the last frame of an odd number.
    return [_to_image(frame) for frame in frames[: len(pictures)]]


def _chosen(item: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: item[key] for key in keys if item.get(key) is not None}


def _listed(video: Sequence[Any], options: SourceOptions, name: str) -> list[Image.Image]:
    if not video or len(video) > options.max_frames:
        raise ImageError(f"{name}: {_too_many(len(video), options)}")
    pictures = [
        read_source(frame, options, name=f"{name}, frame {index}")
        for index, frame in enumerate(video)
    ]
    if len({picture.size for picture in pictures}) > 1:
        raise ImageError(f"{name}: the frames of a video must have one size")
    return [shrink(picture, options.max_pixels) for picture in pictures]


def _too_many(count: int, options: SourceOptions) -> str:
    return f"a video may have 1 to {options.max_frames} frames, got {count}; give nframes"


def _file(video: Any, options: SourceOptions, name: str) -> Path:
    if not isinstance(video, str | Path) or "://" in str(video).removeprefix("file://"):
        raise ImageError(f"{name}: a video must be a file here or a list of frames")
    path = local_path(video, options, name=name)
    if not path.is_file():
        raise ImageError(f"{name}: there is no file {path}")
    return path


def _decoded(
    path: Path, item: Mapping[str, Any], options: SourceOptions, name: str
) -> list[Image.Image]:
    """Return the frames of a file that qwen-vl-utils would choose.

    Its own readers hold the whole video, and need packages that it does not ask for.
    """
    av: Any = import_module("av")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 30)
            seconds = float((container.duration or 0) / av.time_base)
            total = stream.frames or int(seconds * fps) + 1
            _check_length(path, total, (stream.width, stream.height), name)
            wanted = _choose(item, total, fps, options, name)
            found = {}
            for index, frame in enumerate(container.decode(stream)):
                if index in wanted:
                    found[index] = shrink(frame.to_image(), options.max_pixels)
                if index >= wanted[-1]:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ImageError(f"{name}: {path} is no video that can be read: {error}") from None
    if not found:
        raise ImageError(f"{name}: {path} holds no frame")
    # The container may promise more frames than it has.
    return [found[index] for index in wanted if index in found]


def _check_length(path: Path, total: int, size: tuple[int, int], name: str) -> None:
    if total * size[0] * size[1] > _MAX_VIDEO_PIXELS:
        raise ImageError(
            f"{name}: {path} has {total} frames of {size[0]} x {size[1]}; the limit is "
            f"{_MAX_VIDEO_PIXELS:,} pixels in all, cut it or make it smaller"
        )


def _choose(
    item: Mapping[str, Any], total: int, fps: float, options: SourceOptions, name: str
) -> list[int]:
    """Return the numbers of the frames to show, by qwen-vl-utils' rule."""
    library = _library()
    part = _chosen(item, (*_FRAME_KEYS, *_TIME_KEYS))
    try:
        start, end, count = library.calculate_video_frame_range(part, total, fps)
        if "nframes" not in part:
            limit = min(int(part.get("max_frames", count)), options.max_frames, count)
            part |= {"max_frames": limit, "min_frames": min(part.get("min_frames", 2), limit)}
        number = library.smart_nframes(part, count, fps)
    except (ValueError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"{name}: cannot choose frames of this video: {reason}") from error
    if number > options.max_frames:
        raise ImageError(f"{name}: {_too_many(number, options)}")
    step = (end - start) / max(number - 1, 1)
    return [start + round(step * index) for index in range(number)]


def _library() -> Any:
    try:
        # Its own import of torchvision fails in many ways where that does not fit torch.
        return import_module("qwen_vl_utils.vision_process")
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageError(
            f"qwen-vl-utils is installed but cannot be imported ({reason}); install the "
            f"torchvision of this torch, or set reader='core'"
        ) from error


def _process(part: Mapping[str, Any], patch_size: int) -> tuple[list[Any], list[Tensor]]:
    """Let qwen-vl-utils resize one part."""
    messages = [{"role": "user", "content": [dict(part)]}]
    library = _library()
    try:
        images, videos = library.process_vision_info(messages, image_patch_size=patch_size)
    except (ValueError, AssertionError, OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"qwen-vl-utils cannot prepare this {part['type']}: {reason}") from error
    return images or [], videos or []


def _to_image(frame: Tensor) -> Image.Image:
    """Return a frame (3, height, width) of values to 255 as a picture."""
    return Image.fromarray(frame.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
