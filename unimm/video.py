"""Pictures and videos by way of qwen-vl-utils, where the extra ``vl`` is installed.

Files are opened by :mod:`unimm.picture_sources` first, which holds to its limits; qwen-vl-utils
gets images, never names, except for videos, which it alone can read.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from unimm.errors import ImageError, MissingExtraError
from unimm.picture_sources import SourceOptions, local_path, read_source, shrink

_PACKAGE = "qwen_vl_utils"
# A decoder holds the whole video, three bytes a pixel.
_MAX_VIDEO_PIXELS = 400_000_000
_IMAGE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_VIDEO_KEYS = (*_IMAGE_KEYS, "fps", "nframes", "min_frames", "total_pixels")
_FILE_KEYS = ("video_start", "video_end")


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
        raise MissingExtraError("qwen-vl-utils, which reads videos,", extra="vl")
    video = item.get("video")
    part = {"type": "video", **_chosen(item, _VIDEO_KEYS)}
    if isinstance(video, Sequence) and not isinstance(video, str | bytes):
        part["video"] = _listed(video, options, name)
        wanted = len(part["video"])
    else:
        part |= {"video": str(_checked_file(video, options, name)), **_chosen(item, _FILE_KEYS)}
        wanted = None
        if "nframes" not in part:
            part["max_frames"] = min(int(item.get("max_frames", 768)), options.max_frames)
            part.setdefault("min_frames", 2)
    _, (frames,) = _process(part, patch_size)
    if len(frames[:wanted]) > options.max_frames:
        raise ImageError(f"{name}: {_too_many(len(frames), options)}")
    return [_to_image(frame) for frame in frames[:wanted]]


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


def _checked_file(video: Any, options: SourceOptions, name: str) -> Path:
    """Return a video's path if decoding it cannot fill the memory."""
    if not isinstance(video, str | Path) or "://" in str(video).removeprefix("file://"):
        raise ImageError(f"{name}: a video must be a file here or a list of frames")
    path = local_path(video, options, name=name)
    if not path.is_file():
        raise ImageError(f"{name}: there is no file {path}")
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            seconds = float((container.duration or 0) / av.time_base)
            frames = stream.frames or int(seconds * float(stream.average_rate or 30)) + 1
            pixels = frames * stream.width * stream.height
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ImageError(f"{name}: {path} is no video that can be read: {error}") from None
    if pixels > _MAX_VIDEO_PIXELS:
        raise ImageError(
            f"{name}: {path} has {frames} frames of {stream.width} x {stream.height}; the limit "
            f"is {_MAX_VIDEO_PIXELS:,} pixels in all, cut it or make it smaller"
        )
    return path


def _process(part: Mapping[str, Any], patch_size: int) -> tuple[list[Any], list[Tensor]]:
    """Let qwen-vl-utils read and resize one part."""
    try:
        # Its own import of torchvision fails in many ways where that does not fit torch.
        from qwen_vl_utils import process_vision_info
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageError(
            f"qwen-vl-utils is installed but cannot be imported ({reason}); install the "
            f"torchvision of this torch, or set reader='core'"
        ) from error
    messages = [{"role": "user", "content": [dict(part)]}]
    try:
        images, videos = process_vision_info(messages, image_patch_size=patch_size)
    except (ValueError, AssertionError, OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"qwen-vl-utils cannot prepare this {part['type']}: {reason}") from error
    return images or [], videos or []


def _to_image(frame: Tensor) -> Image.Image:
    """Return a frame (3, height, width) of values to 255 as a picture."""
    return Image.fromarray(frame.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
