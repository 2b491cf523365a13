"""What the model does with each LoRA alone: the teachers, their predictions, and what enters each layer.

inputs             the LoRAs of a request, held against the loaded model; base_models what they were trained on
picture_size       the size of the pictures that are recorded
asking             what will be asked; reading how prompts are read: clip skip, and weights in brackets
teachers           which LoRAs are active on which prompts
predictor          the model with any of the LoRAs active; shelf where what it predicts is kept
sampling           denoising paths
path_plan          the slots that teachers share, in which they are asked
examples           what they predict there; scenes what they do side by side
rollouts           what they say where the merge comes by as it draws scenes itself
input_rows         a bounded sample of what enters a layer; layer_inputs of what enters each of them
"""

from .asking import example_prompts, phrases_of
from .base_models import base_model_warnings
from .examples import IN_NEGATIVE, Examples, record_examples, spread
from .inputs import InputLora, bundled_embeddings, load_input, load_inputs, lost_embeddings
from .layer_inputs import Attempt, Run, record_run, served_layers
from .path_plan import PathPlan, draw_slots
from .picture_size import with_size
from .predictor import Predictor
from .reading import recorded_clip_skip, unweighted_prompts
from .rollouts import Rollout, ask_along, draw_paths, plan_rollouts, rollout_evaluations
from .sampling import BATCH, asked_in_parts, evaluated, sample
from .scenes import Scene, count_pairs, make_scenes
from .shelf import Shelf
from .teachers import Slot, Teacher, make_teachers

__all__ = [
    "Attempt",
    "BATCH",
    "Examples",
    "IN_NEGATIVE",
    "InputLora",
    "PathPlan",
    "Predictor",
    "Rollout",
    "Run",
    "Scene",
    "Shelf",
    "Slot",
    "Teacher",
    "ask_along",
    "asked_in_parts",
    "base_model_warnings",
    "bundled_embeddings",
    "count_pairs",
    "example_prompts",
    "draw_paths",
    "draw_slots",
    "evaluated",
    "load_input",
    "load_inputs",
    "lost_embeddings",
    "make_scenes",
    "make_teachers",
    "phrases_of",
    "plan_rollouts",
    "record_examples",
    "record_run",
    "recorded_clip_skip",
    "rollout_evaluations",
    "sample",
    "served_layers",
    "spread",
    "unweighted_prompts",
    "with_size",
]
