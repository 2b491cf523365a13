"""The delta of one layer by the formula of each kind of network, entry by entry where that is bearable."""

from __future__ import annotations

import torch
from networks_of_kinds import Sample, weight_of
from torch import Tensor


def slow_delta(sample: Sample) -> Tensor:
    """`ΔW`, of the weight's shape."""
    tensors, weight = sample.tensors, weight_of(sample.form)
    delta, rank = {
        "LoRA": _lora,
        "LoHa": _loha,
        "LoKr": _lokr,
        "(IA)3": _ia3,
        "OFT": _oft,
        "GLoRA": _glora,
        "full": lambda tensors, weight: (tensors["diff"], None),
        "norm": lambda tensors, weight: (tensors["w_norm"], None),
    }[sample.kind](tensors, weight)
    delta = delta.reshape(weight.shape).clone()
    delta += tensors.get("bias", 0)
    if "scale" in tensors:
        delta *= float(tensors["scale"])
    elif "alpha" in tensors and rank:
        delta *= float(tensors["alpha"]) / rank
    if "dora_scale" in tensors and tensors["dora_scale"].shape[0] == len(weight):
        rows = [row * m / row.norm() for row, m in zip(weight + delta, tensors["dora_scale"].flatten(), strict=True)]
        return torch.stack(rows) - weight
    if "dora_scale" in tensors:
        return _by_columns(weight + delta, tensors["dora_scale"]) - weight
    if "lora_magnitude_vector" in tensors:
        rows = [row * m / row.norm() for row, m in zip(weight + delta, tensors["lora_magnitude_vector"], strict=True)]
        return torch.stack(rows) - weight
    return delta


def _by_columns(changed: Tensor, magnitude: Tensor) -> Tensor:
    result = torch.empty_like(changed)
    for column in range(changed.shape[1]):
        length = sum(float(entry) ** 2 for entry in changed[:, column].flatten()) ** 0.5
        result[:, column] = changed[:, column] / length
    return result * magnitude


def _sum_of_products(up: Tensor, down: Tensor, core: Tensor | None = None) -> Tensor:
    """`Σ_r up[:, r] down[r]`, or with a core `Σ_rs up[:, r] core[r, s] down[s]`; `[d_out, c_in, ...]`."""
    if core is None:
        return sum(torch.tensordot(up[:, r].flatten(), down[r], dims=0) for r in range(up.shape[1]))
    total = 0
    for r in range(core.shape[0]):
        for s in range(core.shape[1]):
            outer = torch.outer(up[:, r].flatten(), down[s].flatten())
            total = total + outer[:, :, None, None] * core[r, s]
    return total


def _lora(tensors: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, int]:
    up = tensors.get("lora_up.weight", tensors.get("lora_B.weight"))
    down = tensors.get("lora_down.weight", tensors.get("lora_A.weight"))
    return _sum_of_products(up, down, tensors.get("lora_mid.weight")), down.shape[0]


def _loha(tensors: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, int]:
    product = 1
    for which in "12":
        a, b, core = tensors[f"hada_w{which}_a"], tensors[f"hada_w{which}_b"], tensors.get(f"hada_t{which}")
        product = product * _sum_of_products(a if core is None else a.T, b, core)
    return product, tensors["hada_w1_b"].shape[0]


def _lokr(tensors: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, int | None]:
    rank = None
    if "lokr_w1" in tensors:
        first = tensors["lokr_w1"]
    else:
        first, rank = _sum_of_products(tensors["lokr_w1_a"], tensors["lokr_w1_b"]), tensors["lokr_w1_b"].shape[0]
    if "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    else:
        a, b, core = tensors["lokr_w2_a"], tensors["lokr_w2_b"], tensors.get("lokr_t2")
        second, rank = _sum_of_products(a if core is None else a.T, b, core), b.shape[0]
    channels = weight.shape[1] // first.shape[1]
    second = second.reshape(len(weight) // len(first), channels, *weight.shape[2:])
    result = torch.empty_like(weight)
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            i, k = divmod(row, len(second))
            j, m = divmod(column, channels)
            result[row, column] = first[i, j] * second[k, m]
    return result, rank


def _ia3(tensors: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, None]:
    result, scale = weight.clone(), tensors["weight"].flatten()
    for channel in range(len(scale)):
        if tensors["on_input"].item():
            result[:, channel] *= scale[channel]
        else:
            result[channel] *= scale[channel]
    return result, None


def _oft(tensors: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, None]:
    rows = weight.flatten(1)
    if "oft_diag" in tensors:
        turned = torch.block_diag(*tensors["oft_diag"]).T @ rows
    else:
        blocks = tensors["oft_blocks"]
        if blocks.dim() == 3:
            turned = _rotation(torch.block_diag(*(q - q.T for q in blocks)), tensors.get("alpha")).T @ rows
        else:
            turned = rows
            for level, level_blocks in enumerate(blocks):
                permutation = _butterfly(len(rows), 2**level * blocks.shape[-1])
                rotation = _rotation(torch.block_diag(*(q - q.T for q in level_blocks)), None)
                turned = permutation.T @ rotation @ permutation @ turned
    if "rescale" in tensors:
        turned = turned * tensors["rescale"].reshape(-1, 1)
    return turned - rows, None


def _rotation(skew: Tensor, alpha: Tensor | None) -> Tensor:
    """Cayley's transform of the whole matrix; a block-diagonal one stays so."""
    if alpha is not None:
        bound = float(alpha) * len(skew)
        skew = skew * min(1.0, bound / float(skew.norm()))
    identity = torch.eye(len(skew), dtype=skew.dtype)
    return (identity + skew) @ torch.inverse(identity - skew)


def _butterfly(count: int, group: int) -> Tensor:
    """Row `2 j + g` of what comes out is row `g * group / 2 + j` of each group that goes in."""
    permutation = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, count, group):
        for j in range(group // 2):
            for g in range(2):
                permutation[start + 2 * j + g, start + g * group // 2 + j] = 1
    return permutation


def _glora(tensors: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, int | None]:
    older = tensors["a1.weight"].shape[0] < tensors["a1.weight"].shape[1]
    up, down = (tensors[f"b{n}.weight"] for n in ("21" if older else "12"))
    inner = [tensors[f"a{n}.weight"].flatten(1) for n in ("21" if older else "12")]
    result = _sum_of_products(up, down).reshape(weight.shape)
    across = inner[0] @ inner[1]  # [c_in, c_in]
    for column in range(weight.shape[1]):
        for channel in range(weight.shape[1]):
            result[:, column] += weight[:, channel] * across[channel, column]
    return result, None if older else len(down)
