"""Programs that read, write or look outside, or reach a network.

FOLDER is a folder outside with the files `secret` and `kept` and the named pipe `pipe`; PORT and NAME are of sockets
that listen there.
"""

from tests.rewards.hostile.attack import CONFINED, KERNEL, Attack, Value, refused, second

READING = [
    ("file", "open(FOLDER + '/secret').read()"),
    ("bytes", "os.read(os.open(FOLDER + '/secret', os.O_RDONLY), 99)"),
    ("memory map", "import mmap\nmmap.mmap(os.open(FOLDER + '/secret', 0), 0, access=mmap.ACCESS_READ)[:]"),
    ("folder", "os.listdir(FOLDER)"),
    ("walk", "os.scandir(FOLDER)"),
    ("up from the library", "open(os.path.dirname(os.__file__) + '/../../../../../../..' + FOLDER + '/secret').read()"),
    ("relative", "os.open('secret', 0, dir_fd=os.open(FOLDER, os.O_PATH))"),
    ("root's files", "open('/root/.profile').read()"),
    ("passwords", "open('/etc/passwd').read()"),
    ("environment", "open('/proc/self/environ').read()"),
    ("environment of the trainer", "open(f'/proc/{TRAINER_PID}/environ').read()"),
    ("memory of the trainer", "open(f'/proc/{TRAINER_PID}/mem', 'rb').read(9)"),
    ("files of the trainer", "os.listdir(f'/proc/{TRAINER_PID}/fd')"),
    ("root of the trainer", "os.listdir(f'/proc/{TRAINER_PID}/root')"),
    ("mounts", "open('/proc/mounts').read()"),
    ("memory of the parent", "open('/proc/1/mem', 'rb').read(9)"),
    ("command of the parent", "open('/proc/1/cmdline', 'rb').read()"),
    ("own memory", "open('/proc/self/mem', 'rb').read(9)"),
    ("own maps", "open('/proc/self/maps').read()"),
    ("kernel", "open('/proc/kallsyms').read(9)"),
    ("system", "os.listdir('/sys')"),
    ("random", "open('/dev/urandom', 'rb').read(9)"),
    ("shared memory", "os.listdir('/dev/shm')"),
    ("terminal", "open('/dev/tty').read()"),
    ("zeros", "open('/dev/zero', 'rb').read(9)"),
    ("pipe", "open(FOLDER + '/pipe').read()"),
    ("temporary files", "open('/tmp/x').read()"),
    ("home", "os.listdir(os.path.expanduser('~root'))"),
    ("handle", "call(303, 264, -100, FOLDER.encode(), bytes(128), bytes(8), 0)"),
    ("attribute", "os.getxattr(FOLDER + '/secret', 'user.x')"),
    ("attributes", "os.listxattr(FOLDER + '/secret')"),
    ("file system", "os.statvfs('/')"),
    ("extended open", "call(437, 437, -100, FOLDER.encode(), bytes(24), 24)"),
    ("watch", "call(254, 27, 4, FOLDER.encode(), 4095)"),
    ("changes its folder", "os.chdir(FOLDER)"),
    ("changes its root", "os.chroot(FOLDER)"),
]
WRITING = [
    ("file", "open(FOLDER + '/kept', 'w')"),
    ("in place", "open(FOLDER + '/kept', 'r+')"),
    ("new file", "open(FOLDER + '/new', 'x')"),
    ("append", "open(FOLDER + '/kept', 'a')"),
    ("pipe", "os.open(FOLDER + '/pipe', os.O_WRONLY | os.O_NONBLOCK)"),
    ("pipe, both ways", "os.open(FOLDER + '/pipe', os.O_RDWR | os.O_NONBLOCK)"),
    ("without a name", "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)"),
    ("truncating read", "os.open(FOLDER + '/kept', os.O_RDONLY | os.O_TRUNC)"),
    ("creating read", "os.open(FOLDER + '/new', os.O_RDONLY | os.O_CREAT)"),
    ("null device", "os.open('/dev/null', os.O_WRONLY)"),
    ("shared memory", "open('/dev/shm/x', 'w')"),
    ("temporary file", "import tempfile\ntempfile.TemporaryFile()"),
    ("temporary folder", "import tempfile\ntempfile.mkdtemp(dir='/tmp')"),
    ("in /tmp", "open('/tmp/x', 'w')"),
    ("library", "open(os.__file__, 'a')"),
    ("current folder", "open('x', 'w')"),
    ("removal", "os.remove(FOLDER + '/kept')"),
    ("folder", "os.mkdir(FOLDER + '/new')"),
    ("removal of a folder", "os.rmdir(FOLDER)"),
    ("new name", "os.rename(FOLDER + '/kept', FOLDER + '/new')"),
    ("truncation", "os.truncate(FOLDER + '/kept', 0)"),
    ("mode", "os.chmod(FOLDER + '/kept', 0)"),
    ("mode of an open file", "os.fchmod(4, 0)"),
    ("owner", "os.chown(FOLDER + '/kept', 1, 1)"),
    ("link", "os.symlink(FOLDER + '/kept', FOLDER + '/new')"),
    ("hard link", "os.link(FOLDER + '/kept', FOLDER + '/new')"),
    ("named pipe", "os.mkfifo(FOLDER + '/new')"),
    ("device", "os.mknod(FOLDER + '/new', 0o20666, os.makedev(1, 3))"),
    ("times", "os.utime(FOLDER + '/kept')"),
    ("attribute", "os.setxattr(FOLDER + '/kept', 'user.x', b'y')"),
    ("attribute of an open file", "os.setxattr(4, 'user.x', b'y')"),
    ("attribute by folder", "call(463, 463, -100, FOLDER.encode(), 0, b'user.x', bytes(16), 16)"),
    ("reads an attribute by folder", "call(464, 464, -100, FOLDER.encode(), 0, b'user.x', bytes(16), 16)"),
    ("file attributes", "call(469, 469, -100, FOLDER.encode(), bytes(24), 24, 0)"),
    ("reads file attributes", "call(468, 468, -100, FOLDER.encode(), bytes(24), 24, 0)"),
    ("mask", "os.umask(0)"),
    ("room", "os.posix_fallocate(4, 0, 9)"),
    ("advice", "os.posix_fadvise(4, 0, 0, 4)"),
]
NETWORK = [
    ("connection", "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)"),
    ("datagram", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))"),
    ("six", "import socket\nsocket.socket(socket.AF_INET6)"),
    ("abstract", "import socket\nsocket.socket(socket.AF_UNIX).connect(chr(0) + NAME)"),
    ("path", "import socket\nsocket.socket(socket.AF_UNIX).connect(FOLDER + '/socket')"),
    ("raw", "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
    ("netlink", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    ("virtual machine", "import socket\nsocket.socket(40, socket.SOCK_STREAM)"),
    ("algorithms", "import socket\nsocket.socket(38, socket.SOCK_SEQPACKET)"),
    ("server", "import socket\nsocket.create_server(('127.0.0.1', 0))"),
    ("names", "import socket\nsocket.gethostbyname('localhost')"),
    ("page", "import urllib.request as u\nu.urlopen(f'http://127.0.0.1:{PORT}')"),
    ("raw call", "call(41, 198, 2, 1, 0)"),
    ("pair by raw call", "call(53, 199, 1, 1, 0, bytes(8))"),
    ("connects a file", "call(42, 203, 4, bytes(16), 16)"),
    ("message", "call(46, 211, 4, bytes(56), 0)"),
    ("control socket", "import socket\nsocket.socket(fileno=4).send(b'd')"),
]
ATTACKS: list[Attack] = [refused(f"reads: {name}", body, "forbidden|error") for name, body in READING]
ATTACKS += [refused(f"writes: {name}", body, "forbidden|error") for name, body in WRITING]
ATTACKS += [refused(f"network: {name}", body, "forbidden|error") for name, body in NETWORK]

ATTACKS += [
    Attack(
        f"paths: {name}",
        f"import os\ndef f(a): return {body}",
        (Value(False),) * 3,
        levels=("bubblewrap",),
    )
    for name, body in [
        ("stat", "os.path.exists(FOLDER)"),
        ("lstat", "os.path.lexists(FOLDER + '/secret')"),
        ("access", "os.access(FOLDER, os.F_OK)"),
        ("readlink", "os.path.islink('/proc/self')"),
        ("the trainer's process", "os.path.exists(f'/proc/{TRAINER_PID}')"),
        ("passwords", "os.path.exists('/etc/passwd')"),
        ("homes", "any(map(os.path.exists, ('/home', '/var', '/sys', '/boot', '/opt/x', '/run', '/mnt')))"),
        ("devices", "any(map(os.path.exists, ('/dev/tty', '/dev/zero', '/dev/urandom', '/dev/shm', '/dev/pts')))"),
    ]
]
ATTACKS += [
    Attack(
        f"leaks: {name}",
        f"import gc, os, sys\n{KERNEL}\ndef f(a):\n    {body}",
        (Value(right),) * 3,
        levels=levels,
    )
    for name, body, right, levels in [
        ("environment", "return dict(os.environ)", {}, ("limits", *CONFINED)),
        (
            "environment of C",
            "libc.getenv.restype = ctypes.c_char_p; return libc.getenv(b'SECRET_OF_THE_TRAINER')",
            None,
            ("limits", *CONFINED),
        ),
        ("files", "return [n for n in range(99) if not os.system('') and 0 or is_open(n)]", [0, 1, 2, 4], ()),
        (
            "random bytes of the process",
            "libc.getauxval.restype = ctypes.c_ulong; return ctypes.string_at(libc.getauxval(25), 16) == bytes(16)",
            True,
            CONFINED,
        ),
        ("names of the machine", "return os.uname().nodename", "sandbox", ("bubblewrap",)),
        ("other parents", "return os.getppid()", 0, CONFINED),
        ("process number", "return os.getpid()", 1, CONFINED),
    ]
    if levels
]
ATTACKS.append(
    Attack(
        "leaks: open files",
        "import os\ndef f(a):\n    found = []\n    for n in range(99):\n        try: os.fstat(n); found.append(n)\n"
        "        except OSError: pass\n    return found",
        (Value([0, 1, 2, 4]),) * 3,
    )
)
ATTACKS.append(
    second(
        "writes to every descriptor",
        "for n in range(99):\n    try: os.write(n, b'x')\n    except OSError: pass\nos._exit(0)",
        "error",
    )
)
