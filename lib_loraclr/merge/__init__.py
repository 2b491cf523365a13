"""The merge, from a request to a result that can be saved.

merging            `merge_loras`, which reads from top to bottom
examination        what stands in a merge's way, known before anything is recorded
needs              how much memory it will take; forecasting that and how long, without merging, by the pace of devices
stage_plan         which stages there will be, and what each takes
stages             the stages; layer_merging one layer; runs what its inputs are recorded of
keeping            what they keep in a work folder; followed: in memory, for another merge of the same LoRAs
start              a finished merge that another one goes on from
overlap            who will be in whose way, before a merge
several            several methods on the same recording; comparison sets all of them side by side
"""

from .comparison import DRAWN, Outcome, comparable, drawn, outcome_of, placed, plan_comparison
from .examination import examine
from .followed import Followed
from .forecasting import Forecast, forecast, seconds_per_sample
from .merging import measure_loras, merge_loras, refine_further
from .needs import MemoryNeeds, memory_needs
from .overlap import Overlap, measure_overlap, overlap_evaluations
from .pace import Pace, keep_pace, usual_pace
from .runs import denoising, recorded_points
from .several import Made, Several
from .stage_plan import plan_stages
from .stages import Stages
from .start import MERGED_ANEW, Finished, Start, merged_from, start_from

__all__ = [
    "DRAWN",
    "MERGED_ANEW",
    "Finished",
    "Followed",
    "Forecast",
    "Made",
    "MemoryNeeds",
    "Outcome",
    "Overlap",
    "Pace",
    "Several",
    "Stages",
    "Start",
    "comparable",
    "denoising",
    "drawn",
    "examine",
    "forecast",
    "keep_pace",
    "measure_loras",
    "measure_overlap",
    "memory_needs",
    "merge_loras",
    "merged_from",
    "outcome_of",
    "overlap_evaluations",
    "placed",
    "plan_comparison",
    "plan_stages",
    "recorded_points",
    "refine_further",
    "seconds_per_sample",
    "start_from",
    "usual_pace",
]
