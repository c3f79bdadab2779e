"""What each role may do in Redis: one table. `deploy/redis/users.acl` is written from it, users of joined agents are made by it.

A rule is a word of ACL SETUSER, of Redis 7 and Valkey. What a script calls counts like any other command, so the scripts of a
role need no trust: with its user, none can do more than this table says. Selectors, in parentheses, are further sets of rights;
a command has to be covered by one set as a whole. Channels are written out: a pattern that somebody subscribes to is compared
letter by letter.

A right that the scripts of a role need cannot be kept from other scripts: who may publish tasks may also end them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["RIGHTS", "Rights", "acl_file", "rules"]

_CONNECT = "ping role select time"
_READ = (
    "exists get hexists hget hgetall hkeys hlen hmget llen mget scard sismember smembers smismember srandmember "
    "zcard zcount zrandmember zrange zrangebyscore zrank zscore"
)
_PUBLISH = (  # tasks, and what Celery keeps beside them: saved groups, queues for replies
    "del hdel hincrby hset incr incrby lpush mset persist pexpire publish rpush sadd set setex srem zadd zrem zremrangebyrank"
)
_SCRIPTS = "evalsha script|load script|exists multi exec watch unwatch"
_LISTEN = "subscribe unsubscribe psubscribe punsubscribe"
_REPLIES = "brpop del exec llen lpush multi pexpire sadd script|exists script|load evalsha srem zadd"  # of remote control
_WORK = "blpop brpop info ltrim rename xadd zremrangebyscore"
_OPERATE = "config|get getrange scan unlink xdel xlen xrange xread xrevrange xtrim"
_USERS = "acl|deluser acl|dryrun acl|getuser acl|setuser acl|users acl|whoami hvals"


@dataclass(frozen=True, kw_only=True)
class Rights:
    """Of one role. Keys and channels are those of a namespace, without its prefix; `mesh`: those of the whole mesh, each with
    its commands ('' for all of the role's)."""

    commands: tuple[str, ...]
    writes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    mesh: tuple[tuple[str, str], ...] = ()
    why: str = ""


_RESULTS = ("result:*", "group:*")
_CONTROL = "kombu:/{database}.celery.pidbox"  # Celery's remote control: the fan-out that every agent hears
_PUBLISHED = (
    *("ready", "scheduled", "leases", "deadlines", "counters", "recent", "dead", "chords-due", "present"),
    *("requirements", "requirements-version", "sequence"),
    *("task:*", "message:*", "result:*", "queue:*", "bell:*", "nudge:*", "consumers:*"),
    *("chord:*", "parts:*", "group:*", "kombu:*"),
)

RIGHTS: Mapping[str, Rights] = MappingProxyType(
    {
        "coordinator": Rights(
            commands=(_CONNECT, _READ, _PUBLISH, _SCRIPTS, _LISTEN, _REPLIES, _WORK, _OPERATE, _USERS),
            writes=("*",),
            channels=(*_RESULTS, _CONTROL),
            mesh=(("*", ""),),
            why="coordinators and the command line: all of the mesh; makes and removes the Redis users of joined agents",
        ),
        "agent": Rights(
            commands=(_CONNECT, _READ, _PUBLISH, _SCRIPTS, _LISTEN, _REPLIES, _WORK),
            writes=("*",),
            channels=(*_RESULTS, _CONTROL),
            mesh=(
                ("namespaces", "sismember sadd"),
                ("coordinators", "zrange"),
                ("coordinator:*", "get"),
                ("revocations", "get"),
                ("revoked", "zrange"),
                ("not-before", "hgetall"),
            ),
            why="agents: their namespace, in which they also leave what they have to say to the audit log; what was revoked",
        ),
        "producer": Rights(
            commands=(_CONNECT, _READ, _PUBLISH, _SCRIPTS, _LISTEN, _REPLIES),
            writes=_PUBLISHED,
            reads=("*",),
            channels=(*_RESULTS, _CONTROL),
            mesh=(("coordinators", "zrange"), ("coordinator:*", "get")),
            why="programs that submit tasks: no leases of their own, no agents, no leadership",
        ),
        "flower": Rights(
            commands=(_CONNECT, _READ, _LISTEN, _REPLIES, "publish"),
            writes=("kombu:*",),
            reads=("*",),
            channels=("result:*", _CONTROL),
            why="Flower: reads, and Celery's remote control",
        ),
    }
)


def rules(role: str, *namespaces: str, database: int = 0) -> list[str]:
    """The words of ACL SETUSER, behind `reset on >password`, for a user of this role in these namespaces."""
    rights = RIGHTS[role]
    words = sorted({f"+{name}" for group in rights.commands for name in group.split()})
    words += [f"~mesh:{{mesh}}:{key}" for key, commands in rights.mesh if not commands]
    for namespace in namespaces:
        prefix = f"mesh:{{{namespace}}}:"
        words += [f"~{prefix}{key}" for key in rights.writes]
        words += [f"%R~{prefix}{key}" for key in rights.reads]
        words += [f"&{prefix}{channel.format(database=database)}" for channel in rights.channels]
    for key, commands in rights.mesh:
        if commands:
            words.append(f"({' '.join(f'+{name}' for name in commands.split())} ~mesh:{{mesh}}:{key})")
    return words


def acl_file(namespace: str = "default") -> str:
    """`deploy/redis/users.acl`: a user for each role, and one for people. Each `…_SHA256` has yet to become a password's."""
    users = {"admin": ["~*", "&*", "+@all"], **{role: rules(role, namespace) for role in RIGHTS}}
    lines = [
        f"user {name} on #{name.upper()}_SHA256 resetchannels {' '.join(words)}"
        for name, words in users.items()
    ]
    return "\n".join(["user default off", *lines]) + "\n"
