"""Hosts: whatever holds the loaded model. One file per host; `base` is what the core knows of them."""
