#!/bin/sh
# Redis with the users of users.acl, which lies beside this script: for the namespace MESH_NAMESPACE, each with the password
# REDIS_<USER>_PASSWORD of the environment. What follows are options of redis-server:
#   sh start.sh [--appendonly yes ...]
# The users that coordinators make for joined agents are not kept; coordinators make them anew.
set -eu
umask 077
users=$(mktemp)
sed "s/{default}/{${MESH_NAMESPACE:-default}}/g" "$(dirname "$0")/users.acl" >"$users"
for name in $(sed -n 's/.* #\([A-Z]*\)_SHA256 .*/\1/p' "$users"); do
    password=$(printenv "REDIS_${name}_PASSWORD") || password=
    [ -n "$password" ] || { echo "start.sh: set REDIS_${name}_PASSWORD" >&2; exit 2; }
    digest=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
    sed -i "s/#${name}_SHA256/#$digest/" "$users"
    unset "REDIS_${name}_PASSWORD"
done
exec redis-server --aclfile "$users" "$@"
