"""Embeddings (textual inversion) that LoRAs bundle, in the keys that the WebUI's built-in Lora reads: `bundle_emb.NAME.…`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import LoraclrError

PREFIX = "bundle_emb."
#: XL's two text encoders, in their order
CLIP_L, CLIP_G = "clip_l", "clip_g"
#: begins the key of the vectors in the form of the WebUI's own embeddings
_VECTORS = "string_to_param."


def embedding_name(key: str) -> str:
    """`bundle_emb.NAME.…` -> NAME: the word that a prompt calls it by."""
    return key.removeprefix(PREFIX).partition(".")[0]


def embeddings_by_name(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Name -> what the WebUI calls the embedding's data -> vectors, `[n, d]`.

    Args:
        tensors: by keys that begin with `PREFIX`

    Raises:
        LoraclrError: one has a form in which the WebUI would load neither it nor the LoRA around it
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(PREFIX).partition(".")
        found.setdefault(name, {})[part] = tensor[None] if tensor.dim() == 1 else tensor
    for name, parts in found.items():
        # beside these there may be a step and the like
        found[name] = parts = {part: t for part, t in parts.items() if part.startswith(_VECTORS)} or parts
        if not name or not _is_known(parts):
            shown = ", ".join(f"{PREFIX}{name}.{part} {list(tensor.shape)}" for part, tensor in parts.items())
            raise LoraclrError(
                f"the bundled embedding {name or '(without a name)'} has a form that the WebUI does not load ({shown}): "
                "take it out, or leave this file out."
            )
    return found


def _is_known(parts: Mapping[str, Tensor]) -> bool:
    """As `create_embedding_from_data` (`modules/textual_inversion`) tells them apart."""
    if any(tensor.dim() != 2 for tensor in parts.values()):
        return False
    if {CLIP_L, CLIP_G} <= parts.keys():
        return len(parts[CLIP_L]) == len(parts[CLIP_G])
    return len(parts) == 1 and "" not in parts


def vectors_per_encoder(parts: Mapping[str, Tensor], widths: Sequence[int]) -> list[Tensor] | None:
    """The vectors of each text encoder, `[n, d]`; None where the embedding was made for other ones.

    Args:
        parts: of one embedding, from `embeddings_by_name`
        widths: `d` of each text encoder, in XL's order where there are two
    """
    wanted = [parts.get(CLIP_L), parts.get(CLIP_G)] if len(widths) == 2 else list(parts.values())
    if len(wanted) != len(widths) or any(tensor is None for tensor in wanted):
        return None
    return wanted if [tensor.shape[1] for tensor in wanted] == list(widths) else None


def embedding_misfit(name: str, checkpoint: str) -> str:
    """The warning about one that was made for another family."""
    return f"The bundled embedding {name} was made for other text encoders than those of {checkpoint}: prompts do without it."
