"""Use cases: read, ask core, write; one function, one business sentence."""
