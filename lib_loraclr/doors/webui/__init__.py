"""The WebUI's doors: the tab, the HTTP routes and the settings.

They build a `MergeRequest`, call `merge_loras` inside `running.session()`, and show a `MergeReport`. `scripts/loraclr.py`
registers them; importing this registers nothing.
"""
