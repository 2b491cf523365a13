"""What people read on the tab's fields; what requests call them by stands in the tooltips."""

from __future__ import annotations

from collections.abc import Mapping

from ...request import NO_BANK, Option
from ...solving import METHODS

#: options of the methods -> their labels
_OPTIONS = {
    "positive": "Keep each concept",
    "negative": "Keep concepts apart",
    "margin": "How far apart",
    "lambda_delta": "Stay near the start",
    "ridge": "Pull to the average",
    "layer_steps": "Steps in each layer",
    "steps": "Refining steps",
    "batch_size": "Single concepts per step",
    "scenes": "Several in one, per step",
    "rollouts": "Drawn by the merge itself",
    "contrast": "Do not mix up",
    "learning_rate": "Length of a step",
    "weight_decay": "Pull towards zero in each step",
    "mse": "Share of the squared error",
    "iterations": "Number of steps",
}
#: ways to prompt (`request.TEMPLATES`, `request.BANKS`) -> their labels
WAYS = {"photo": "Sentences (photo)", "booru": "Tags (booru)"}
#: what a merge is saved as -> its label
SAVED = {"lora": "LoRA", "full": "Whole changes (large)", "checkpoint": "Checkpoint"}
#: where the words around a concept's own come from -> the bank
BANKS = {"As above": "", **{label: name for name, label in WAYS.items()}, "None": NO_BANK}


def code_of(label: str, known: Mapping[str, str]) -> str:
    """What a request calls a choice. The WebUI's Settings > Defaults restores no choice whose label is not its value, so of those
    that it may hold the labels are the values.

    Args:
        known: label -> what a request calls it; what is not among them is called so already
    """
    return known.get(label, label)


def option_label(item: Option) -> str:
    """The label of a method's option; one that nobody has named yet is called as it is."""
    return _OPTIONS.get(item.name, item.name.replace("_", " ").capitalize())


def with_code(tip: str, code: str) -> str:
    """A tooltip with the word by which requests and the command line know the field."""
    return f"{tip.rstrip('.')}. In requests: {code}"


def method_choices() -> list[tuple[str, str]]:
    """Label and name of every method."""
    return [(method.label, name) for name, method in METHODS.items()]
