"""The planned memory of activations is that of the real forward pass."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from training.activations import MicroBatch, activation_bytes
from training.build import ModelRecipe, prepare
from training.objective import JointObjective, ObjectiveConfig, Pictures, Totals, draw
from unimm.chat import ChatTemplate
from unimm.layout import IGNORE, Layout
from unimm.model import UniMM
from unimm.testing import tiny_config, tiny_tokenizer

ROWS = 6


def model_of(*, checkpoints: bool) -> UniMM:
    """Return a model whose activations outweigh what a batch is made of."""
    config = tiny_config()
    language = {**config.language, "num_hidden_layers": 4}
    dit = replace(config.generator.dit, depth=4)
    generator = replace(config.generator, dit=dit)
    model = UniMM(replace(config, language=language, generator=generator))
    prepare(model, ModelRecipe(config={"a": 1}, checkpoint_activations=checkpoints))
    return model


def layout_of(model: UniMM) -> Layout:
    tokenizer = tiny_tokenizer()
    template = ChatTemplate(tokenizer, model.config.chat)
    rows = [template.draw("a picture of a red circle", reply="ok") for _ in range(ROWS)]
    return model.lay_out(rows, pad_id=0)


def measured_bytes(model: UniMM, layout: Layout, *, loss_chunks: int = 1) -> int:
    """Return the memory of all that a real forward pass of the objective keeps."""
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in weights:
            kept[key] = tensor
        return tensor

    objective = JointObjective(model, ObjectiveConfig(loss_chunks=loss_chunks))
    latents = torch.randn(ROWS, model.config.latents.num_tokens, model.config.latents.dim)
    seeds = torch.arange(ROWS)
    draws = draw(seeds, latents, model, objective.config)
    pictures = Pictures(latents[:0], latents, torch.ones(ROWS))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(layout, pictures, draws, Totals(1, 1))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def planned_bytes(model: UniMM, layout: Layout, **changes: Any) -> int:
    rows, length = layout.token_ids.shape
    tokens = int((layout.labels != IGNORE).sum())
    batch = MicroBatch(rows=rows, length=length, tokens=tokens, drawn=ROWS)
    return activation_bytes(model.to("meta"), replace(batch, **changes), is_checkpointed=False)


def test_what_is_planned_is_what_a_forward_pass_keeps() -> None:
    model = model_of(checkpoints=False)
    layout = layout_of(model)
    measured = measured_bytes(model, layout)
    logits = 4 * int((layout.labels != IGNORE).sum()) * model.config.language["vocab_size"]
    assert planned_bytes(model, layout) - logits == pytest.approx(measured, rel=0.1)


def test_logits_in_chunks_are_not_kept() -> None:
    model = model_of(checkpoints=False)
    layout = layout_of(model)
    tokens = int((layout.labels != IGNORE).sum())
    logits = 4 * tokens * model.config.language["vocab_size"]
    whole, chunked = (measured_bytes(model, layout, loss_chunks=n) for n in (1, 4))
    assert whole - chunked == pytest.approx(logits, rel=0.05)
    # Not kept, and yet one chunk's are there for a while, with their gradient.
    planned = planned_bytes(model, layout, loss_chunks=4)
    assert planned - 2 * logits / 4 == pytest.approx(chunked, rel=0.1)


def test_checkpointing_keeps_the_inputs_of_blocks_and_computes_one_block_again() -> None:
    plain, saving = (model_of(checkpoints=checkpoints) for checkpoints in (False, True))
    layout = layout_of(plain)
    batch = MicroBatch(rows=ROWS, length=layout.token_ids.shape[1], tokens=10, drawn=ROWS)
    whole = activation_bytes(plain.to("meta"), batch, is_checkpointed=False)
    saved = activation_bytes(saving.to("meta"), batch, is_checkpointed=True)
    assert 0.1 * whole < saved < 0.6 * whole


def test_activations_grow_with_rows_and_without_drawing_there_are_fewer() -> None:
    model = model_of(checkpoints=False)
    layout = layout_of(model)
    once = planned_bytes(model, layout)
    twice = planned_bytes(
        model, layout, rows=2 * ROWS, drawn=2 * ROWS, tokens=2 * int((layout.labels >= 0).sum())
    )
    assert twice == pytest.approx(2 * once, rel=0.05)
    assert planned_bytes(model, layout, drawn=0) < once
