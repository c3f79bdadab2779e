"""Runs one program for ``task-execution``, and sees to it that nothing of it is left when it is over.

A process of its own between the agent and the program, because the agent's may be killed at any moment: it holds the
reading end of a pipe whose other end only the agent's process has. When that is closed, by a time limit, by a cancellation
or by the agent's death, the warden ends the program: SIGTERM to its process group, SIGKILL after a grace. It adopts what the
program leaves behind (a child subreaper), so that a daemon of the program's is ended as well. Is the warden itself killed,
the kernel kills the program (the parent-death signal).

    python -I -S warden.py LIFE_FD STATUS_FD GRACE_S FOLDER PROGRAM ARGV0 [ARG ...]

To STATUS_FD it writes ``started``, and then what became of the program: ``exit CODE SECONDS`` or ``signal NUMBER SECONDS``;
``error ERRNO`` before it if the program could not be executed.
It imports little: every command waits for it.
"""

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PAUSE_S = 0.05  # between two tries to kill
#: What Python and Celery ignore, and programs do not expect to be ignored.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _become(program: str, argv: list[str], folder: str, status: int, warden: int) -> None:
    """In the child: be the program, or say why not."""
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != warden:
            os._exit(1)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        os.execve(program, argv, os.environ)
    except OSError as error:
        _tell(status, f"error {error.errno or errno.EINVAL} ")
    finally:
        os._exit(127)


def _children() -> list[int]:
    """Processes whose parent this one is."""
    me, found = os.getpid(), []
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == me:
                        found.append(int(name))
            except (OSError, IndexError, ValueError):
                continue
    return found


def _sweep(group: int) -> None:
    """End everything that the program has left behind; without /proc, what is still in its process group."""
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    while True:
        for pid in _children():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill(pid: int, number: int) -> None:
    """The program and its group, each once: to many programs a second SIGTERM says more than the first."""
    with contextlib.suppress(OSError):
        os.killpg(pid, number)
    with contextlib.suppress(OSError):
        if os.getpgid(pid) != pid:  # it has left its group
            os.kill(pid, number)


def _watch(pid: int, life: int, wake: int, grace_s: float) -> int:
    """Wait for the program's end, and bring it about when the agent lets go; its wait status."""
    poll, kill_at = select.poll(), None  # not select(): the agent may have more than a thousand files open
    poll.register(wake, select.POLLIN)
    poll.register(life, select.POLLIN)
    while True:
        found, outcome = os.waitpid(pid, os.WNOHANG)
        if found:
            return outcome
        left_s = None if kill_at is None else max(_PAUSE_S, kill_at - time.monotonic())
        ready = [end for end, _ in poll.poll(None if left_s is None else left_s * 1000)]
        if wake in ready:
            os.read(wake, 4096)
        if life in ready:  # nothing is ever written to it: this is its end
            poll.unregister(life)
            kill_at = time.monotonic() + grace_s
            _kill(pid, signal.SIGTERM)
        elif kill_at is not None and time.monotonic() >= kill_at:
            _kill(pid, signal.SIGKILL)


def _tell(status: int, words: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(status, words.encode())


def main(words: list[str]) -> None:
    """See the module's text."""
    life, status, grace_s = int(words[0]), int(words[1]), float(words[2])
    folder, program, argv = words[3], words[4], words[5:]
    os.set_inheritable(life, False)
    os.set_inheritable(status, False)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    warden, started = os.getpid(), time.monotonic()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        _become(program, argv, folder, status, warden)
    with contextlib.suppress(OSError):  # whoever comes first; it may have begun already
        os.setpgid(pid, pid)
    _tell(status, "started ")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # the program's pipes must end with the program
        os.dup2(nothing, number)
    outcome = _watch(pid, life, wake, grace_s)
    seconds = time.monotonic() - started
    _sweep(pid)
    word, number = (
        ("signal", os.WTERMSIG(outcome)) if os.WIFSIGNALED(outcome) else ("exit", os.WEXITSTATUS(outcome))
    )
    _tell(status, f"{word} {number} {seconds:.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
