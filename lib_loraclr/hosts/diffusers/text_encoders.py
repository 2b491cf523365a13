"""The text encoders: transformers' models, filled from single files in CLIP's or in OpenCLIP's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...request import words_of
from .embeddings import in_place, tokenized

#: CLIP's vocabulary, the same for every family; "!" is its token 0
_TOKENIZER = Path(__file__).parent / "tokenizer"
_OPEN_CLIP_PAD = "!"
_LENGTH = 77
_HEAD_WIDTH = 64

#: tensors of OpenCLIP's text encoder outside its blocks -> transformers'
_OPEN_CLIP_FIXED = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPEN_CLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
#: modules of a block
_OPEN_CLIP_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder as a family uses it.

    Attributes:
        model: transformers' model; with a projection where the family uses the pooled output
        tokenizer: its tokenizer
        penultimate: whether the context is what leaves the last layer but one, not normalised, instead of what leaves the
            last layer, normalised
        vectors: name -> `[n, d]`, the embeddings that prompts can call
    """

    model: nn.Module
    tokenizer: CLIPTokenizer
    penultimate: bool
    vectors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def table(self) -> nn.Module:
        """The vectors of its vocabulary, `[v, d]` as `weight`."""
        return self.model.get_input_embeddings()

    def __call__(self, prompts: Sequence[str], clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """Context `[b, 77, d]`, and the projected pooled output `[b, p]` where the model has a projection.

        Args:
            prompts: brackets that the WebUI reads as weights are left out, and those that are escaped are read: the same tokens
                as there, at the weight 1
            clip_skip: the layer that is read, from the last, 1, where that is normalised (Stable Diffusion 1, as in the WebUI)
        """
        tokens, places = tokenized(self.tokenizer, [words_of(prompt) for prompt in prompts], self.vectors, _LENGTH)
        with in_place(self.table, places) if places else nullcontext():
            output = self.model(tokens.to(self.table.weight.device), output_hidden_states=True)
        if self.penultimate:
            context = output.hidden_states[-2]
        elif clip_skip > 1:
            # a text encoder with fewer layers than are skipped is read before its first
            layer = output.hidden_states[max(-clip_skip, -len(output.hidden_states))]
            context = getattr(self.model, "text_model", self.model).final_layer_norm(layer)
        else:
            context = output.last_hidden_state
        return context, getattr(output, "text_embeds", None)


def bundled_tokenizer(*, open_clip: bool) -> CLIPTokenizer:
    """The tokenizer; CLIP fills prompts up with its end token, OpenCLIP with token 0."""
    changes = {"pad_token": _OPEN_CLIP_PAD} if open_clip else {}
    return CLIPTokenizer.from_pretrained(_TOKENIZER, **changes)


def clip_weights(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a CLIP text encoder in transformers' names; old files leave out the `text_model.` level."""
    weights = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    named = {key if key.startswith("text_") else f"text_model.{key}": tensor for key, tensor in weights.items()}
    named.pop("text_model.embeddings.position_ids", None)
    return named


def open_clip_weights(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of an OpenCLIP text encoder in transformers' names, packed projections one by one.

    OpenCLIP multiplies from the left with its text projection, transformers from the right.
    """
    weights: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key[len(prefix) :]
        if not key.startswith(prefix):
            continue
        if name in _OPEN_CLIP_FIXED:
            weights[_OPEN_CLIP_FIXED[name]] = tensor
        elif name == "text_projection":
            weights["text_projection.weight"] = tensor.T.contiguous()
        elif match := _OPEN_CLIP_BLOCK.fullmatch(name):
            layer = f"text_model.encoder.layers.{match[1]}."
            weights.update((layer + inner, part) for inner, part in _unpacked(match[2], tensor))
    return weights


def _unpacked(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of an OpenCLIP block, in transformers' names."""
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"self_attn.{letter}_proj.{kind}", part
    else:
        module, _, kind = name.rpartition(".")
        yield f"{_OPEN_CLIP_MODULES[module]}.{kind}", tensor


def without_last_layer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors without its last layer.

    Stable Diffusion 2 reads what leaves the last layer but one, normalised; diffusers' folders leave the last one out too.
    """
    last = _layer_count(weights) - 1
    return {key: tensor for key, tensor in weights.items() if not key.startswith(f"text_model.encoder.layers.{last}.")}


def _layer_count(weights: Mapping[str, Tensor]) -> int:
    return 1 + max(int(key.split(".")[3]) for key in weights if key.startswith("text_model.encoder.layers."))


def text_model(
    weights: Mapping[str, Tensor], *, heads: int | None, activation: str, projected: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """transformers' model with these tensors in it; sizes come from the tensors.

    Args:
        weights: in transformers' names
        heads: of attention; None: one for every 64 numbers, as in every text encoder of the families
        activation: `quick_gelu` (CLIP) or `gelu` (OpenCLIP)
        projected: whether the pooled output is wanted

    Raises:
        RuntimeError: tensors are missing, or of other shapes
    """
    vocabulary, width = weights["text_model.embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layer_count(weights),
        num_attention_heads=heads or max(1, width // _HEAD_WIDTH),
        hidden_act=activation,
        projection_dim=weights["text_projection.weight"].shape[0] if projected else width,
    )
    with torch.device("meta"):  # filling a model with random numbers first takes longer than reading the file
        model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    wanted = {key: tensor for key, tensor in weights.items() if projected or not key.startswith("text_projection.")}
    if not any(key.startswith("text_model.") for key in model.state_dict()):  # CLIPTextModel of transformers 5
        wanted = {key.removeprefix("text_model."): tensor for key, tensor in wanted.items()}
    model.load_state_dict(wanted, assign=True)
    # the only buffer is not in the file
    embeddings = getattr(model, "text_model", model).embeddings
    embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return model
