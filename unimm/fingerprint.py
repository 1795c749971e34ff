"""Name a latent space, so that latents of another one are never mistaken for its own."""

import json
from hashlib import blake2b

import torch

from unimm.checkpoints.names import canonical
from unimm.config_io import to_dict
from unimm.model import UniMM

_DECODERS = ("decoder.", "vae.decoder.", "vae.post_quant_conv.")


def latent_space_id(model: UniMM, *, seen: bool = False) -> str:
    """Return an identifier of the encoder: kind, shape, and a hash of settings and weights.

    The pixel decoder has no part in it: a better one reads the same latents.

    Args:
        model: The model.
        seen: Of the space that it sees in, where that is another than the one it draws in. That
            identifier stands in no file, so it is the same in every precision: that of weights
            rounded to bfloat16.
    """
    config, space = model.config.latents, model.latents
    precision = torch.float32
    if seen and model.config.vision is not None and model.vision is not None:
        config, space, precision = model.config.vision, model.vision, torch.bfloat16
    settings = {key: value for key, value in to_dict(config).items() if key != "decoder"}
    if settings["layers"] is None:
        del settings["layers"]  # younger than the identifiers of models that have one layer
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=6)
    state = {canonical(name): tensor for name, tensor in space.state_dict().items()}
    for name, tensor in sorted(state.items()):
        if not name.startswith(_DECODERS):
            digest.update(name.encode())
            values = tensor.detach().to("cpu", precision).to(torch.float32)
            digest.update(values.contiguous().numpy().data)
    return f"{config.kind}-{config.num_tokens}x{config.dim}-{digest.hexdigest()}"
