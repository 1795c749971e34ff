"""Write small data sets in every layout."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Members = Sequence[tuple[str, bytes]]


def png(shade: int = 0, size: tuple[int, int] = (20, 16)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 100, 200)).save(content, format="PNG")
    return content.getvalue()


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)
    ]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def drawing_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """Return samples that draw a picture each, the number of a sample in its text."""
    members = []
    for number in range(first, first + count):
        conversations = turns(f"draw {number}", "here\n<image>")
        record = {"conversations": conversations, "image_filename": f"{number}.png"}
        members += [(f"{number}.json", json.dumps(record).encode()), (f"{number}.png", png(number))]
    return members


def write_tars(folder: Path, sizes: Sequence[int]) -> Path:
    """Write tars of the given sizes and a manifest; return the manifest."""
    first = 0
    names = []
    for number, size in enumerate(sizes):
        write_tar(folder / f"{number:03d}.tar", drawing_members(first, size))
        names.append(f"{number:03d}.tar")
        first += size
    manifest = folder / "demo_wds.json"
    manifest.write_text(json.dumps({"dataset_name": "demo", "tars": names}))
    return manifest


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def reading_records(folder: Path, count: int) -> list[dict[str, Any]]:
    """Write pictures; return questions about them."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / "pictures" / f"{number}.png").write_bytes(png(number))
    return [
        {
            "image": f"pictures/{n}.png",
            "conversations": turns(f"<image>\nwhat is {n}?", f"it is {n}"),
        }
        for n in range(count)
    ]


def write_parquet(path: Path, count: int) -> Path:
    """Write samples that draw a picture each."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in range(count)],
        "conversations": [turns(f"draw {n}", "<image>") for n in range(count)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    table.to_parquet(str(path))
    return path
