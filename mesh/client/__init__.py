"""`Mesh`: what Python users hold.

```python
mesh = Mesh()
handle = mesh.submit("data-processing", {"data": "example"})
handle.result(timeout_s=30)  # or: await handle
```
"""

from mesh.client.handle import Completions, Handle
from mesh.client.mesh import Mesh

__all__ = ["Completions", "Handle", "Mesh"]
