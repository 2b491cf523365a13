"""What people use instead: other papers' and tools' merges, one file each, for comparison on the same inputs.

They answer to `--method NAME` and in requests, and no door offers them. Each is what its source says, at its source's
defaults; what a source tunes on validation data is an option, `scale` for most.
"""

from . import (  # noqa: F401  (each registers itself)
    ace,
    core_space,
    dare,
    gradient_fusion,
    iso_c,
    knots,
    kohya_svd,
    regmean,
    shared_space,
    supermerger,
    ties,
)
