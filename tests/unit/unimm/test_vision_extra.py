"""The extra ``vl``: pictures and videos by way of the real qwen-vl-utils.

It imports torchvision, whose build for GPUs breaks both its own import and that of transformers
beside a torch for CPUs. So it runs in a process of its own, which skips the two modules of
torchvision that fail; ``$UNIMM_VL_PATH`` names the folder that
``pip install --no-deps --target FOLDER qwen-vl-utils torchvision av requests packaging urllib3 idna
certifi charset-normalizer`` filled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("UNIMM_VL_PATH", "")
ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import json, sys, types
import torch, transformers
before = {name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")}
import unimm.pipeline
from unimm.testing import tiny_pipeline
pipeline = tiny_pipeline()
ours = {name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")}
for name in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
    sys.modules[name] = types.ModuleType(name)
sys.path.append(sys.argv[1])
import av, numpy as np
from PIL import Image
from unimm.errors import UserError
from unimm.messages import read_messages
from unimm.picture_sources import SourceOptions
folder = sys.argv[2]
values = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
square, wide = Image.fromarray(values), Image.new("RGB", (300, 150), "red")
exif = Image.Exif()
exif[0x0112] = 6
wide.save(f"{folder}/turned.jpg", exif=exif)
open(f"{folder}/turned.jpg.txt", "w").write("hello")
with av.open(f"{folder}/a.mp4", "w") as file:
    stream = file.add_stream("mpeg4", rate=4)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for number in range(8):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * number, np.uint8), "rgb24")
        for packet in stream.encode(frame):
            file.mux(packet)
    for packet in stream.encode():
        file.mux(packet)

def pictures(*parts, **limits):
    options = SourceOptions(reader="qwen-vl-utils", **limits)
    content = [*parts, {"type": "text", "text": "what is it?"}]
    (message,) = read_messages([{"role": "user", "content": content}], options, patch_size=8)
    return message.pictures

def refused(*parts, **limits):
    try:
        pictures(*parts, **limits)
    except UserError as error:
        return str(error)

def video(source, **settings):
    return {"type": "video", "video": source, **settings}

same, = pictures({"type": "image", "image": square})
turned, = pictures({"type": "image", "image": f"file://{folder}/turned.jpg"})
small, = pictures({"type": "image", "image": wide, "max_pixels": 8192})
frames = pictures(video([square] * 3))
film = [f.getpixel((8, 8))[0] for f in pictures(video(f"{folder}/a.mp4", nframes=4))]
bounded = pictures(video(f"{folder}/a.mp4"), max_frames=2)
late = pictures(video(f"{folder}/a.mp4", nframes=2, video_start=1.0))[0].getpixel((8, 8))[0]
answer = pipeline.answer(
    [{"role": "user", "content": [{"type": "image", "image": square},
                                  {"type": "text", "text": "what color"}]}],
    sources=SourceOptions(reader="qwen-vl-utils"),
)
print(json.dumps({
    "imported by us": sorted(ours - before),
    "same": bool((np.asarray(same) == values).all()),
    "turned": turned.size, "small": small.size,
    "frames": len(frames), "frame": frames[0].size,
    "film": film, "bounded": len(bounded), "late": late,
    "many": refused(video(f"{folder}/a.mp4", nframes=8), max_frames=4),
    "broken": refused(video(f"{folder}/turned.jpg.txt")),
    "too many": refused(video([square] * 3), max_frames=2),
    "thin": refused({"type": "image", "image": Image.new("RGB", (2000, 2))}),
    "url": refused(video("https://example.org/a.mp4")),
    "not a video": refused(video(f"{folder}/turned.txt")),
    "answer": isinstance(answer.text, str),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(FOLDER) / "qwen_vl_utils").is_dir(),
    reason="$UNIMM_VL_PATH names no folder with qwen-vl-utils and torchvision",
)
def test_qwen_vl_utils_reads_and_resizes(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, FOLDER, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(process.stdout.strip().splitlines()[-1])
    assert found["imported by us"] == []
    # Both sides are multiples of 16, twice the patch: nothing is resized.
    assert found["same"]
    assert found["turned"] == [144, 304]
    assert found["small"][0] * found["small"][1] <= 8192
    assert found["frames"] == 3
    assert all(side % 16 == 0 for side in found["frame"])
    assert len(found["film"]) == 4
    assert found["film"] == sorted(found["film"])
    assert found["film"][-1] - found["film"][0] > 100
    assert found["bounded"] == 2
    assert found["late"] > 100
    assert "1 to 4 frames" in found["many"]
    assert "no video that can be read" in found["broken"]
    assert "1 to 2 frames" in found["too many"]
    assert "qwen-vl-utils cannot prepare this image" in found["thin"]
    assert "a video must be a file here" in found["url"]
    assert "there is no file" in found["not a video"]
    assert found["answer"]
