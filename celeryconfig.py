"""Celery's settings of the mesh, as modules of settings go: derived from `mesh.settings`, and here to be read or reused.

`celery -A mesh` does not need this file. An application of your own joins the mesh with `mesh.install(app)`, which sets the same.
"""

from mesh.bus.install import configuration
from mesh.settings import Settings

globals().update(configuration(Settings.load()))
