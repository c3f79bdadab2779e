#!/bin/sh
# Puts a backup of redis-backup.sh where a stopped Redis finds it.
#
#   redis-restore.sh BACKUP DATA
#
# BACKUP: a folder that redis-backup.sh made. DATA: the `dir` of the server's configuration; what it holds is moved to
# DATA/before-restore-<UTC time>. The server must not run. With `appendonly yes` Redis does not read dump.rdb but its append-only
# files, so both are written: dump.rdb, and appendonlydir/ with the same data as its base (file names of redis.conf's defaults).
# Then start the server, and run `mesh restore --file BACKUP/agents-<namespace>.json` for each namespace before anything else.
# Exit codes: 0 done, 1 the backup is not sound, 2 usage.
set -eu
umask 077

fail() { code=$1; shift; printf 'redis-restore: %s\n' "$*" >&2; exit "$code"; }

case ${1:-} in -h | --help) sed -n '2,/^set -eu/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;; esac
[ $# -eq 2 ] || fail 2 "which backup, and which data folder? See --help"
backup=$1 data=$2
[ -f "$backup/dump.rdb" ] && [ -f "$backup/SHA256SUMS" ] || fail 2 "$backup is no backup: it has no dump.rdb and SHA256SUMS"
[ -d "$data" ] || fail 2 "there is no folder $data"
(cd "$backup" && sha256sum --check --quiet SHA256SUMS) >&2 || fail 1 "$backup is damaged"
# A running server holds its append-only file open, where the system can tell.
for open in /proc/[0-9]*/fd/*; do
    case $(readlink "$open" 2>/dev/null || true) in
        "$(cd "$data" && pwd -P)"/appendonlydir/*) fail 2 "a server has its files in $data open: stop it first" ;;
    esac
done

before=$data/before-restore-$(date -u +%Y-%m-%dT%H-%M-%SZ)
mkdir "$before"
for name in dump.rdb appendonlydir; do
    [ ! -e "$data/$name" ] || mv "$data/$name" "$before/$name"
done
rmdir "$before" 2>/dev/null || true # nothing was there

cp "$backup/dump.rdb" "$data/.dump.rdb"
mkdir "$data/.appendonlydir"
cp "$backup/dump.rdb" "$data/.appendonlydir/appendonly.aof.1.base.rdb"
echo 'file appendonly.aof.1.base.rdb seq 1 type b' >"$data/.appendonlydir/appendonly.aof.manifest"
# Whoever the folder belongs to is whom the server runs as.
owner=$(stat -c %u:%g "$data")
chown -R "$owner" "$data/.dump.rdb" "$data/.appendonlydir" 2>/dev/null || true
mv "$data/.dump.rdb" "$data/dump.rdb"
mv "$data/.appendonlydir" "$data/appendonlydir"
printf 'redis-restore: %s is in %s: start the server, then run mesh restore\n' "$backup" "$data"
