"""Live view of runs in a terminal or a browser: reads run folders incrementally and decimates curves for drawing."""
