"""Runs watched while they go on: files followed by cursors, thinned on the server, drawn in a terminal or on a page."""
