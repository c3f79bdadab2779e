#!/bin/sh
# The first argument is the role of the container, what follows are options of its command:
#   coordinator [OPTIONS of mesh coordinator]
#   agent       [OPTIONS of mesh deploy]
#   flower      [OPTIONS of mesh flower]
# Anything else is run as it is: `mesh status`, or `celery -A shop worker` in an image of your own.
# Every command takes the place of this shell, so that signals reach it.
set -eu

role() { # for health.py, which runs in a process of its own
    printf '%s\n' "$1" >"${TMPDIR:-/tmp}/mesh-role"
}

case "${1:-}" in
coordinator)
    role coordinator
    exec mesh "$@"
    ;;
agent)
    role agent
    shift
    exec mesh deploy "$@"
    ;;
flower)
    role flower
    # A container's own loopback cannot be published. Without authentication Flower refuses to start so.
    export FLOWER_ADDRESS="${FLOWER_ADDRESS:-0.0.0.0}"
    exec mesh "$@"
    ;;
"")
    echo "Say what this container is to be: coordinator, agent or flower (or any other command, for example: mesh --help)." >&2
    exit 2
    ;;
celery)
    case " $* " in
    *" worker "*) role agent ;;
    *" flower "*) role flower ;;
    esac
    exec "$@"
    ;;
*)
    exec "$@"
    ;;
esac
