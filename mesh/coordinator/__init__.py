"""The HTTP service and its loops."""
