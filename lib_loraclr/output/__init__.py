"""A finished merge as files: a LoRA, whole deltas or a checkpoint, with its card, picture and report.

merged             a finished merge
merged_tensors     the tensors of its file; baking and checkpoint_layers those of a checkpoint
saving             the files
preview            its picture
report             what it did
"""

from .baking import require_copyable, require_places
from .merged import Merge
from .preview import PreviewOptions, preview_grid
from .report import ConceptReport, MergeReport, figure
from .saving import check_destination, file_size, read_recipe, save_merge

__all__ = [
    "ConceptReport",
    "Merge",
    "MergeReport",
    "PreviewOptions",
    "check_destination",
    "figure",
    "file_size",
    "preview_grid",
    "read_recipe",
    "require_copyable",
    "require_places",
    "save_merge",
]
