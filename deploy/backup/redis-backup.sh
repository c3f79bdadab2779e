#!/bin/sh
# A backup of a mesh: Redis as one RDB file, and the agents of each namespace as JSON (where `mesh` is on PATH).
#
#   redis-backup.sh [--url redis://host:6379] [--keep 14] FOLDER
#
# Makes FOLDER/<UTC time>/ with dump.rdb, agents-<namespace>.json and SHA256SUMS. It appears in one step when it is complete and
# checked, and only then are older ones removed, beyond the newest `--keep` (0: none are). The server may be anywhere: its data
# comes over the network, as to a replica (the user needs +psync +sync +replconf +smembers). --url defaults to REDIS_URL; a
# password in it never appears among the arguments of a process. One line says what it did.
# Exit codes: 0 done, 1 the copy is not sound, 2 usage, 5 Redis cannot be reached or refuses.
set -eu
umask 077

say() { printf 'redis-backup: %s\n' "$*"; }
fail() { code=$1; shift; say "$*" >&2; exit "$code"; }

url=${REDIS_URL:-redis://localhost:6379} keep=14 folder=
while [ $# -gt 0 ]; do
    case $1 in
        --url) [ $# -gt 1 ] || fail 2 "--url needs a value"; url=$2; shift 2 ;;
        --keep) [ $# -gt 1 ] || fail 2 "--keep needs a number"; keep=$2; shift 2 ;;
        -h | --help) sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
        -*) fail 2 "there is no option $1; see --help" ;;
        *) [ -z "$folder" ] || fail 2 "one folder, not also $1"; folder=$1; shift ;;
    esac
done
[ -n "$folder" ] || fail 2 "which folder? See --help"
case $keep in '' | *[!0-9]*) fail 2 "--keep is '$keep', but must be a number" ;; esac
cli=$(command -v redis-cli || command -v valkey-cli) || fail 2 "neither redis-cli nor valkey-cli is on PATH"
case $url in redis://* | rediss://*) ;; *) fail 2 "the URL must begin with redis:// or rediss://" ;; esac

# redis://[user][:password]@host[:port][/db]: the password goes through the environment.
scheme=${url%%://*} rest=${url#*://}
case $rest in
    *@*)
        login=${rest%@*} rest=${rest##*@}
        case $login in *:*) REDISCLI_AUTH=${login#*:}; export REDISCLI_AUTH ;; esac
        user=${login%%:*} ;;
    *) user= ;;
esac
place=${rest%%[/?]*}
case $place in *:*) host=${place%:*} port=${place##*:} ;; *) host=$place port=6379 ;; esac
set -- -h "${host:-localhost}" -p "$port" --no-auth-warning
[ "$scheme" = redis ] || set -- "$@" --tls
[ -z "$user" ] || set -- "$@" --user "$user"

answer=$("$cli" "$@" PING 2>&1) || true
[ "$answer" = PONG ] || fail 5 "Redis at $host:$port does not answer: $answer"

mkdir -p "$folder"
stamp=$(date -u +%Y-%m-%dT%H-%M-%SZ)
made=$folder/$stamp partial=$folder/.partial-$stamp-$$
[ ! -e "$made" ] || fail 1 "$made is there already"
mkdir "$partial"
trap 'rm -rf "$partial"' EXIT
trap 'exit 1' HUP INT TERM

"$cli" "$@" --rdb "$partial/dump.rdb" >"$partial/log" 2>&1 || fail 5 "Redis gave no data: $(tail -n 1 "$partial/log")"
rm "$partial/log"

# Is it whole? An RDB begins with its name, and ends with its end mark and a checksum; the checker knows the rest.
magic=$(head -c 6 "$partial/dump.rdb" | tr -d '\0')
case $magic in
    REDIS*) checker=$(command -v valkey-check-rdb || command -v redis-check-rdb || true) ;;
    VALKEY) checker=$(command -v valkey-check-rdb || true) ;;
    *) fail 1 "what Redis sent is no RDB file" ;;
esac
bytes=$(wc -c <"$partial/dump.rdb" | tr -d ' ')
[ "$bytes" -gt 18 ] || fail 1 "the RDB file has only $bytes bytes"
[ "$(tail -c 9 "$partial/dump.rdb" | od -An -tx1 | tr -d ' \n' | cut -c 1-2)" = ff ] || fail 1 "the RDB file has no end"
checked="not checked further: its checker is not on PATH"
if [ -n "$checker" ]; then
    if "$checker" "$partial/dump.rdb" >"$partial/log" 2>&1; then
        checked="checked by $(basename "$checker")"
    elif grep -q "handle RDB format version" "$partial/log"; then
        checked="not checked further: $(basename "$checker") is older than the server"
    else
        fail 1 "$(basename "$checker") refuses it: $(grep '^\[offset' "$partial/log" | tail -n 1)"
    fi
    rm "$partial/log"
fi

exported=0
if command -v mesh >/dev/null 2>&1; then
    for namespace in $("$cli" "$@" SMEMBERS 'mesh:{mesh}:namespaces'); do
        REDIS_URL=$url mesh discover -n "$namespace" -o json >"$partial/agents-$namespace.json" ||
            fail 5 "the agents of namespace $namespace cannot be listed"
        exported=$((exported + 1))
    done
fi
(cd "$partial" && sha256sum -- * >SHA256SUMS)
mv "$partial" "$made"

removed=0
if [ "$keep" -gt 0 ]; then
    for old in $(cd "$folder" && ls -d ????-??-??T??-??-??Z 2>/dev/null | sort -r | tail -n +$((keep + 1))); do
        rm -rf "${folder:?}/$old"
        removed=$((removed + 1))
    done
fi
say "$made: $bytes bytes ($checked), agents of $exported namespaces; $removed older removed"
