"""A finished merge as files: a LoRA, whole deltas or a checkpoint, with its card, picture and report.

merged             a finished merge, and the checkpoint it was made on
merged_tensors     the tensors of its file; baking and checkpoint_layers those of a checkpoint
saving             the files
preview            its pictures; drawing makes them, sheet lays them out; trial is a prompt that a person tries
report             what it did
"""

from .baking import require_copyable, require_places
from .drawing import Drawing
from .merged import Begun, Merge, Target
from .preview import Pictures, PreviewOptions, draw_pictures, plan_preview
from .report import ConceptReport, MergeReport, advice, drift_in_words, figure, percent
from .saving import check_destination, file_size, first_concepts, read_recipe, save_merge, went_on, write_merge
from .trial import Trial, draw_trial, plan_trial

__all__ = [
    "Begun",
    "ConceptReport",
    "Drawing",
    "Merge",
    "MergeReport",
    "Pictures",
    "PreviewOptions",
    "draw_pictures",
    "draw_trial",
    "Target",
    "Trial",
    "advice",
    "check_destination",
    "drift_in_words",
    "figure",
    "first_concepts",
    "percent",
    "file_size",
    "plan_preview",
    "plan_trial",
    "read_recipe",
    "require_copyable",
    "require_places",
    "save_merge",
    "went_on",
    "write_merge",
]
