"""LoRACLR: merge several LoRAs into one, so that every concept keeps its identity."""

__version__ = "0.2.0"
