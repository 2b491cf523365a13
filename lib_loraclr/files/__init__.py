"""LoRA files: read with suspicion, understood in every style, written whole or not at all.

tensor_files       the safetensors format
lora_files         a LoRA file, and files that belong together
layer_keys         names of layers, in every style; unet_names those of a UNet
lora_family        which family of models a file was made for; foreign_families those that cannot be merged
resolution         the size of the pictures that a LoRA was trained on
training           what name and metadata tell of the training: clip skip, and LoRAs that are no concept
deltas             what each kind of network stores, and the change of a weight it stands for
adapter_config     alpha, where a file keeps it outside its tensors; name_patterns for which of its layers
licences           author and licence, and what the licence asks
embeddings         embeddings that a file bundles
triggers           the words that call a LoRA
writing            files written whole or not at all, and what they replace
work_folder        tensors kept by what they were computed from
"""

from .deltas import kind_name, kind_of, layer_delta, unused_parameters
from .embeddings import embedding_misfit, embedding_name, embeddings_by_name, vectors_per_encoder
from .layer_keys import (
    UNET,
    attention_projections,
    bias_key,
    incomplete_attention,
    is_text_encoder,
    other_names,
    split_key,
    text_encoder_key,
    unet_key,
)
from .licences import CREDITS, Terms, conditions, credit, credit_lines
from .lora_family import family_by_header, family_of
from .lora_files import (
    LoraFile,
    read_lora,
    read_tensors,
    require_safetensors,
    serialize,
    with_hashes,
)
from .resolution import trained_size
from .tensor_files import DTYPE_NAMES, DTYPES, NewTensor, StoredTensor, read_header, tensor_bytes, write_tensors
from .training import clip_skip, few_steps, few_steps_warning
from .triggers import Trigger, find_trigger, tag_frequency
from .unet_names import compvis_names, diffusers_name
from .work_folder import LIMIT_MB, Kept, WorkFolder, code_key, content_key, file_key
from .writing import Written, refuse_existing, replace_file, require_space, write_files

__all__ = [
    "CREDITS",
    "DTYPES",
    "DTYPE_NAMES",
    "Kept",
    "LIMIT_MB",
    "LoraFile",
    "NewTensor",
    "StoredTensor",
    "Terms",
    "Trigger",
    "UNET",
    "WorkFolder",
    "Written",
    "attention_projections",
    "bias_key",
    "embeddings_by_name",
    "clip_skip",
    "code_key",
    "compvis_names",
    "content_key",
    "conditions",
    "credit",
    "credit_lines",
    "diffusers_name",
    "family_by_header",
    "family_of",
    "few_steps",
    "few_steps_warning",
    "file_key",
    "find_trigger",
    "incomplete_attention",
    "is_text_encoder",
    "kind_name",
    "kind_of",
    "layer_delta",
    "embedding_misfit",
    "embedding_name",
    "other_names",
    "vectors_per_encoder",
    "read_header",
    "read_lora",
    "read_tensors",
    "refuse_existing",
    "require_safetensors",
    "replace_file",
    "require_space",
    "serialize",
    "split_key",
    "tag_frequency",
    "tensor_bytes",
    "trained_size",
    "text_encoder_key",
    "unet_key",
    "unused_parameters",
    "with_hashes",
    "write_files",
    "write_tensors",
]
