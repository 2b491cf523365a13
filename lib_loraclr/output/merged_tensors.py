"""The tensors of a merge's LoRA file, by the names and in the types from which the WebUI makes the same deltas again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import LoraclrError
from ..files import DTYPE_NAMES, DTYPES, NewTensor, attention_projections, bias_key, incomplete_attention, tensor_bytes
from ..model import Factors, zero
from ..recording import bundled_embeddings
from .merged import Merge


def lora_tensors(merge: Merge) -> dict[str, Tensor]:
    """The tensors of the file in kohya's key style, `alpha` equal to the rank, embeddings of the inputs passed through.

    Per layer: `lora_up.weight` `[d_out, r]` or `[d_out, r, 1, 1]`, `lora_down.weight` `[r, d_in]` or `[r, c_in, k, k]`,
    `alpha` `[]`. A layer whose bias is changed too has its whole `diff` beside `diff_b` instead, and a norm `w_norm` and
    `b_norm`: the WebUI reads biases in no other way. These are always fp32: the WebUI adds a whole delta in the file's
    precision, and would round the checkpoint's own weight to it.

    Raises:
        LoraclrError: two inputs bundle different embeddings of one name
    """
    dtype = DTYPES[merge.request.precision]
    shapes, tensors = merge.target.shapes, {}
    for key, factors in {**merge.factors, **_completing(merge)}.items():
        if len(shapes[key]) == 1 or bias_key(key) in merge.factors:
            whole = (factors.up.float() @ factors.down.float()).cpu()
            tensors[_whole_name(key, merge)] = whole.reshape(shapes[key])
            continue
        up, down = factors.up.cpu().to(dtype), factors.down.cpu().to(dtype)
        if len(shapes[key]) == 4:
            up, down = up[:, :, None, None], down.reshape(-1, *shapes[key][1:])
        tensors[f"{key}.lora_up.weight"] = up.contiguous()
        tensors[f"{key}.lora_down.weight"] = down.contiguous()
        alpha = torch.tensor(float(factors.rank))
        # fp16 has no 2049 and bf16 no 257; an alpha that is rounded would scale the whole layer
        tensors[f"{key}.alpha"] = alpha.to(dtype) if float(alpha.to(dtype)) == factors.rank else alpha
    return {**tensors, **bundled_embeddings(merge.inputs)}


def full_tensors(merge: Merge) -> list[NewTensor]:
    """The tensors of a file of whole deltas, as LyCORIS' `full` has them: `diff`, shaped like the layer's weight.

    Each is made when it is its turn to be written: together they are as large as the model.

    Raises:
        LoraclrError: as `lora_tensors`
    """
    dtype = DTYPES[merge.request.precision]

    def dense(key: str) -> list[bytes]:
        factors = every[key]
        delta = (factors.up.float() @ factors.down.float()).to(dtype)
        if not delta.isfinite().all():
            raise LoraclrError(f"The merged {key} does not fit into {merge.request.precision}: choose bf16 or fp32.")
        return [tensor_bytes(delta)]

    tensors = []
    every = {**merge.factors, **_completing(merge)}
    for key in sorted(every):
        shape = merge.target.shapes[key]
        size = math.prod(shape) * dtype.itemsize
        name = _whole_name(key, merge)
        tensors.append(NewTensor(name, DTYPE_NAMES[dtype], shape, size, lambda key=key: dense(key)))
    bundled = bundled_embeddings(merge.inputs)
    return [*tensors, *(NewTensor.of(key, bundled[key]) for key in sorted(bundled))]


def _whole_name(key: str, merge: Merge) -> str:
    """What a file calls the whole delta of a weight or bias."""
    layer = key.removesuffix(bias_key(""))
    norm = len(merge.target.shapes.get(layer, ())) == 1
    # the WebUI does not load a file with a `w_norm` that has no `b_norm`
    if norm and bias_key(layer) in merge.factors:
        return f"{layer}.w_norm" if key == layer else f"{layer}.b_norm"
    return f"{layer}.diff" if key == layer else f"{layer}.diff_b"


def _completing(merge: Merge) -> dict[str, Factors]:
    """Deltas that do nothing, for the projections of OpenCLIP's attention that the merge lacks.

    The WebUI adds those of q, k, v and out together, and none of them where one is missing.
    """
    shapes, found = merge.target.shapes, {}
    for key in incomplete_attention(merge.factors, merge.target.family.open_clip):
        for other in attention_projections(key):
            if other not in merge.factors and other in shapes:
                d_out, *d_in = shapes[other]
                found[other] = zero(d_out, math.prod(d_in), like=merge.factors[key].up)
    return found
