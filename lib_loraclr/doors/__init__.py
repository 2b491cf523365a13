"""Three doors to one room: the command line, and the WebUI's tab and HTTP routes. Each makes a request and shows a report."""
