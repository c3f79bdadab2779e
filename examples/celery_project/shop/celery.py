"""The application, as every Celery project has one. The last line makes it part of the mesh; nothing else was changed."""

from celery import Celery

from mesh import install

app = Celery("shop", include=["shop.tasks"])
app.conf.task_routes = {"shop.tasks.invoice": {"queue": "invoices"}}

install(app)
