"""Every kind of fixture and the check that compares it.

One file a group; a group is a dictionary from kind to check. A new part of the product moves its
kinds from LATER into such a dictionary.
"""

from tests.parity import (
    rae_autoencoder,
    rae_flow,
    rae_losses,
    raev2_flow,
    raev2_latents,
    scale_rae_flow,
    scale_rae_model,
)
from tests.parity.harness import Check

CHECKS: dict[str, Check] = {
    **scale_rae_flow.CHECKS,
    **scale_rae_model.CHECKS,
    **rae_flow.CHECKS,
    **rae_autoencoder.CHECKS,
    **rae_losses.CHECKS,
    **raev2_latents.CHECKS,
    **raev2_flow.CHECKS,
}

LATER: dict[str, str] = {
    **dict.fromkeys(
        (
            "svg_nextdit",
            "svg_cfg",
            "svg_transport_loss",
            "svg_ode",
            "svg_dpm",
            "svg_decoder",
            "svg_residual",
            "svg_latent_stats",
        ),
        "SVG-T2I is not part of the product yet",
    ),
}
