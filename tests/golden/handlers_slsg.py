"""Golden cases of SLSG."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tests.golden.handlers_aand import by_rule, formula
from tests.golden.steps import Arrays, Results, handles, tensor
from torch import Tensor, nn

from flawsmith.features.backbones import load_backbone
from flawsmith.models.slsg.config import PRESETS
from flawsmith.models.slsg.functional import (
    anomaly_probability,
    image_score,
    max_relative,
    position_encoding,
    position_similarity,
    segmentation_loss,
)
from flawsmith.models.slsg.networks import Graph, SegNet, SGBlock, UnpooledResNet, grid_of, make_encoder

OFFICIAL = PRESETS["official"]


@handles("slsg_scoring")
def scoring(case: dict[str, Any], arrays: Arrays) -> Results:
    maps = anomaly_probability(tensor(arrays["logits"]))
    scores, labels = image_score(maps, top_pixels=case["hyper_parameters"]["top"]), arrays["labels"]
    return {
        "image_scores": scores,
        "image_auroc": roc_auc_score(labels, scores),
        "pixel_auroc": roc_auc_score(arrays["masks"].ravel(), maps.flatten()),
        "image_auroc_max": roc_auc_score(labels, maps.amax(dim=(1, 2))),
    }


@handles("slsg_losses")
def losses(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    final, auxiliary = (tensor(arrays[f"logits_{kind}"]).requires_grad_() for kind in ("final", "auxiliary"))
    losses = segmentation_loss(
        final,
        auxiliary,
        tensor(arrays["mask"])[:, 0] > 0,
        weights=setting["weights"],
        gamma=setting["focal_gamma"],
    )
    losses["loss"].backward()
    return {
        "loss_focal": losses["loss_focal"],
        "loss_l1": losses["loss_l1"],
        "loss_l1_auxiliary": losses["loss_auxiliary"],
        "loss_total": losses["loss"],
        "grad_logits_final": final.grad,
        "grad_logits_auxiliary": auxiliary.grad,
    }


@handles("slsg_position")
def positions(case: dict[str, Any], arrays: Arrays) -> Results:
    results: dict[str, Any] = {}
    for number, table in enumerate(case["hyper_parameters"]["tables"]):
        grid = table["grid"]
        similarity = position_similarity(table["dim"], (grid, grid))
        rows = arrays[f"table{number}_rows"]
        encoding = position_encoding(table["dim"], (grid, grid))[[0, 1, grid, grid + 2]]
        results |= {
            f"similarity{number}": similarity[:: table["row_stride"]],
            f"table{number}_rows": encoding[:, :: table["dim"] // rows.shape[1]],
            f"minimum{number}": similarity.min(),
        }
    return results


NORM = {"gamma": "weight", "beta": "bias"}


def block_layer(block: SGBlock, name: str) -> nn.Module:
    """The layer of a released SG block that a case means."""
    layers: dict[str, Any] = {
        "input_conv": block.input[0],  # type: ignore[index]
        "input_norm": block.input[1],  # type: ignore[index]
        "query_key_conv": block.query[0],  # type: ignore[index]
        "query_key_norm": block.query[1],  # type: ignore[index]
        "value_conv": block.value,
        "attention_output_conv": block.mix,
        "update_conv": block.update[0],  # type: ignore[index]
        "update_norm": block.update[1],  # type: ignore[index]
        "output_conv": block.update[3],  # type: ignore[index]
        "output_norm": block.update[4],  # type: ignore[index]
    }
    return layers[name]


def released_block(arrays: Arrays, setting: dict[str, Any]) -> SGBlock:
    block = SGBlock(setting["channels"], (setting["grid"],) * 2, released=True, neighbours=setting["neighbours"])
    for name, values in arrays.items():
        match = re.fullmatch(r"(.+_(?:conv|norm))_(weight|bias|gamma|beta|running_mean|running_var)", name)
        if match and not name.startswith("grad_"):
            getattr(block_layer(block, match[1]), NORM.get(match[2], match[2])).data = tensor(values)
    return block


@handles("slsg_block")
def sg_block(case: dict[str, Any], arrays: Arrays) -> Results:
    setting, results = case["hyper_parameters"], {}
    block = released_block(arrays, setting)
    x = tensor(arrays["x"]).requires_grad_()
    for mode in ("eval", "train"):
        block.train(mode == "train")
        graph, inside = watched(block, x)
        assert graph.similarity is not None and graph.neighbours is not None
        assert graph.neighbours.ranked.shape[-1] == setting["ranked"]
        results |= {
            f"attention_{mode}": graph.attention,
            f"sparse_similarity_{mode}": graph.similarity,
            f"cosine_{mode}": graph.similarity + block.position,
            f"ranked_neighbours_{mode}": graph.neighbours.ranked,
            f"neighbours_{mode}": graph.neighbours.indices,
            **{f"{name}_{mode}": value for name, value in inside.items()},
        }
    (inside["output"] * tensor(arrays["cotangent"])).sum().backward()
    results |= {"position_term": -block.position, "grad_x": x.grad}
    for name in arrays:
        match = re.fullmatch(r"grad_(.+_(?:conv|norm))_(weight|bias|gamma|beta)", name)
        if match:
            results[name] = getattr(block_layer(block, match[1]), NORM.get(match[2], match[2])).grad
        match = re.fullmatch(r"(.+_norm)_(running_mean|running_var)_after_train", name)
        if match:
            results[name] = getattr(block_layer(block, match[1]), match[2])
    return results


@contextmanager
def recorded_graphs(block: SGBlock) -> Iterator[list[Graph]]:
    """The relations of every forward pass within."""
    graphs, relations = list[Graph](), block._relations

    def record(maps: Tensor) -> Graph:
        graphs.append(relations(maps))
        return graphs[-1]

    block._relations = record  # type: ignore[method-assign]
    yield graphs
    block._relations = relations  # type: ignore[method-assign]


def watched(block: SGBlock, x: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    """One forward pass with what passes between its layers."""
    inside: dict[str, Tensor] = {}
    hooks = [
        block.input.register_forward_hook(lambda _m, _i, out: inside.update(nodes=out.flatten(2))),
        block.mix.register_forward_hook(lambda _m, _i, out: inside.update(attention_result=out.flatten(2))),
        block.update.register_forward_hook(lambda _m, inputs, _o: inside.update(interleaved=inputs[0].flatten(2))),
    ]
    with recorded_graphs(block) as graphs:
        output = block(x)
    for hook in hooks:
        hook.remove()
    (graph,) = graphs
    assert graph.neighbours is not None
    largest = max_relative(inside.pop("nodes"), graph.neighbours.indices)
    return graph, {**inside, "max_relative": largest, "output": output}


def network_layer(encoder: UnpooledResNet, network: SegNet, path: str) -> nn.Module:
    """The layer that a name of the case stands for."""
    part, *rest = path.split(".")
    kind = rest[-1]
    if part == "encoder":
        parts = encoder.parts
        if rest[0] == "stem":
            return parts["conv1" if kind == "conv" else "bn1"]
        block = parts[rest[0]][int(rest[1][-1]) - 1]
        if kind.startswith("shortcut"):
            return block.downsample[kind == "shortcut_norm"]
        which = {"a": 1, "b": 2}[kind[-1]]
        return getattr(block, f"{'conv' if kind.startswith('conv') else 'bn'}{which}")
    if part.startswith("skip_attention"):
        attention = network.attention[int(part[-1])]  # number 0 is the stem's, which has none
        names = {"depthwise_dilated": "dilated", "output_conv": "output"}
        return getattr(attention, names.get(kind, kind))
    if part == "sg_block":
        assert network.sg_block is not None
        return block_layer(network.sg_block, kind)
    if part == "aux":
        return network.auxiliary["ab".index(kind[-1])][kind.startswith("norm")]
    if kind == "conv_logits":
        return (network.auxiliary_head if part == "aux_head" else network.head).out
    if part == "aux_head":
        return network.auxiliary_head.groups[0][kind == "norm"]
    if rest[0] == "out":
        return network.head.groups["ab".index(kind[-1])][kind.startswith("norm")]
    block = network.blocks[int(rest[0][-1]) - 1]
    if kind.startswith("up_"):
        return block.up[kind == "up_norm"]
    return block.groups["ab".index(kind[-1])][kind.startswith("norm")]


def sampled(maps: Tensor, stored: np.ndarray) -> Tensor:
    """The evenly spaced channels and pixels that a case has room for."""
    channel, row, column = (maps.shape[axis] // stored.shape[axis] for axis in (1, 2, 3))
    return maps[:, ::channel, ::row, ::column]


@handles("slsg_network")
def network(case: dict[str, Any], arrays: Arrays) -> Results:
    setting = case["hyper_parameters"]
    encoder = make_encoder(
        load_backbone("resnet18@random", strides=OFFICIAL.strides), OFFICIAL.topology, OFFICIAL.stem, seed=0
    )
    assert isinstance(encoder, UnpooledResNet)
    size = (8 * arrays["logits_eval"].shape[2], 8 * arrays["logits_eval"].shape[3])
    with torch.no_grad():
        levels = encoder.eval()(torch.zeros(1, 3, *size))
    segmentation = SegNet([x.shape[1] for x in levels], [grid_of(x) for x in levels], size, OFFICIAL)
    for described in setting["tensors"]:
        path, _, kind = described["name"].rpartition(".")
        layer, name = network_layer(encoder, segmentation, path), NORM.get(kind, kind)
        assert list(getattr(layer, name).shape) == described["shape"], described["name"]
        getattr(layer, name).data = by_rule(described)
    whole = nn.ModuleList([encoder, segmentation])
    results: dict[str, Any] = {"used_parameters": sum(parameter.numel() for parameter in whole.parameters())}
    names = ("stem_skip", "layer1", "layer2", "layer3", "block_input")
    block = segmentation.sg_block
    assert block is not None
    for mode in ("eval", "train"):
        inputs = setting[mode]
        coarse = formula([inputs["batch"], 3, size[0] // 4, size[1] // 4], inputs["input_id"])
        images = (np.float32(6.92) * tensor(coarse)).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        whole.train(mode == "train")
        outputs = list[Tensor]()
        hook = block.register_forward_hook(lambda _m, _i, out, outputs=outputs: outputs.append(out))
        with torch.no_grad(), recorded_graphs(block) as graphs:
            levels = encoder(images)
            logits = segmentation(levels)
        hook.remove()
        (graph,) = graphs
        assert graph.neighbours is not None
        maps_by_name = dict(zip(names, levels, strict=True)) | {
            "block_output": outputs[0],
            "logits": logits.final,
            "logits_auxiliary": logits.auxiliary,
        }
        results |= {f"{name}_{mode}": sampled(maps, arrays[f"{name}_{mode}"]) for name, maps in maps_by_name.items()}
        results[f"neighbours_{mode}"] = graph.neighbours.indices
        results[f"logits_mean_{mode}"] = logits.final.mean()
        results[f"logits_std_{mode}"] = logits.final.std(correction=0)
    results["stem_norm_running_mean_after_train"] = encoder.parts["bn1"].running_mean
    results["query_key_norm_running_var_after_train"] = block_layer(block, "query_key_norm").running_var
    return results
