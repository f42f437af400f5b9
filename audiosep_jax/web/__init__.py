"""The web page and the server that serves it."""
