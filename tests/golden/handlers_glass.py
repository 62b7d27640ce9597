"""Golden cases of GLASS."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from tests.golden.handlers_pbas import given_batches, outside_trainer
from tests.golden.steps import (
    Arrays,
    Results,
    as_level,
    handles,
    load_heads,
    optimiser_settings,
    same_embedding,
    tensor,
)
from tests.models.stand_ins import fixed_backbone
from torch import Tensor

from flawsmith.losses import focal_loss, hard_examples
from flawsmith.models.components.batches import FeatureBatch, PairedBatch
from flawsmith.models.components.fast import AscentStep, HiddenAscent
from flawsmith.models.components.heads import Discriminator
from flawsmith.models.glass.config import GLASSConfig
from flawsmith.models.glass.functional import project_local
from flawsmith.models.glass.model import GLASS, global_anomalies


@handles("focal_two_class")
def focal_two_class(case: dict[str, Any], arrays: Arrays) -> Results:
    target, results = tensor(arrays["target"]), {}
    for gamma in case["hyper_parameters"]["gammas"]:
        probability = tensor(arrays["probability_class1"]).requires_grad_()
        loss = focal_loss(probability, target, gamma=gamma)
        loss.backward()
        pairs = zip(probability.detach()[:, None], target[:, None], strict=True)
        results |= {
            f"loss_mean_gamma{gamma}": loss,
            f"grad_probability_gamma{gamma}": probability.grad,
            f"loss_per_element_gamma{gamma}": torch.stack([focal_loss(*pair, gamma=gamma) for pair in pairs]),
        }
    return results


@handles("glass_center_table")
def center_table(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    width = arrays["projector_weight"].shape[0]
    grid = tuple(setting["cells"])
    module = GLASS(GLASSConfig(**same_embedding(width)), fixed_backbone([width], [grid]), seed=0)
    module.projector[0].weight.data = tensor(arrays["projector_weight"])
    module.projector[0].bias.data = tensor(arrays["projector_bias"])
    count = len(setting["batch_sizes"])
    levels = [as_level(arrays[f"embedded_batch{number}"], tuple(setting["cells"])) for number in range(count)]
    module.fit_center(given_batches(levels))
    return {"center_table": module.centers()}


class Ascent:
    """Watches an ascent: features after every step, and both cross-entropies of every forward pass."""

    def __init__(self, discriminator: Discriminator, hidden: Tensor, origin: Tensor, every: int | None) -> None:
        self._discriminator, self._hidden, self._origin, self._every = discriminator, hidden, origin, every
        self.features: list[Tensor] = []
        self.unprojected: list[Tensor] = []
        self.losses: list[Tensor] = []

    def __call__(self, seen: AscentStep, offset: Tensor, ascent: HiddenAscent) -> None:
        start = self._origin + offset
        if self._every and self.features and len(self.features) % self._every == 0:
            self.features[-1] = start.detach()  # now the projection has been through it
        self.unprojected.append((start + ascent.moved()).detach())
        self.features.append(self.unprojected[-1])
        self.losses.append(self._losses(seen))

    def _losses(self, seen: AscentStep) -> Tensor:
        (block,) = self._discriminator.blocks
        scaled = (self._hidden - seen.mean) * torch.rsqrt(seen.variance + block.norm.eps)
        normalised = scaled * block.norm.weight + block.norm.bias
        normal = self._discriminator.out(F.leaky_relu(normalised, 0.2))[:, 0]
        return torch.stack([F.softplus(normal).mean(), F.softplus(-seen.logits).mean()]).detach()


def ascend(
    module: GLASS, normal: Tensor, offset: Tensor, origin: Tensor, limits: tuple[Any, Any]
) -> tuple[Ascent, Tensor, tuple[Tensor, Tensor]]:
    """The ascent of one iteration on its own: what was watched, the anomalies, and the final logits of both halves."""
    hidden = module.discriminator.blocks[0].linear(normal)
    watch = Ascent(module.discriminator, hidden, origin, module.config.project_every)
    anomalies, _ = global_anomalies(offset, origin, limits, module.discriminator, hidden, module.config, watch)
    if watch.features:
        watch.features[-1] = anomalies.detach()
    both = module.discriminator(torch.cat([normal, anomalies]))
    logits = both.chunk(2)
    watch.losses.append(torch.stack([F.softplus(logits[0]).mean(), F.softplus(-logits[1]).mean()]))
    return watch, anomalies, (logits[0], logits[1])


def iteration_module(case: dict[str, Any], arrays: Arrays) -> GLASS:
    setting = case["hyper_parameters"]
    hidden, width = arrays["discriminator_hidden_weight"].shape
    config = GLASSConfig(
        **same_embedding(width),
        hidden=hidden,
        gas="projected" if setting["gradient_ascent_enabled"] else "noise",
        step_size=setting["ascent_step_size"],
        steps=setting["ascent_steps"],
        project_every=setting["project_every"],
        radius_quantile=setting["radius_quantile"],
        hard_quantile=setting["ohem_quantile"],
        focal_gamma=setting["focal_gamma"],
        **optimiser_settings(setting),
        **({} if setting["mode"] == "hypersphere" else radii(setting)),
    )
    module = GLASS(config, fixed_backbone([width], [tuple(setting["cells"])]), seed=0)
    load_heads(module.projector, module.discriminator, arrays)
    module.spherical.fill_(setting["mode"] == "hypersphere")
    return module.train()


def radii(setting: dict[str, Any]) -> dict[str, float]:
    return {"inner_radius": setting["inner_radius"], "outer_radius": setting["outer_radius"]}


def steps_alone(module: GLASS, arrays: Arrays, anomalous: Tensor, centers: Tensor, radius: Tensor) -> Results:
    """The parts of an iteration, each by the function that computes it in training."""
    config, spherical = module.config, module.hypothesis == "hypersphere"
    normal = module.projector(tensor(arrays["embedded_normal"]))
    synthetic = module.projector(tensor(arrays["embedded_synthetic"]))
    noise = tensor(arrays["noise"])
    origin, limits, offset = normal, (config.inner_radius, config.outer_radius), noise
    if spherical:
        origin, limits, offset = centers, (radius, config.shell * radius), normal + noise - centers
    watch, _, logits = ascend(module, normal, offset, origin, limits)
    used = synthetic
    if spherical:
        used = project_local(synthetic, anomalous, centers, config.shell * radius, config.shell**2 * radius)
    las = module.discriminator(used).sigmoid()
    mined = hard_examples(las, anomalous, quantile=config.hard_quantile)
    error = (las - anomalous.float()).square()
    found: dict[str, Any] = {
        "normal_features": normal,
        "synthetic_features_raw": synthetic,
        "synthetic_features_used": used,
        "bce_per_forward": torch.stack(watch.losses),
        "scores_normal_final": logits[0].sigmoid(),
        "scores_gas_final": logits[1].sigmoid(),
        "scores_las": las,
        "ohem_threshold": torch.quantile(error, config.hard_quantile),
        "ohem_selected": mined.int(),
    }
    return found | ({"features_after_step": torch.stack(watch.features)} if watch.features else {})


@handles("glass_iteration")
def glass_iteration(case: dict[str, Any], arrays: Arrays) -> Results:
    module = iteration_module(case, arrays)
    grid, images = tuple(case["hyper_parameters"]["cells"]), case["hyper_parameters"]["batch"]
    anomalous = tensor(arrays["cell_mask"]).bool().flatten()
    centers = tensor(arrays["center_table"]).repeat(images, 1)
    alone = copy.deepcopy(module)
    given = iter([tensor(arrays["noise"])])
    module.noise = lambda *_: next(given)  # type: ignore[method-assign]
    module.centers = lambda: tensor(arrays["center_table"])  # type: ignore[method-assign]
    training_step = outside_trainer(module)
    levels = [as_level(arrays[f"embedded_{half}"], grid) for half in ("normal", "synthetic")]

    losses = training_step(PairedBatch(FeatureBatch(levels[:1], None, (0, 0)), levels[1:], anomalous), 0)

    first, projector = module.discriminator.blocks[0], module.projector[0]
    with torch.no_grad():
        parts = steps_alone(alone, arrays, anomalous, centers, losses["radius"])
    return {
        **parts,
        "radius_r_t": losses["radius"],
        "loss_focal_las": losses["loss_las"],
        "loss_normal": losses["loss_normal"],
        "loss_gas": losses["loss_gas"],
        "loss_total": losses["loss"],
        "grad_projector_weight": projector.weight.grad,
        "grad_projector_bias": projector.bias.grad,
        "grad_discriminator_hidden_weight": first.linear.weight.grad,
        "grad_discriminator_hidden_bias": first.linear.bias.grad,
        "grad_discriminator_bn_gamma": first.norm.weight.grad,
        "grad_discriminator_bn_beta": first.norm.bias.grad,
        "grad_discriminator_out_weight": module.discriminator.out.weight.grad,
        "bn_running_mean_after": first.norm.running_mean,
        "bn_running_var_after": first.norm.running_var,
        "bn_update_count": first.norm.num_batches_tracked,
        "updated_projector_weight": projector.weight,
        "updated_projector_bias": projector.bias,
        "updated_discriminator_hidden_weight": first.linear.weight,
        "updated_discriminator_bn_gamma": first.norm.weight,
        "updated_discriminator_bn_beta": first.norm.bias,
        "updated_discriminator_out_weight": module.discriminator.out.weight,
    }


@handles("glass_gas_full_width")
def gas_full_width(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    hidden, width = arrays["discriminator_hidden_weight"].shape
    config = GLASSConfig(
        **same_embedding(width),
        projector_depth=0,
        hidden=hidden,
        step_size=setting["ascent_step_size"],
        steps=setting["ascent_steps"],
        project_every=setting["project_every"],
        **radii(setting),
    )
    module = GLASS(config, fixed_backbone([width], [(1, 1)]), seed=0).train()
    block = module.discriminator.blocks[0]
    block.linear.weight.data = tensor(arrays["discriminator_hidden_weight"])
    block.linear.bias.data = tensor(arrays["discriminator_hidden_bias"])
    block.norm.weight.data = tensor(arrays["discriminator_bn_gamma"])
    block.norm.bias.data = tensor(arrays["discriminator_bn_beta"])
    module.discriminator.out.weight.data = tensor(arrays["discriminator_out_weight"])
    normal, noise = tensor(arrays["normal_features"]), tensor(arrays["noise"])
    with torch.no_grad():
        watch, features, _ = ascend(module, normal, noise, normal, (config.inner_radius, config.outer_radius))
    projected = watch.unprojected[config.project_every - 1 :: config.project_every]
    return {
        "features_final_offset": features - normal - noise,
        "projection_input_norms": torch.stack([(found - normal).norm(dim=1) for found in projected]),
        "bce_per_forward": torch.stack(watch.losses),
    }
