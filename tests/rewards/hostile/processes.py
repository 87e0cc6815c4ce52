"""Programs that start, signal, trace or outlive processes, or call what the kernel must refuse.

OUTSIDE_PID and TRAINER_PID are numbers of processes outside.
"""

from qrpo_jax.rewards.sandbox.pool import Call
from tests.rewards.hostile.attack import CONFINED, KERNEL, Attack, Value, refused, second

# By raw number on x86-64 and on aarch64; arguments that would work if they were allowed.
CALLS = [
    ("fork", "57, None"),
    ("vfork", "58, None"),
    ("clone", "56, 220, 17, 0, 0, 0, 0"),
    ("clone of a thread", "56, 220, 0x10f00, 0, 0, 0, 0"),
    ("clone into a namespace", "56, 220, 0x10000011, 0, 0, 0, 0"),
    ("clone into a process namespace", "56, 220, 0x20000011, 0, 0, 0, 0"),
    ("clone3", "435, 435, bytes(64), 64"),
    ("execve", "59, 221, b'/bin/true', None, None"),
    ("execveat", "322, 281, -100, b'/bin/true', None, None, 0"),
    ("kill outside", "62, 129, OUTSIDE_PID, 9"),
    ("kill the trainer", "62, 129, TRAINER_PID, 19"),
    ("kill all", "62, 129, -1, 9"),
    ("kill the parent", "62, 129, os.getppid(), 19"),
    ("kill itself", "62, 129, 0, 19"),
    ("tkill", "200, 130, OUTSIDE_PID, 9"),
    ("tgkill", "234, 131, OUTSIDE_PID, OUTSIDE_PID, 9"),
    ("queued signal", "129, 138, OUTSIDE_PID, 9, bytes(128)"),
    ("file of a process", "434, 434, OUTSIDE_PID, 0"),
    ("signal by file", "424, 424, 4, 9, None, 0"),
    ("file out of a process", "438, 438, 4, 0, 0"),
    ("ptrace", "101, 117, 16, OUTSIDE_PID, 0, 0"),
    ("ptrace of itself", "101, 117, 0, 0, 0, 0"),
    ("reads memory", "310, 270, TRAINER_PID, bytes(16), 1, bytes(16), 1, 0"),
    ("writes memory", "311, 271, TRAINER_PID, bytes(16), 1, bytes(16), 1, 0"),
    ("compares processes", "312, 272, 1, TRAINER_PID, 0, 0, 0"),
    ("priority", "141, 140, 0, OUTSIDE_PID, 19"),
    ("scheduler", "144, 119, OUTSIDE_PID, 0, bytes(8)"),
    ("affinity", "203, 122, 0, 8, (255).to_bytes(8, 'little')"),
    ("limits of a process", "302, 261, OUTSIDE_PID, 7, None, bytes(16)"),
    ("sets a limit", "302, 261, 0, 7, (9).to_bytes(16, 'little'), None"),
    ("setrlimit", "160, 164, 0, bytes(16)"),
    ("wait", "61, 260, -1, None, 0, None"),
    ("waitid", "247, 95, 0, 0, bytes(128), 4, None"),
    ("new session", "112, 157"),
    ("new group", "109, 154, 0, 0"),
    ("unshare users", "272, 97, 0x10000000"),
    ("unshare mounts", "272, 97, 0x00020000"),
    ("setns", "308, 268, 4, 0"),
    ("mount", "165, 40, b'none', b'/', b'tmpfs', 0, 0"),
    ("new mount", "429, 429, -1, b'', 0"),
    ("opens a mount", "428, 428, -100, b'/', 1"),
    ("chroot", "161, 51, b'/'"),
    ("pivot_root", "155, 41, b'/', b'/'"),
    ("host name", "170, 161, b'x', 1"),
    ("reboot", "169, 142, 0, 0, 0, None"),
    ("kernel module", "175, 105, None, 0, b''"),
    ("kexec", "246, 104, 0, 0, None, 0"),
    ("swap", "167, 224, b'/', 0"),
    ("clock", "227, 112, 0, bytes(16)"),
    ("death of the parent", "157, 167, 1, 0, 0, 0, 0"),
    ("dumpable", "157, 167, 4, 1, 0, 0, 0"),
    ("name", "157, 167, 15, b'trainer', 0, 0, 0"),
    ("adopts", "157, 167, 36, 1, 0, 0, 0"),
    ("second filter", "317, 277, 1, 0, bytes(16)"),
    ("capabilities", "126, 91, bytes(8), bytes(24)"),
    ("user", "105, 146, 0"),
    ("users", "117, 147, 0, 0, 0"),
    ("groups", "116, 159, 0, None"),
    ("personality", "135, 92, 0x0040000"),
    ("x86 segment", "158, None, 0x1002, 0"),
    ("modify_ldt", "154, None, 0, bytes(64), 64"),
    ("I/O ports", "172, None, 3"),
    ("io_setup", "206, 0, 8, bytes(8)"),
    ("io_uring", "425, 425, 8, bytes(120)"),
    ("userfaultfd", "323, 282, 1"),
    ("inotify", "294, 26, 0"),
    ("old inotify", "253, None"),
    ("fanotify", "300, 262, 0, 0"),
    ("key", "248, 217, b'user', b'x', b'y', 1, -3"),
    ("keys", "250, 219, 0, -3, 1"),
    ("asks for a key", "249, 218, b'user', b'x', None, -3"),
    ("BPF", "321, 280, 0, bytes(72), 72"),
    ("performance counter", "298, 241, bytes(112), 0, -1, -1, 0"),
    ("memory file", "319, 279, b'x', 0"),
    ("secret memory", "447, 447, 0"),
    ("pipe", "22, None, bytes(8)"),
    ("pipe2", "293, 59, bytes(8), 0"),
    ("splice", "275, 76, 0, None, 1, None, 9, 0"),
    ("sendfile", "40, 71, 1, 0, None, 9"),
    ("copies a range", "326, 285, 4, None, 4, None, 9, 0"),
    ("shared memory", "29, 194, 1, 4096, 0o1666"),
    ("named queue", "240, 180, b'x', 0o101, 0o666, None"),
    ("entropy", "318, 278, bytes(16), 16, 0"),
    ("sync", "162, 81"),
    ("sync of a file", "74, 82, 4"),
    ("log", "103, 116, 3, bytes(16), 16"),
    ("quota", "179, 60, 0, None, 0, None"),
    ("accounting", "163, 89, None"),
    ("locks memory", "149, 228, 0, 4096"),
    ("locks all memory", "151, 230, 3"),
    ("moves pages", "279, 239, OUTSIDE_PID, 0, None, None, None, 0"),
    ("advises a process", "440, 440, 4, None, 0, 0, 0"),
    ("membarrier", "324, 283, 0, 0, 0"),
    ("protection key", "330, 289, 0, 0"),
    ("writes ahead", "77, 46, 0, 1"),
]
ATTACKS: list[Attack] = [
    refused(f"calls: {name}", f"call({text})", "forbidden|error" if name == "writes ahead" else "forbidden")
    for name, text in CALLS
]
ATTACKS += [
    second(f"processes: {name}", body, "forbidden", head=KERNEL, levels=CONFINED)
    for name, body in [
        ("fork", "os.fork()"),
        ("fork bomb", "while True: os.fork()"),
        ("fork and stay", "if os.fork() == 0:\n    while True: pass"),
        ("exec", "os.execv('/bin/true', ['true'])"),
        ("exec of Python", "os.execv(sys.executable, [sys.executable])"),
        ("spawn", "import subprocess\nsubprocess.run(['/bin/true'])"),
        ("posix spawn", "os.posix_spawn('/bin/true', ['true'], {})"),
        ("thread", "import threading\nthreading.Thread(target=print).start()"),
        ("low thread", "import _thread\n_thread.start_new_thread(print, ())"),
        ("thread pool", "from concurrent.futures import ThreadPoolExecutor as P\nP().submit(print)"),
        ("kill the parent", "os.kill(os.getppid(), 9)"),
        ("kill the first", "os.kill(1, 9)"),
        ("kill outside", "os.kill(OUTSIDE_PID, 9)"),
        ("stop the trainer", "os.kill(TRAINER_PID, 19)"),
        ("kill the trainer's group", "os.killpg(os.getpgid(TRAINER_PID), 9)"),
        ("nice", "os.nice(1)"),
        ("user", "os.setuid(0)"),
        ("opens the trainer", "os.pidfd_open(TRAINER_PID)"),
        ("limits of the trainer", "import resource\nresource.prlimit(TRAINER_PID, 7)"),
    ]
]
# Newer Pythons open a terminal first, which is not there inside bubblewrap.
ATTACKS.append(second("processes: terminal fork", "os.forkpty()", "forbidden|error", head=KERNEL, levels=CONFINED))
ATTACKS.append(
    second(
        "processes: limit of files",
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))",
        "error",  # Python makes a ValueError of it
        levels=CONFINED,
    )
)
ATTACKS += [
    refused(f"descriptor: {name}", f"import fcntl\nfcntl.fcntl(4, {number}, {value})")
    for name, number, value in [
        ("owner outside", 8, "OUTSIDE_PID"),
        ("signal", 10, 9),
        ("notice of a folder", 1026, "0x8000003f"),
        ("lease", 1024, 0),
        ("flags", 4, "os.O_ASYNC"),
        ("lock", 6, "bytes(32)"),
        ("seal", 1033, 15),
        ("size of a pipe", 1031, 4096),
        ("owner", 15, "bytes(8)"),
        ("hint", 1036, "bytes(8)"),
    ]
]
ATTACKS += [
    refused(f"device: {name}", f"import fcntl\nfcntl.ioctl({file}, {number}, bytes(64))")
    for name, file, number in [
        ("owner", 4, 0x8901),
        ("asynchronous", 4, 0x5452),
        ("flags of an inode", 4, 0x40086602),
        ("flags of another kind", 4, 0x401C5820),
        ("types into a terminal", 0, 0x5412),
        ("takes a terminal", 0, 0x540E),
        ("clones a file", 4, 0x40049409),
        ("size of a terminal", 0, 0x5414),
    ]
]

EVERY = (
    KERNEL
    + """
# These end the process or return from a signal; 335 and 336 are traps of the kernel's own, which no filter sees, and
# end a process that calls them.
SKIPPED = (94, 93, 139) if arm else (60, 231, 15, 335, 336)
def f(first, last, given):
    open_calls = []
    for number in range(first, last):
        if number not in SKIPPED:
            ctypes.set_errno(0)
            rest = [ctypes.c_long(given)] * 6
            result = libc.syscall(ctypes.c_long(number), *rest)
            if result != -1 or ctypes.get_errno() != errno.EPERM:
                open_calls.append(number)
    return open_calls
"""
)
# Runs a few bytes of machine code: the number in EAX, int 0x80 (calls of 32 bits), or the instruction of 64 bits.
MACHINE_CODE = (
    KERNEL
    + """
import mmap
def run(code, number):
    room = mmap.mmap(-1, 4096, prot=7)
    room.write(code)
    place = ctypes.addressof(ctypes.c_char.from_buffer(room))
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(place)(number)
def f(code):
    if arm: return []
    # A file, the own process and a message, by the numbers of 32 bits.
    return [n for n in (2, 5, 11, 20, 26, 37, 102, 120, 190, 310, 359) if run(bytes.fromhex(code), n) != -1]
"""
)


def all_calls(name: str, first: int, last: int, given: int) -> Attack:
    """Tries every number; what the test then compares with those allowed is what comes out."""
    return Attack(name, EVERY, (Value("any value"),), (Call((first, last, given)),), levels=CONFINED)


SWEEPS = [all_calls("every call, -1", 0, 600, -1), all_calls("every call, 0", 0, 600, 0)]
SWEEPS += [all_calls("every call of x32", 2**30, 2**30 + 600, 0)]
ATTACKS += SWEEPS


def _machine_code() -> Attack:
    # mov eax, edi; xor ebx, ebx; xor ecx, ecx; xor edx, edx; int 0x80; ret, with rbx kept
    return Attack(
        "calls of 32 bits by int 0x80",
        MACHINE_CODE,
        (["error", Value([])],),  # a kernel without these calls ends it
        (Call(("5389f831db31c931d2cd805bc3",)),),
        levels=CONFINED,
    )


ATTACKS.append(_machine_code())
