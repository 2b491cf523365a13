"""LoRACLR in the WebUI: registers the tab, the HTTP routes, the settings, and what happens on unloading."""

from modules import script_callbacks

from lib_loraclr.webui import settings, start, tab

script_callbacks.on_ui_settings(settings.add)
script_callbacks.on_ui_tabs(tab.create)
script_callbacks.on_app_started(start.add_routes)
script_callbacks.on_script_unloaded(start.unload)
