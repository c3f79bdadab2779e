"""Redis: client, keys, scripts and one module per record."""
