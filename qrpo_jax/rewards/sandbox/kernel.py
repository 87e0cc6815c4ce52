"""Confinement by the Linux kernel: system-call filter, Landlock, namespaces.

Everything goes through ctypes, because the standard library has none of it. On other systems, and on
processors without a table here, the functions do nothing; the sandbox's probe measures what is enforced.
"""

import ctypes
import errno
import os
import platform
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWPID = (
    0x10000000,
    0x40000000,
    0x08000000,
    0x20000000,
)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
ADDR_NO_RANDOMIZE = 0x0040000

# System calls that a completion may not make: name, number on x86-64, number on aarch64 ("-": has none).
# They start or touch processes, connect, change the system, wait, read entropy, or change files.
DENIED = """
fork 57 -, vfork 58 -, clone 56 220, clone3 435 435, execve 59 221, execveat 322 281
kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240
pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438, ptrace 101 117
process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440, kcmp 312 272
socket 41 198, socketpair 53 199, connect 42 203, bind 49 200, listen 50 201, accept 43 202
accept4 288 242, sendto 44 206, sendmsg 46 211, sendmmsg 307 269, recvmsg 47 212, recvmmsg 299 243
mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, unshare 272 97, setns 308 268
open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432
fspick 433 433, mount_setattr 442 442, open_by_handle_at 304 265, openat2 437 437
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425
add_key 248 217, request_key 249 218, keyctl 250 219, reboot 169 142, kexec_load 246 104
kexec_file_load 320 294, init_module 175 105, finit_module 313 273, delete_module 176 106
memfd_create 319 279, memfd_secret 447 447, shmget 29 194, msgget 68 186, semget 64 190
mq_open 240 180, setrlimit 160 164, prlimit64 302 261, prctl 157 167, seccomp 317 277
setpriority 141 140, sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274
sched_setaffinity 203 122, ioprio_set 251 30, personality 135 92
getrandom 318 278, nanosleep 35 101, clock_nanosleep 230 115, pause 34 -, select 23 -, poll 7 -
pselect6 270 72, ppoll 271 73, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, pipe 22 -, pipe2 293 59, eventfd 284 -
eventfd2 290 19, timerfd_create 283 85, signalfd 282 -, signalfd4 289 74, inotify_init1 294 26
rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -
unlinkat 263 35, creat 85 -, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, mknod 133 -
mknodat 259 33, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -
fchown 93 55, lchown 94 -, fchownat 260 54, truncate 76 45, ftruncate 77 46, fallocate 285 47
utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6
fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
"""
# The calls among these that the zygote needs, with the (argument, value) that each must have. A completion
# inherits the permission but cannot use it: it has no socket and no capability, and sees no other process.
NEEDED: dict[str, tuple[int, int] | None] = {
    "clone": (0, CLONE_NEWPID | signal.SIGCHLD),
    "kill": (1, signal.SIGKILL),
    "prctl": (0, PR_SET_PDEATHSIG),
    **dict.fromkeys(["recvmsg", "sendto", "pidfd_open", "prlimit64", "setrlimit", "poll", "ppoll"]),
}
# machine: column of DENIED, audit number, ((open call's number, its flags argument), ...)
MACHINES = {
    "x86_64": (1, 0xC000003E, ((2, 1), (257, 2))),
    "aarch64": (2, 0xC00000B7, ((56, 2),)),
}

LINUX = sys.platform == "linux" and sys.byteorder == "little"
MACHINE = MACHINES.get(platform.machine()) if LINUX else None
# PyDLL keeps the interpreter's lock during the call, which the raw clone below relies on.
LIBC: Any = ctypes.PyDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
CLONE = 220 if platform.machine() == "aarch64" else 56
FORK_FLAGS = ctypes.c_ulong(CLONE_NEWPID | signal.SIGCHLD)


def fix_addresses() -> bool:
    """Restarts this interpreter once without address randomisation; False where that is refused.

    Hashes of None and of classes are addresses: with random ones a set's order would differ by run.
    """
    if os.environ.pop("SANDBOX_RESTARTED", ""):
        return True
    if MACHINE is not None and LIBC.personality(ADDR_NO_RANDOMIZE) != -1:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "SANDBOX_RESTARTED": "1"})
    return False


def filter_calls(namespace: bool) -> None:
    """Installs the filter that refuses the calls in DENIED, and opening for writing, with EPERM.

    With `namespace` the calls NEEDED by a zygote remain; they are harmless only where a completion
    is alone in a process namespace.
    """
    if MACHINE is None:
        return
    column, audit, opens = MACHINE
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    # (operation, jump when true, jump when false, operand); "no" jumps to the refusing last line.
    code: list[tuple[int, int | str, int | str, int]] = [
        (load, 0, 0, 4),  # the caller's architecture: another one has other numbers
        (equal, 0, "no", audit),
        (load, 0, 0, 0),  # the call's number; x86-64 has a second set from 2**30 on
        (at_least, "no", 0, 1 << 30),
    ]
    conditional: list[tuple[int, int, int, int | str, int | str, int]] = [
        (number, argument, any_bit, "no", 0, writing) for number, argument in opens
    ]
    for name, *numbers in (entry.split() for entry in DENIED.replace("\n", ",").split(",") if entry):
        if (number := numbers[column - 1]) == "-":
            continue
        if not (namespace and name in NEEDED):
            code.append((equal, "no", 0, int(number)))
        elif needed := NEEDED[name]:
            conditional.append((int(number), needed[0], equal, 0, "no", needed[1]))
    for call, argument, test, when_true, when_false, operand in conditional:
        code += [(equal, 0, 3, call), (load, 0, 0, 16 + 8 * argument)]
        code += [(test, when_true, when_false, operand), (answer, 0, 0, allow)]
    code += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    end = len(code) - 2
    text = b"".join(
        struct.pack("HBBI", op, *(end - at if jump == "no" else jump for jump in jumps), operand)
        for at, (op, *jumps, operand) in enumerate(code)
    )
    kept = ctypes.create_string_buffer(text, len(text))
    LIBC.prctl(PR_SET_SECCOMP, 2, struct.pack("HxxxxxxQ", len(code), ctypes.addressof(kept)), 0, 0)


def restrict_files(readable: list[str]) -> None:
    """Landlock: allows reading files below `readable`; forbids all other files, TCP, and signals to outside."""
    version = 0 if MACHINE is None else LIBC.syscall(444, None, 0, 1)
    if version < 1:
        return
    rights = 0x1FFF | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("QQQ", rights, 3, 3)[:size]
    rules = LIBC.syscall(444, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return
    for path in filter(os.path.exists, readable):
        place = os.open(path, os.O_PATH)
        allowed = 0b1100 if os.path.isdir(path) else 0b0100  # read files, list folders
        LIBC.syscall(445, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    LIBC.syscall(446, rules, 0)
    os.close(rules)


def isolate() -> None:
    """Gives up gaining privileges, and any network but a loopback device that is down."""
    if MACHINE is None:
        return
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC):
        LIBC.unshare(CLONE_NEWNET | CLONE_NEWIPC)


def die_with_parent() -> None:
    """Makes the kernel kill this process when its parent ends."""
    if MACHINE is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Parent:
    """This process as its children see it: whether it has ended. Make it before a fork, ask in the child.

    A child that calls `die_with_parent` after its parent has ended lives on. In a process namespace of its own it
    cannot see its parent's number, but a file that stands for the process tells.
    """

    def __init__(self) -> None:
        self._pid, self._file = os.getpid(), -1
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):
                self._file = os.pidfd_open(self._pid)

    def ended(self) -> bool:
        if self._file < 0:
            return os.getppid() not in (0, self._pid)  # 0: in another namespace
        events = select.poll()
        events.register(self._file, select.POLLIN)
        return bool(events.poll(0))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def drop_capabilities() -> None:
    """Gives up every capability, including those over the zygote's namespaces."""
    if MACHINE is not None:
        LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))


def fork(namespace: bool) -> int:
    """Like os.fork; with `namespace`, the child is the first process of a new process namespace.

    os.fork has no such option, and an intermediate process would cost a second fork. Python's own
    preparations for a fork concern other threads, of which there are none here.
    """
    if not namespace or MACHINE is None:
        return os.fork()
    return int(LIBC.syscall(CLONE, FORK_FLAGS, None, None, None, None))


def cpu_time(pid: int) -> float:
    """CPU seconds that a child has used so far; 0 if the system does not report it."""
    try:
        return time.clock_gettime(~pid << 3 | 2) if LINUX else 0.0
    except OSError:
        return 0.0
