"""Celery's settings of the mesh, derived from `mesh.settings`: to be read, or reused with `app.config_from_object`.

`celery -A mesh` does not need this file. An application of your own joins the mesh with `mesh.install(app)`, which
sets the same and more.
"""

from mesh.bus.install import configuration
from mesh.settings import Settings

globals().update(configuration(Settings.load()))
