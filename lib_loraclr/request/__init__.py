"""What to merge and how: checked before a tensor is read, JSON both ways, no torch.

merge_request      concepts, method, output, and how the model is recorded
prompts            what is asked of the model; phrases the bank that it is drawn from
doubts             what can be merged and is hardly meant
brackets           weights inside prompts
options            the options of a method, as every door shows them
output_names       what a merged file may be called
"""

from .brackets import escaped, has_weights, words_of
from .doubts import unusual_weights, words_within_words
from .merge_request import (
    KINDS,
    LARGEST_SEED,
    PRECISIONS,
    RECORDING_RANGES,
    SAVE_AS,
    Concept,
    MergeRequest,
    RecordingOptions,
    drawn_seed,
    parse_lora_argument,
)
from .options import Option, option, parse_number, parse_options, schema
from .output_names import clean_name, output_path
from .phrases import BANKS, Part, Phrase, Phrases, contains_words
from .prompts import (
    NO_BANK,
    TEMPLATES,
    PromptOptions,
    check_prompts,
    concept_prompts,
    is_background,
    plain_prompts_that_call,
)

__all__ = [
    "BANKS",
    "Concept",
    "KINDS",
    "LARGEST_SEED",
    "MergeRequest",
    "NO_BANK",
    "Option",
    "PRECISIONS",
    "Part",
    "Phrase",
    "Phrases",
    "PromptOptions",
    "RECORDING_RANGES",
    "RecordingOptions",
    "SAVE_AS",
    "TEMPLATES",
    "check_prompts",
    "clean_name",
    "concept_prompts",
    "contains_words",
    "drawn_seed",
    "escaped",
    "has_weights",
    "is_background",
    "option",
    "output_path",
    "parse_lora_argument",
    "parse_number",
    "parse_options",
    "plain_prompts_that_call",
    "schema",
    "unusual_weights",
    "words_of",
    "words_within_words",
]
