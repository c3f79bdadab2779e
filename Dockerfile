# One image for every role: coordinator, agent and flower. The first argument of the container says which one it is:
#   docker build -t agent-mesh .
#   docker run agent-mesh agent --capabilities data-processing
# The versions are those of requirements.lock, checked by their hashes. No compiler, no sources and no secrets are in the result.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_NO_CACHE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
RUN pip install uv==0.13.9
WORKDIR /source
# The dependencies change less often than the sources: a layer of their own.
COPY pyproject.toml requirements.lock ./
RUN uv venv /opt/mesh \
    && uv pip install --python /opt/mesh --compile-bytecode --constraints requirements.lock --requirements pyproject.toml --extra otel
COPY mesh/ mesh/
COPY workers/ workers/
COPY tasks/ tasks/
RUN uv build --wheel --out-dir /wheels \
    && uv pip install --python /opt/mesh --compile-bytecode --no-deps /wheels/*.whl

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Agent Mesh" \
      org.opencontainers.image.description="Agents with capabilities, on Celery and Redis: atomic leases, exact recovery, no lost work." \
      org.opencontainers.image.version="0.1.0"
# A number, so that orchestrators can see that it is not root; the same number owns files on mounted volumes.
RUN groupadd --gid 10001 mesh \
    && useradd --uid 10001 --gid 10001 --home-dir /app --no-create-home --shell /usr/sbin/nologin mesh \
    && mkdir /app /data
COPY --from=build /opt/mesh /opt/mesh
COPY deploy/image/ /opt/mesh/image/
ENV PATH=/opt/mesh/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Where modules with task types of your own are found (-I tasks), and files (MESH_DATA_DIRS) unless you say otherwise.
WORKDIR /app
USER 10001:10001
EXPOSE 3000 5555
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "/opt/mesh/image/health.py"]
ENTRYPOINT ["/bin/sh", "/opt/mesh/image/entrypoint.sh"]
