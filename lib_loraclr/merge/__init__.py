"""The merge, from a request to a result that can be saved.

merging            `merge_loras`, which reads from top to bottom
examination        what stands in a merge's way, known before anything is recorded
stage_plan         which stages there will be, and what each takes
stages             the stages
"""

from .examination import examine
from .merging import measure_loras, merge_loras
from .stage_plan import plan_stages

__all__ = ["examine", "measure_loras", "merge_loras", "plan_stages"]
