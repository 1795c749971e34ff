from pathlib import Path

import pytest
import safetensors.torch
import torch

from unimm.errors import LatentsError
from unimm.latents_file import load_latents, save_latents


def test_latents_are_read_back_bit_for_bit_with_their_notes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    latents = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    save_latents(path, latents, space="abc", notes={"prompt": "un café"})
    file = load_latents(path)
    assert torch.equal(file.in_space("abc"), latents)
    assert file.notes == {"prompt": "un café"}


def test_latents_of_another_space_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_latents(path, torch.zeros(1, 4, 3), space="abc")
    with pytest.raises(LatentsError, match="belongs to the latent space abc, this model's is xyz"):
        load_latents(path).in_space("xyz")


def test_what_holds_no_latents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(LatentsError, match="there is no file"):
        load_latents(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(LatentsError, match="damaged"):
        load_latents(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(LatentsError, match="holds no latents"):
        load_latents(path)
    safetensors.torch.save_file({"latents": torch.zeros(1, 4, 3)}, path)
    with pytest.raises(LatentsError, match="holds no latents"):
        load_latents(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_latents(path, torch.zeros(1, 4, 3), space="abc")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(LatentsError, match="damaged"):
        load_latents(path)
