"""A store in a namespace of each test's own."""

import pytest

from mesh.store.store import Store
from tests.integration.stores import open_store


@pytest.fixture
def store(redis_url: str, namespace: str) -> Store:
    """With the default settings; a module that needs others has a fixture of its own."""
    return open_store(redis_url, namespace)
