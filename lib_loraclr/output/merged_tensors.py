"""The tensors of a merge's LoRA file, by the names and in the types from which the WebUI makes the same deltas again."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..files import DTYPE_NAMES, DTYPES, NewTensor, attention_projections, bias_key, incomplete_attention, tensor_bytes
from ..model import Factors, Host, Layer, zero
from ..recording import bundled_embeddings
from .merged import Merge


def lora_tensors(merge: Merge, host: Host) -> dict[str, Tensor]:
    """The tensors of the file in kohya's key style, `alpha` equal to the rank, embeddings of the inputs passed through.

    Per layer: `lora_up.weight` `[d_out, r]` or `[d_out, r, 1, 1]`, `lora_down.weight` `[r, d_in]` or `[r, c_in, k, k]`,
    `alpha` `[]`. A layer whose bias is changed too has its whole `diff` beside `diff_b` instead, and a norm `w_norm` and
    `b_norm`: the WebUI reads biases in no other way. These are always fp32: the WebUI adds a whole delta in the file's
    precision, and would round the checkpoint's own weight to it.

    Raises:
        LoraclrError: two inputs bundle different embeddings of one name
    """
    dtype = DTYPES[merge.request.precision]
    layers, tensors = host.layers(), {}
    for key, factors in {**merge.factors, **_completing(merge, host)}.items():
        if layers[key].weight.dim() == 1 or bias_key(key) in merge.factors:
            whole = (factors.up.float() @ factors.down.float()).cpu()
            tensors[_whole_name(key, merge, layers)] = whole.reshape(layers[key].weight.shape)
            continue
        up, down = factors.up.cpu().to(dtype), factors.down.cpu().to(dtype)
        weight = layers[key].weight
        if weight.dim() == 4:
            up, down = up[:, :, None, None], down.reshape(-1, *weight.shape[1:])
        tensors[f"{key}.lora_up.weight"] = up.contiguous()
        tensors[f"{key}.lora_down.weight"] = down.contiguous()
        alpha = torch.tensor(float(factors.rank))
        # fp16 has no 2049 and bf16 no 257; an alpha that is rounded would scale the whole layer
        tensors[f"{key}.alpha"] = alpha.to(dtype) if float(alpha.to(dtype)) == factors.rank else alpha
    return {**tensors, **bundled_embeddings(merge.inputs)}


def full_tensors(merge: Merge, host: Host) -> list[NewTensor]:
    """The tensors of a file of whole deltas, as LyCORIS' `full` has them: `diff`, shaped like the layer's weight.

    Each is made when it is its turn to be written: together they are as large as the model.

    Raises:
        LoraclrError: as `lora_tensors`
    """
    dtype, layers = DTYPES[merge.request.precision], host.layers()

    def dense(key: str) -> list[bytes]:
        factors = every[key]
        delta = (factors.up.float() @ factors.down.float()).to(dtype)
        if not delta.isfinite().all():
            raise LoraclrError(f"The merged {key} does not fit into {merge.request.precision}: choose bf16 or fp32.")
        return [tensor_bytes(delta)]

    tensors = []
    every = {**merge.factors, **_completing(merge, host)}
    for key in sorted(every):
        shape = tuple(layers[key].weight.shape)
        size = math.prod(shape) * dtype.itemsize
        name = _whole_name(key, merge, layers)
        tensors.append(NewTensor(name, DTYPE_NAMES[dtype], shape, size, lambda key=key: dense(key)))
    bundled = bundled_embeddings(merge.inputs)
    return [*tensors, *(NewTensor.of(key, bundled[key]) for key in sorted(bundled))]


def _whole_name(key: str, merge: Merge, layers: Mapping[str, Layer]) -> str:
    """What a file calls the whole delta of a weight or bias."""
    layer = key.removesuffix(bias_key(""))
    norm = layer in layers and layers[layer].weight.dim() == 1
    # the WebUI does not load a file with a `w_norm` that has no `b_norm`
    if norm and bias_key(layer) in merge.factors:
        return f"{layer}.w_norm" if key == layer else f"{layer}.b_norm"
    return f"{layer}.diff" if key == layer else f"{layer}.diff_b"


def _completing(merge: Merge, host: Host) -> dict[str, Factors]:
    """Deltas that do nothing, for the projections of OpenCLIP's attention that the merge lacks.

    The WebUI adds those of q, k, v and out together, and none of them where one is missing.
    """
    layers, found = host.layers(), {}
    for key in incomplete_attention(merge.factors, host.family.open_clip):
        for other in attention_projections(key):
            if other not in merge.factors and other in layers:
                found[other] = zero(*_shape(layers[other]), like=merge.factors[key].up)
    return found


def _shape(layer: Layer) -> tuple[int, int]:
    return layer.weight.shape[0], math.prod(layer.weight.shape[1:])
