"""LoRACLR in the WebUI: registers the tab, the settings, the HTTP routes, and axes of the X/Y/Z plot."""

from modules import script_callbacks

from lib_loraclr.doors.webui import settings, start, tab

script_callbacks.on_ui_settings(settings.add)
script_callbacks.on_ui_tabs(tab.create)
if start.has_routes():
    script_callbacks.on_app_started(start.add_routes)
start.add_axes()
