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
from typing import Any, NamedTuple

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWPID = (
    0x10000000,
    0x40000000,
    0x08000000,
    0x20000000,
)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
ADDR_NO_RANDOMIZE, AT_RANDOM = 0x0040000, 25

# System calls that a completion may make: name, number on x86-64, number on aarch64 ("-": has none). Everything else is
# refused: what starts or touches processes, connects, waits, reads entropy, changes files or the system, and every call
# of a newer kernel. A completion computes, and reads the library.
ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, readv 19 65, writev 20 66, mremap 25 216
madvise 28 233, dup 32 23, dup2 33 -, dup3 292 24, getpid 39 172, gettid 186 178, getppid 110 173, exit 60 93
exit_group 231 94, uname 63 160, ftruncate 77 46, getcwd 79 17, getdents64 217 61, gettimeofday 96 169, time 201 -
clock_gettime 228 113, clock_getres 229 114, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153
getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, sigaltstack 131 132, sched_yield 24 124
sched_getaffinity 204 123, set_tid_address 218 96, set_robust_list 273 99, rseq 334 293, stat 4 -, lstat 6 -
access 21 -, readlink 89 -, newfstatat 262 79, statx 332 291, readlinkat 267 78, faccessat 269 48, faccessat2 439 439
"""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Rule(NamedTuple):
    """What an argument of a system call must be for the call to be allowed.

    Attributes:
      numbers: of the call, on x86-64 and on aarch64; 0: has none.
      argument: which one, counted from 0.
      among: values that are allowed; of the bits in `mask` alone.
      zeros: arguments that must be 0.
    """

    numbers: tuple[int, int]
    argument: int
    among: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    zeros: tuple[int, ...] = ()


RULES = (
    Rule((2, 0), 1, (0,), mask=WRITING),  # open and openat, for reading
    Rule((257, 56), 2, (0,), mask=WRITING),
    # ioctl: whether a file is a terminal, and close on exec; not the flags of its inode.
    Rule((16, 29), 1, (0x5401, 0x5450, 0x5451)),
    # fcntl: duplicates and flags of a descriptor; not its owner and signal, which reach other processes.
    Rule((72, 25), 1, (0, 1, 2, 3, 1030)),
    # futex: waking others up. Waiting is not allowed: there is nobody to wait for.
    Rule((202, 98), 1, (1, 10), mask=0x7F),
    Rule((302, 261), 0, (0,), zeros=(2,)),  # prlimit64: reading a limit of its own
)
# machine: its place in the numbers above, and its audit number
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

LINUX = sys.platform == "linux" and sys.byteorder == "little"
MACHINE = MACHINES.get(platform.machine()) if LINUX else None
# PyDLL keeps the interpreter's lock during the call, which the raw clone below relies on.
LIBC: Any = ctypes.PyDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
if MACHINE is not None:
    LIBC.getauxval.restype, LIBC.getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
CLONE = 220 if platform.machine() == "aarch64" else 56
FORK_FLAGS = ctypes.c_ulong(CLONE_NEWPID | signal.SIGCHLD)


def give_up() -> None:
    """Turns every function here into one that does nothing."""
    global MACHINE
    MACHINE = None


def has_namespaces() -> bool:
    """Whether `fork` can begin process namespaces."""
    return MACHINE is not None


def fix_addresses() -> bool:
    """Restarts this interpreter once without address randomisation; False where that is refused.

    Hashes of None and of classes are addresses: with random ones a set's order would differ by run. The kernel's random
    bytes for the process go, too.
    """
    if MACHINE is not None and (random := LIBC.getauxval(AT_RANDOM)):
        ctypes.memset(random, 0, 16)
    if os.environ.pop("SANDBOX_RESTARTED", ""):
        return True
    if MACHINE is not None and LIBC.personality(ADDR_NO_RANDOMIZE) != -1:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "SANDBOX_RESTARTED": "1"})
    return False


def filter_calls() -> None:
    """Installs the filter that refuses, with EPERM, every call but those ALLOWED and those that keep a rule.

    Raises:
      MemoryError: the kernel has no memory for it now. Where it has no filters at all, nothing happens.
    """
    if MACHINE is None:
        return
    place, audit = MACHINE
    load, mask, equal, at_least, answer = 0x20, 0x54, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    # (operation, where to go when true, when false, operand): a number of lines, or the name of a last line.
    code: list[tuple[int, int | str, int | str, int]] = [
        (load, 0, 0, 4),  # the caller's architecture: another one has other numbers
        (equal, 0, "no", audit),
        (load, 0, 0, 0),  # the call's number; x86-64 has a second set from 2**30 on
        (at_least, "no", 0, 1 << 30),
    ]
    for rule in RULES:
        if number := rule.numbers[place]:
            test: list[tuple[int, int | str, int | str, int]] = []
            for zero in rule.zeros:
                for half in (16, 20):
                    test += [(load, 0, 0, half + 8 * zero), (equal, 0, "no", 0)]
            test += [(load, 0, 0, 16 + 8 * rule.argument), (mask, 0, 0, rule.mask)]
            test += [(equal, "yes", 0, value) for value in rule.among]
            test += [(answer, 0, 0, refuse)]
            code += [(equal, 0, len(test), number), *test]
    for entry in ALLOWED.replace("\n", ",").split(","):
        if entry and (listed := entry.split()[1 + place]) != "-":
            code.append((equal, "yes", 0, int(listed)))
    code += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    ends = {"no": len(code) - 2, "yes": len(code) - 1}
    text = b"".join(
        struct.pack("HBBI", op, *(ends[jump] - at - 1 if isinstance(jump, str) else jump for jump in jumps), operand)
        for at, (op, *jumps, operand) in enumerate(code)
    )
    kept = ctypes.create_string_buffer(text, len(text))
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(kept))
    if LIBC.prctl(PR_SET_SECCOMP, 2, program, 0, 0) and ctypes.get_errno() in (errno.ENOMEM, errno.EAGAIN):
        raise MemoryError("no memory for a filter of system calls")


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
    """Makes the kernel kill this process when its parent ends. That is no confinement: also after `give_up`."""
    if LINUX:
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


def adopt_orphans() -> None:
    """Makes this process the parent of its children's children when these lose theirs, so that it can end them."""
    if LINUX:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def drop_capabilities() -> None:
    """Gives up every capability, including those over the zygote's namespaces and the one to raise limits."""
    if LINUX:
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
