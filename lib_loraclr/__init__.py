"""LoRACLR: merge several LoRAs into one, so that every concept keeps its identity.

    request -> files -> recording -> solving -> refining -> output

is the way of a merge, which `merge` runs on a `model` that one of the `hosts` holds, for whoever comes in by one of the `doors`.
Every folder says in its `__init__` what is in it and what others may use of it.
"""

__version__ = "0.2.0"
