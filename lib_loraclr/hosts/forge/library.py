"""What Forge keeps of a LoRA file that was overwritten."""

from __future__ import annotations

from .. import webui
from . import engine


def forget(name: str) -> None:
    """Drop every copy of a LoRA's old content: parsed, inside the weights, and inside encoded prompts.

    Forge compares files by path and weight, so that of one that was overwritten it would go on showing the old picture; it
    applies them anew to the base weights when what it takes to be applied is something else.

    Args:
        name: of the LoRA; what is dropped is the same for all
    """
    parsed = getattr(webui.lora_extension().load_lora_state_dict, "cache_clear", None)
    if parsed is not None:
        parsed()
    data = webui.module("sd_models").model_data
    # reForge can hold several checkpoints
    for model in (data.sd_model, *getattr(data, "loaded_sd_models", ())):
        if getattr(model, "forge_objects_original", None) is not None:
            model.current_lora_hash = "stale"
            for patcher in engine.patchers(model):
                loader = getattr(patcher, "lora_loader", None)
                if loader is not None:
                    loader.loaded_hash = "stale"
    webui.forget_encoded_prompts()
