"""Scale-RAE around its DiT: language model, queries, read-back, joint loss, latents, selection."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaquery.official import sample_official
from tests.parity.harness import (
    FORWARD,
    TRAJECTORY,
    Check,
    Fixture,
    assert_close,
    to_tokens,
)
from training.objective import Draws, JointObjective, ObjectiveConfig, Pictures, Totals
from unimm.chat import ImageSegment, QuerySegment, Segment, TextSegment
from unimm.checkpoints.keymap import apply_rules
from unimm.checkpoints.scale_rae import OPTIONAL, ScaleRAESource, model_config, model_rules
from unimm.checkpoints.tensors import TensorFolder
from unimm.latents import LatentSpaceConfig
from unimm.latents.siglip2 import SiglipLatents
from unimm.layout import IGNORE, Layout
from unimm.model import UniMM
from unimm.scale_rae_scores import (
    AnswerScores,
    ScaleRAEScores,
    confidence,
    image_confidence,
    prompt_confidence,
    prompt_token_losses,
    rank,
)

LOGITS = 1e-4
"""Relative tolerance of logits."""

IMAGE = -200
"""What the official code writes into token ids where a picture stands."""


def _official_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json that the official code would save with such a model."""
    return {
        "model_type": "cambrian_qwen",
        "vocab_size": config["vocab"],
        "hidden_size": config["hidden"],
        "intermediate_size": config["inter"],
        "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"],
        "num_key_value_heads": config["kv"],
        "rope_theta": config["rope_theta"],
        "rms_norm_eps": config["rms_norm_eps"],
        "tie_word_embeddings": config["tie"],
        "diffusion_model_hidden_size": config["dit"],
        "diffusion_model_depth": config["ditd"],
        "diffusion_model_heads": config["dith"],
        "diffusion_model_channels": config["latent_dim"],
        "diffusion_model_z_channels": config["z"],
        "diffusion_base_dim": config["base_dim"],
        "diffusion_class_dropout_prob": config["class_dropout_prob"],
    }


def _build(fixture: Fixture) -> UniMM:
    """Load the official weights by the reader's own configuration and key map."""
    weights = fixture.weights
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    source = ScaleRAESource(
        Path("fixture"), _official_config(fixture.config), TensorFolder(shapes, {}), shapes
    )
    side = round(fixture.config["tokens"] ** 0.5)
    tower = {
        "hidden_size": fixture.config["latent_dim"],
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    latents = LatentSpaceConfig(image_size=side * 4, patch_size=4, tower=tower)
    config = model_config(source, latents)
    model = UniMM(config).eval()
    rules = model_rules(config.generator.dit.depth, tied=source.tied)
    problems = model.load_state_dict(apply_rules(weights, rules), strict=False)
    tied = ["language.lm_head.weight"] if source.tied else []
    missing = [key for key in problems.missing_keys if not key.startswith("latents.")]
    assert set(missing) <= {*OPTIONAL, *tied}
    assert not problems.unexpected_keys
    if fixture.has("input.W"):
        assert torch.equal(model.generator.dit.time_embed.frequencies, fixture.input("W"))
    return model


def _segments(token_ids: Tensor) -> list[Segment]:
    """Split official token ids at the picture."""
    ids = token_ids.flatten().tolist()
    if IMAGE not in ids:
        return [TextSegment(tuple(ids))]
    at = ids.index(IMAGE)
    return [TextSegment(tuple(ids[:at])), ImageSegment(), TextSegment(tuple(ids[at + 1 :]))]


def _embed(model: UniMM, segments: list[Segment], latents: Tensor | None = None) -> Tensor:
    return model.embed(model.lay_out([segments], pad_id=0), latents)


@torch.no_grad()
def check_llm_query_gen(fixture: Fixture) -> None:
    model = _build(fixture)
    prompt = _segments(fixture.input("input_ids"))
    logits = model.lm.logits(model.lm.read(_embed(model, prompt)).last)
    assert_close(logits, fixture.output("logits_last"), LOGITS)
    start = int(fixture.input("start_id"))
    assert int(logits.argmax()) == start
    drawing = [*prompt, TextSegment((start,)), QuerySegment()]
    states = model.lm.read(_embed(model, drawing)).hidden[:, -model.config.num_queries :]
    assert_close(states, fixture.output("hidden_queries"), FORWARD)
    assert_close(model.generator.condition(states), fixture.output("z"), FORWARD)
    latents = sample_official(
        model.generator.velocity_fn(states),
        to_tokens(fixture.input("x_end")),
        num_steps=fixture.config["inference_step"],
        shift=model.generator.config.timestep_shift,
    )
    assert_close(latents, fixture.output("latent"), TRAJECTORY)


def _rounded_logits(model: UniMM, embeds: Tensor) -> Tensor:
    """Return logits as the official code gets them on a GPU from embeddings in bfloat16.

    Its weights are float32, so only the embeddings and the first norm are rounded. Today's
    transformers would round the rotary tables, too.
    """
    rotary = model.language.get_submodule("model").get_submodule("rotary_emb")
    hook = rotary.register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0].float(), *args[1:]), kwargs), with_kwargs=True
    )
    try:
        return model.lm.logits(model.lm.hidden_states(embeds))[0]
    finally:
        hook.remove()


@torch.no_grad()
def check_latent_readback(fixture: Fixture) -> None:
    model, latents = _build(fixture), fixture.input("latent")
    embeds = _embed(model, _segments(fixture.input("ref_ids")), latents)
    assert_close(embeds, fixture.output("inputs_embeds_fp32"), FORWARD)
    prompt = fixture.input("ref_prompt_ids")[0]
    start = embeds.shape[1] - len(prompt)
    exact = model.lm.logits(model.lm.hidden_states(embeds))[0]
    assert_close(exact, fixture.output("logits_fp32")[0], LOGITS)
    losses = prompt_token_losses(exact, prompt, start=start)
    assert_close(losses.mean()[None], fixture.output("prompt_loss_fp32"), LOGITS)
    conf = prompt_confidence(exact, len(prompt), start=start)
    assert_close(conf[None], fixture.output("prompt_conf_fp32"), LOGITS)
    _check_rounded(fixture, model, embeds, prompt)
    _check_image_confidence(fixture, model)
    _check_answer(fixture, model)


def _check_rounded(fixture: Fixture, model: UniMM, embeds: Tensor, prompt: Tensor) -> None:
    # One unit in the last place of bfloat16: a value may lie between two of its numbers.
    assert_close(embeds.bfloat16().float(), fixture.output("inputs_embeds_bf16"), 2**-8)
    logits = _rounded_logits(model, embeds.bfloat16())
    assert_close(logits, fixture.output("logits")[0], LOGITS)
    start = embeds.shape[1] - len(prompt)
    losses = prompt_token_losses(logits, prompt, start=start)
    assert_close(losses, fixture.output("prompt_token_loss"), LOGITS)
    assert_close(losses.mean()[None], fixture.output("prompt_loss"), LOGITS)
    conf = prompt_confidence(logits, len(prompt), start=start)
    assert_close(conf[None], fixture.output("prompt_conf"), LOGITS)


def _check_image_confidence(fixture: Fixture, model: UniMM) -> None:
    segments = _segments(fixture.input("gen_ids"))
    embeds = _embed(model, segments, fixture.input("latent")).bfloat16()
    logits = _rounded_logits(model, embeds)
    assert isinstance(segments[0], TextSegment)
    # One of the tokens before the picture is its start marker, one the text written before that.
    conf = image_confidence(logits, start=len(segments[0].token_ids))
    assert_close(conf[None], fixture.output("image_conf"), LOGITS)


def _check_answer(fixture: Fixture, model: UniMM) -> None:
    embeds = _embed(model, _segments(fixture.input("qa_ids")), fixture.input("latent"))
    embeds = embeds.bfloat16()
    tokens, chosen, confidences = [], [], []
    for _ in fixture.output("answer_ids"):
        logits = _rounded_logits(model, embeds)[-1]
        token = logits.argmax()
        tokens.append(token)
        chosen.append(logits[token])
        confidences.append(confidence(logits))
        # The new token is not rounded, and turns what was read before into float32 again.
        embeds = torch.cat([embeds.float(), model.lm.embed(token[None, None])], dim=1)
    assert torch.equal(torch.stack(tokens), fixture.output("answer_ids"))
    assert_close(torch.stack(chosen), fixture.output("answer_logits"), LOGITS)
    assert_close(torch.stack(confidences), fixture.output("answer_conf"), LOGITS)


def _training_layout(fixture: Fixture) -> Layout:
    """Return the official batch: pictures to read by projector, the one to draw by queries."""
    ids, mask = fixture.input("input_ids"), fixture.input("attention_mask")
    is_image = ids == IMAGE
    is_answer = fixture.input("answer_img_mask").expand_as(ids)
    flat = torch.arange(ids.numel()).view_as(ids)
    return Layout(
        token_ids=ids.masked_fill(is_image, 0),
        mask=mask,
        labels=fixture.input("labels"),
        image_index=flat[is_image & ~is_answer],
        query_index=flat[is_image & is_answer],
    )


def check_joint_loss(fixture: Fixture) -> None:
    model = _build(fixture)
    layout = _training_layout(fixture)
    answers = fixture.input("answer_img_mask")[:, 0]
    objective = JointObjective(model, ObjectiveConfig(flow_weight=fixture.config["vision_coef"]))
    latents = fixture.input("latents")
    drawn = latents[answers]
    of = Totals(float((layout.labels[:, 1:] != IGNORE).sum()), float(len(drawn)))
    losses = objective(
        layout,
        Pictures(latents[~answers], drawn, torch.ones(len(drawn))),
        Draws(fixture.input("t")[answers], fixture.input("noise")[answers], None),
        of,
    )
    assert_close(losses["text"][None], fixture.output("loss_ce"), FORWARD)
    assert_close(losses["flow"][None], fixture.output("loss_diff"), FORWARD)
    loss = losses["loss"]
    assert_close(loss[None], fixture.output("loss"), FORWARD)
    torch.autograd.backward(loss)
    rules = model_rules(model.config.generator.dit.depth, tied=fixture.config["tie"])
    gradients = apply_rules(fixture.under("output.grad."), rules)
    assert gradients
    for name, expected in gradients.items():
        actual = model.get_parameter(name).grad
        assert actual is not None
        assert_close(actual, expected, FORWARD)


@torch.no_grad()
def check_siglip_latent(fixture: Fixture) -> None:
    config = fixture.config
    tower = {key: value for key, value in config.items() if key != "patch_size"}
    space = SiglipLatents(
        LatentSpaceConfig(
            image_size=config["image_size"], patch_size=config["patch_size"], tower=tower
        )
    ).eval()
    space.tower.load_state_dict(fixture.weights, strict=True)
    pixels = fixture.input("pixels") / 2 + 0.5
    assert_close(space.hidden_states(pixels), fixture.output("hidden_last"), FORWARD)
    assert_close(space.encode(pixels), fixture.output("latent"), FORWARD)
    rounded, expected = space.encode_rounded(pixels).float(), fixture.output("latent_bf16_path")
    # A value between two bfloat16 numbers may go to either: few may, and by one unit.
    assert ((rounded - expected).abs() <= expected.abs() * 2**-7 + 2**-10).all()
    assert (rounded == expected).float().mean() > 0.95


def check_selection(fixture: Fixture) -> None:
    columns = fixture.config["columns"]
    scores = [
        _scores(dict(zip(columns, row, strict=True))) for row in fixture.input("scores").tolist()
    ]
    rankings = fixture.under("output.ranking.")
    assert rankings
    for metric, expected in rankings.items():
        ours = rank(scores, metric)  # type: ignore[arg-type]
        assert ours == expected.tolist()
        best = fixture.output(f"selected.{metric}").tolist()
        assert ours[: fixture.config["keep"]] == best


def _scores(row: dict[str, float]) -> ScaleRAEScores:
    answer = {field: row[field] for field in AnswerScores.__dataclass_fields__}
    return ScaleRAEScores(
        answer=AnswerScores(**answer),
        prompt_loss=row["prompt_loss"],
        prompt_conf_score=row["prompt_conf_score"],
        image_conf_score=row["image_conf_score"],
    )


CHECKS: dict[str, Check] = {
    "llm_query_gen": check_llm_query_gen,
    "latent_readback": check_latent_readback,
    "joint_loss": check_joint_loss,
    "siglip_latent": check_siglip_latent,
    "selection": check_selection,
}
