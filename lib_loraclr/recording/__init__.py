"""What the model does with each LoRA alone: the teachers, their predictions, and what enters each layer.

inputs             the LoRAs of a request, held against the loaded model; base_models what they were trained on
teachers           which LoRAs are active on which prompts, and what the model then predicts
sampling           denoising paths
input_rows         a bounded sample of what enters each layer
"""

from .base_models import base_model_warnings
from .input_rows import record_inputs, shared_inputs
from .inputs import InputLora, bundled_embeddings, load_input, load_inputs, lost_embeddings
from .sampling import BATCH, evaluated, sample
from .teachers import PILOT, Classroom, Examples, Teacher, add_nearest_other, make_teachers, spread

__all__ = [
    "BATCH",
    "Classroom",
    "Examples",
    "InputLora",
    "PILOT",
    "Teacher",
    "add_nearest_other",
    "base_model_warnings",
    "bundled_embeddings",
    "evaluated",
    "load_input",
    "load_inputs",
    "lost_embeddings",
    "make_teachers",
    "record_inputs",
    "sample",
    "shared_inputs",
    "spread",
]
