"""What is the same in every WebUI: its modules, its queue and progress bar, its LoRAs and checkpoints, how it reads prompts.

Each host of a WebUI (a1111, forge) is built on this; importing it imports nothing of the WebUI.
"""

from .checkpoints import InstalledCheckpoint, announce_checkpoint, checkpoint_dir, free_checkpoint_name
from .conditioning import all_masked, denoise, encode
from .library import InstalledLora, announce, find_lora, free_name, installed_loras, lora_dir, lora_dirs, previews
from .loaded import chosen_model, load_chosen_model
from .modules import caption_font, forget_encoded_prompts, lora_extension, make_temporary_folder, module
from .names import names_of
from .progress import StateProgress
from .reading import bundled_embeddings, infotext_untouched, read, size_vector
from .work import job, recomputed, whole_precision

__all__ = [
    "InstalledCheckpoint",
    "InstalledLora",
    "StateProgress",
    "all_masked",
    "announce",
    "announce_checkpoint",
    "bundled_embeddings",
    "caption_font",
    "checkpoint_dir",
    "chosen_model",
    "denoise",
    "encode",
    "find_lora",
    "forget_encoded_prompts",
    "free_checkpoint_name",
    "free_name",
    "infotext_untouched",
    "installed_loras",
    "job",
    "load_chosen_model",
    "lora_dir",
    "lora_dirs",
    "lora_extension",
    "make_temporary_folder",
    "module",
    "names_of",
    "previews",
    "read",
    "recomputed",
    "size_vector",
    "whole_precision",
]
