"""RAE's class-conditional DiTs (stage 2): LightningDiT and DiTDH."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from metaquery.dit import DiT, DiTConfig
from unimm.checkpoints.assemble import Slots, empty_parameters
from unimm.checkpoints.component import CPU, component_config, restore_component, save_component
from unimm.checkpoints.keymap import LABEL_TABLE, Rule, place, rae_dit
from unimm.checkpoints.tensors import Shape, TensorFolder
from unimm.config_io import to_dict
from unimm.errors import CheckpointError

KIND = "unimm_class_dit"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassDiTConfig:
    """A class-conditional DiT.

    Args:
        dit: The DiT.
        num_classes: How many classes there are.
    """

    dit: DiTConfig
    num_classes: int


class ClassDiT(nn.Module):
    """A DiT under one learned condition a class, as RAE draws ImageNet.

    Args:
        config: Of the DiT.
        num_classes: How many there are.
    """

    def __init__(self, config: DiTConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.dit = DiT(config)
        self.classes = nn.Embedding(num_classes, config.cond_dim)

    def forward(
        self, x_t: Float[Tensor, "B N D"], t: Float[Tensor, "B"], labels: Int[Tensor, "B"]
    ) -> Float[Tensor, "B N D"]:
        """Return the velocity; a negative label stands for none."""
        velocity: Tensor = self.dit(x_t, t, self.classes(labels.clamp(min=0)), labels < 0)
        return velocity


@torch.no_grad()
def read_class_dit(path: Path, *, dtype: torch.dtype = torch.float32) -> ClassDiT:
    """Return RAE's LightningDiT or DiTDH in a ``stage2_model.pt``; averaged weights if it has both.

    Raises:
        CheckpointError: The file is corrupt or of another model.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    weights = TensorFolder.of_file(path)
    config = dit_config(weights.shapes, path)
    rows = weights.shapes["y_embedder.embedding_table.weight"][0]
    with empty_parameters():
        model = ClassDiT(config, rows - 1)
    slots = Slots(model, device=CPU, dtype=dtype)
    rules = rae_dit(config.depth, config.ddt_depth)
    for key, tensor in weights.read():
        where = f"{path}: {key}"
        for ours, part in _placed(key, tensor, rules, path):
            if ours.startswith("final.out."):
                # Of a model that also learned variances, the first half is the velocity.
                slots.put(f"dit.{ours}", part[: config.latent_dim], where=where)
            else:
                slots.put(ours if ours.startswith("classes.") else f"dit.{ours}", part, where=where)
    slots.finish(where=path)
    return model.eval()


def _placed(
    key: str, tensor: Tensor, rules: tuple[Rule, ...], path: Path
) -> list[tuple[str, Tensor]]:
    try:
        placed = place(key, rules)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if placed.key is None:
        return []
    if placed.key == LABEL_TABLE:
        return [("classes.weight", tensor[:-1]), ("null_condition", tensor[-1])]
    return [(placed.key, tensor if placed.convert is None else placed.convert(tensor))]


def dit_config(shapes: Mapping[str, Shape], path: Path) -> DiTConfig:
    """Return the configuration that the tensors of a stage-2 model imply."""

    def shape(key: str) -> Shape:
        if key not in shapes:
            raise CheckpointError(f"{path} has no tensor {key!r}; it is no stage-2 model of RAE")
        return shapes[key]

    with_head = "s_embedder.proj.weight" in shapes
    backbone, latent_dim, *patch = shape(("s" if with_head else "x") + "_embedder.proj.weight")
    if patch != [1, 1]:
        raise CheckpointError(f"{path}: patches of {patch[0]} latents cannot be read, only of 1")
    head = shape("x_embedder.proj.weight")[0]
    widths = _block_widths(shapes)
    depth = widths.count(backbone) if head != backbone else len(widths) - 2 * with_head
    rope = "enc_feat_rope" if with_head else "feat_rope"
    heads = backbone // shape(f"{rope}.freqs_cos")[-1]
    try:
        return DiTConfig(
            num_latent_tokens=shape(f"{rope}.freqs_cos")[0],
            latent_dim=latent_dim,
            cond_dim=backbone,
            hidden_dim=backbone,
            depth=depth,
            num_heads=heads,
            ddt_dim=head,
            ddt_depth=len(widths) - depth,
            ddt_heads=head // shape("dec_feat_rope.freqs_cos")[-1] if with_head else heads,
            ddt_time=with_head,
            cond_silu=with_head,
            qk_norm="blocks.0.attn.q_norm.weight" in shapes,
            pos_embed="pos_embed" in shapes,
            norm="rms" if "blocks.0.norm1.weight" in shapes else "layer",
            mlp="swiglu" if "blocks.0.mlp.w12.weight" in shapes else "gelu",
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _block_widths(shapes: Mapping[str, Shape]) -> list[int]:
    numbers = {int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")}
    return [shapes[f"blocks.{number}.attn.proj.weight"][0] for number in sorted(numbers)]


def convert_dit(source: Path, destination: Path, *, dtype: torch.dtype) -> None:
    """Write RAE's class-conditional DiT as a directory of ours."""
    model = read_class_dit(source, dtype=dtype)
    config = to_dict(ClassDiTConfig(dit=model.config, num_classes=model.classes.num_embeddings))
    save_component(destination, kind=KIND, config=config, module=model, source=source)


def load_class_dit(directory: Path) -> ClassDiT:
    """Return a DiT that :func:`convert_dit` wrote."""
    config = component_config(directory, kind=KIND, cls=ClassDiTConfig)
    with empty_parameters():
        model = ClassDiT(config.dit, config.num_classes)
    return restore_component(model, directory)
