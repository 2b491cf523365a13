"""Hosts: whatever holds the loaded model. One folder per host; `model.Host` is what the core knows of them."""
