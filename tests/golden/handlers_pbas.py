"""Golden cases of PBAS and of what it shares with GLASS."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tests.golden.steps import (
    Arrays,
    Results,
    as_level,
    handles,
    load_heads,
    load_norm,
    optimiser_settings,
    same_embedding,
    tensor,
)
from tests.models.stand_ins import fixed_backbone
from torch import Tensor, nn

from flawsmith.features.backbones import load_backbone
from flawsmith.features.patch_embedding import PatchEmbedding, as_rows
from flawsmith.models.aand.config import AANDConfig
from flawsmith.models.aand.training import adam
from flawsmith.models.components.batches import FeatureBatch
from flawsmith.models.components.heads import Discriminator, Projector
from flawsmith.models.components.score_maps import UpsampleAndSmooth
from flawsmith.models.pbas.config import PBASConfig
from flawsmith.models.pbas.functional import nearest_center, ray_anomalies
from flawsmith.models.pbas.model import PBAS
from flawsmith.models.slsg.config import SLSGConfig
from flawsmith.models.slsg.model import SLSG


@handles("patch_embedding")
def patch_embedding(case: dict[str, Any], arrays: Arrays) -> Results:
    names = sorted(name for name in arrays if name.startswith("level"))
    levels = [tensor(arrays[name]) for name in names]
    results = {}
    for setting in case["hyper_parameters"]["settings"]:
        patch, pooled, width = (setting[key] for key in ("patch_size", "pretrain_dim", "target_dim"))
        embed = PatchEmbedding([level.shape[1] for level in levels], patch_size=patch, level_width=pooled, width=width)
        results[f"embedded_patch{patch}_pretrain{pooled}_target{width}"] = as_rows(embed(levels))
    return results


@handles("projector_discriminator")
def projector_discriminator(case: dict[str, Any], arrays: Arrays) -> Results:
    hidden, width = arrays["discriminator_hidden_weight"].shape
    projector, discriminator = Projector(width), Discriminator(width, hidden)
    load_heads(projector, discriminator, arrays)
    projected = projector(tensor(arrays["features"]))
    evaluated = discriminator.eval()(projected).sigmoid()
    trained = discriminator.train()(projected).sigmoid()
    norm = discriminator.blocks[0].norm
    return {
        "projected": projected,
        "scores_eval": evaluated,
        "scores_train": trained,
        "bn_running_mean_after": norm.running_mean,
        "bn_running_var_after": norm.running_var,
    }


@handles("projector_discriminator_deep")
def projector_discriminator_deep(case: dict[str, Any], arrays: Arrays) -> Results:
    width = arrays["features"].shape[1]
    layers = sum(name.startswith("projector_layer") and name.endswith("_weight") for name in arrays)
    blocks = sum(name.startswith("discriminator_block") and name.endswith("_bn_gamma") for name in arrays)
    projector, discriminator = Projector(width, layers), Discriminator(width, None, blocks + 1)
    for number, layer in enumerate(projector, 1):
        layer.weight.data = tensor(arrays[f"projector_layer{number}_weight"])
        layer.bias.data = tensor(arrays[f"projector_layer{number}_bias"])
    for number, block in enumerate(discriminator.blocks, 1):
        name = f"discriminator_block{number}"
        assert block.linear.weight.shape == arrays[f"{name}_weight"].shape
        block.linear.weight.data = tensor(arrays[f"{name}_weight"])
        block.linear.bias.data = tensor(arrays[f"{name}_bias"])
        parts = ("gamma", "beta", "running_mean", "running_var")
        load_norm(block.norm, *(arrays[f"{name}_bn_{part}"] for part in parts))
    discriminator.out.weight.data = tensor(arrays["discriminator_out_weight"])
    projected = projector(tensor(arrays["features"]))
    return {
        "projected": projected,
        "scores_eval": discriminator.eval()(projected).sigmoid(),
        "scores_train": discriminator.train()(projected).sigmoid(),
    }


@handles("glass_counts")
def head_counts(case: dict[str, Any], arrays: Arrays) -> Results:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector, discriminator = Projector(1536), Discriminator(1536, 1024)
    return {
        "projector_parameters": sum(p.numel() for p in projector.parameters()),
        "discriminator_parameters": sum(p.numel() for p in discriminator.parameters()),
        "projector_weight_std": projector[0].weight.std(),
        "discriminator_hidden_weight_std": discriminator.blocks[0].linear.weight.std(),
        "projector_bias_absmax": projector[0].bias.abs().max(),
    }


def given_batches(levels: list[Tensor]) -> list[FeatureBatch]:
    """Batches of given level maps, in place of those drawn from images."""
    return [FeatureBatch([level], None, (0, step)) for step, level in enumerate(levels)]


@handles("pbas_center")
def center_initialisation(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    grid, width = tuple(setting["cells"]), setting["channels"]
    config = PBASConfig(**same_embedding(width), center="aligned", center_smoothing=setting["new_weight"])
    module = PBAS(config, fixed_backbone([width], [grid]), seed=0)
    module.projector[0].weight.data = tensor(arrays["projector_weight"])
    module.projector[0].bias.data = tensor(arrays["projector_bias"])
    count, positions = len(setting["batch_sizes"]), grid[0] * grid[1]
    levels = [as_level(arrays[f"embedded_batch{number}"], grid) for number in range(count)]
    tables = []
    for stop in range(1, count + 1):
        module.fit_centers(given_batches(levels[:stop]))
        tables.append(module.centers.clone())
    means = [module.project([level]).unflatten(0, (-1, positions)).mean(0) for level in levels]
    nearest = [nearest_center(mean, table) for mean, table in zip(means[1:], tables[:-1], strict=True)]
    return {"center_after_batch": torch.stack(tables), "nearest_row": torch.stack(nearest)}


def iteration_module(case: dict[str, Any], arrays: Arrays) -> PBAS:
    hidden, width = arrays["discriminator_hidden_weight"].shape
    setting = case["hyper_parameters"]
    degree, optimisers = setting["anomaly_degree"], optimiser_settings(setting)
    config = PBASConfig(**same_embedding(width), hidden=hidden, anomaly_degree=degree, **optimisers)
    module = PBAS(config, fixed_backbone([width], [tuple(setting["cells"])]), seed=0)
    load_heads(module.projector, module.discriminator, arrays)
    module.centers = tensor(arrays["center_table"])
    return module.train()


def outside_trainer(model: Any) -> Any:
    """The training step of a model with its own optimizers, without a trainer around it."""
    module = model.training_module()
    optimizers = module.configure_optimizers()
    module.optimizers = lambda: optimizers
    module.manual_backward = lambda loss: loss.backward()
    model.start_epoch()
    return module.training_step


@handles("pbas_iteration")
def pbas_iteration(case: dict[str, Any], arrays: Arrays) -> Results:
    module = iteration_module(case, arrays)
    training_step = outside_trainer(module)
    grid = tuple(case["hyper_parameters"]["cells"])
    batches = [FeatureBatch([as_level(rows, grid)], None, (0, step)) for step, rows in enumerate(arrays["embedded"])]
    plain = copy.deepcopy(module.discriminator)
    with torch.no_grad():
        features = module.project(batches[0].levels)
        nearest = nearest_center(features, module.centers)
        anomalies = ray_anomalies(features, module.centers, module.config.anomaly_degree)
        normal, anomalous = plain(torch.cat([features, anomalies])).sigmoid().chunk(2)
    losses = training_step(batches[0], 0)
    first, projector = module.discriminator.blocks[0], module.projector[0]
    results = {
        "features": features,
        "nearest_row": nearest,
        "distances": (features - module.centers[nearest]).norm(dim=1),
        "mean_distance": losses["loss_boundary"],
        "anomaly_features": anomalies,
        "scores_normal": normal,
        "scores_anomaly": anomalous,
        "loss_normal": losses["loss_normal"],
        "loss_anomaly": losses["loss_anomaly"],
        "loss_total": losses["loss"],
        "grad_projector_weight": projector.weight.grad,
        "grad_projector_bias": projector.bias.grad,
        "grad_discriminator_hidden_weight": first.linear.weight.grad,
        "grad_discriminator_bn_gamma": first.norm.weight.grad,
        "grad_discriminator_bn_beta": first.norm.bias.grad,
        "grad_discriminator_out_weight": module.discriminator.out.weight.grad,
        "bn_running_mean_after": first.norm.running_mean,
        "bn_running_var_after": first.norm.running_var,
        "updated_projector_weight": projector.weight,
        "updated_discriminator_hidden_weight": first.linear.weight,
    }
    results = {name: value.detach().clone() for name, value in results.items()}
    for step in range(1, len(batches)):
        losses = training_step(batches[step], step)
    return results | {
        "loss_total_iteration3": losses["loss"],
        "projector_weight_after_3_iterations": projector.weight,
        "discriminator_hidden_weight_after_3_iterations": first.linear.weight,
    }


def inference_model(case: dict[str, Any], arrays: Arrays) -> PBAS:
    setting = case["hyper_parameters"]
    hidden, width = arrays["discriminator_hidden_weight"].shape
    grid, size = tuple(setting["cells"]), tuple(setting["output_size"])
    config = PBASConfig(**same_embedding(width), hidden=hidden, image_size=size, sigma=setting["sigma"])
    model = PBAS(config, fixed_backbone([width], [grid], [as_level(arrays["embedded"], grid)]), seed=0)
    load_heads(model.projector, model.discriminator, arrays, state="")
    return model.eval()


@handles("inference")
def inference(case: dict[str, Any], arrays: Arrays) -> Results:
    with torch.no_grad():
        output = inference_model(case, arrays)(torch.empty(0))
    return {"image_scores": output.score, "maps": output.map}


@handles("postprocess")
def postprocess(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, results = case["hyper_parameters"], {}
    for number, sizes in enumerate(setting["maps"]):
        low, shapes = tensor(arrays[f"low{number}"]), (tuple(sizes["low"]), tuple(sizes["full"]))
        results[f"score_max_raw{number}"] = low.amax(dim=(1, 2))
        for align in (False, True):
            smooth = UpsampleAndSmooth(*shapes, sigma=setting["sigma"], align_corners=align)
            results[f"smoothed_align_{str(align).lower()}{number}"] = smooth(low)
        plain = UpsampleAndSmooth(*shapes, sigma=0, align_corners=True)
        results[f"upsampled_align_true{number}"] = plain(low)
        results[f"score_max_smoothed{number}"] = results[f"smoothed_align_true{number}"].amax(dim=(1, 2))
    return results


@handles("optimisers")
def all_optimisers(case: dict[str, Any], arrays: Arrays) -> Results:
    settings, results = case["hyper_parameters"]["optimisers"], {}
    projector, discriminator = (settings[f"glass_pbas_{part}"] for part in ("projector", "discriminator"))
    config = PBASConfig(
        **same_embedding(4),
        hidden=4,
        projector_lr=projector["lr"],
        projector_weight_decay=projector["weight_decay"],
        discriminator_lr=discriminator["lr"],
        discriminator_weight_decay=discriminator["weight_decay"],
        discriminator_optimiser=discriminator["type"].lower(),
    )
    made = PBAS(config, fixed_backbone([4], [(1, 1)]), seed=0).make_optimizers()
    second = AANDConfig(lr=settings["aand_both_stages"]["lr"], betas=settings["aand_both_stages"]["betas"])
    both = adam([nn.Parameter(torch.zeros(1))], second)
    third = SLSGConfig(**{name: value for name, value in settings["slsg_segmentation"].items() if name != "type"})
    (segmentation,) = SLSG(third, load_backbone("resnet18@random", strides=third.strides)).make_optimizers()
    names = ("glass_pbas_projector", "glass_pbas_discriminator", "aand_both_stages", "slsg_segmentation")
    optimisers = (*made, both, segmentation)
    for name, optimiser in zip(names, optimisers, strict=True):
        parameter = nn.Parameter(tensor(arrays["start"]))
        optimiser.param_groups.clear()
        optimiser.add_param_group({"params": [parameter]})
        moved = []
        for gradient in arrays["gradients"]:
            parameter.grad = tensor(gradient)
            optimiser.step()
            moved.append(parameter.detach() - tensor(arrays["start"]))
        results[f"displacement_{name}"] = torch.stack(moved)
    return results
