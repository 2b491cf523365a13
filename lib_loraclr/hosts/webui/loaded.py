"""The checkpoint that AUTOMATIC1111's WebUI has loaded, and reForge by the same names."""

from __future__ import annotations

from torch import nn

from ...errors import LoraclrError
from . import modules


def chosen_model() -> nn.Module | None:
    """The model that is loaded, if it is the one chosen at the top left; a picture may have left its refiner."""
    models, options = modules.module("sd_models"), modules.module("shared").opts
    model = models.model_data.sd_model
    # as `sd_models.select_checkpoint`, which would load another one in place of what is not there any more, and print that
    chosen = models.checkpoint_aliases.get(options.sd_model_checkpoint)
    if model is None or chosen is None or model.sd_checkpoint_info.filename == chosen.filename:
        return model
    return None


def load_chosen_model() -> nn.Module:
    """The checkpoint chosen at the top left, not one that the last picture left loaded; loaded now if that had been put off.

    After a refiner, or a checkpoint named in a prompt's own settings, the WebUI swaps back when the next picture begins
    (`modules/processing.py`).

    Raises:
        LoraclrError: none could be loaded
    """
    models = modules.module("sd_models")
    if models.model_data.sd_model is not None:
        models.reload_model_weights()
    # where there is none, asking for it makes the WebUI look for one, in vain, and fill its log with that
    there = models.model_data.sd_model is not None or models.checkpoints_list
    model = modules.module("shared").sd_model if there else None
    if model is None:
        raise LoraclrError("The WebUI has no checkpoint loaded: choose one at the top left.")
    return model
