"""The merge, from a request to a result that can be saved.

merging            `merge_loras`, which reads from top to bottom
examination        what stands in a merge's way, known before anything is recorded
needs              how much memory it will take
stage_plan         which stages there will be, and what each takes
stages             the stages
"""

from .examination import examine
from .merging import measure_loras, merge_loras
from .needs import MemoryNeeds, memory_needs
from .stage_plan import plan_stages

__all__ = ["MemoryNeeds", "examine", "measure_loras", "memory_needs", "merge_loras", "plan_stages"]
