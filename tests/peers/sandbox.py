"""Runs a program under the system-call filter of a unit file, as systemd would set it, without systemd.

`sandbox.py UNIT PROGRAM …`. Only SystemCallFilter= and SystemCallErrorNumber= are read; the sets are those that
systemd-analyze of this machine names. `sandbox.py UNIT --probe` says what asking the kernel for the time comes to.
"""

import ctypes
import errno
import os
import subprocess
import sys

unit, command = sys.argv[1], sys.argv[2:]

ACT_ALLOW = 0x7FFF0000
ACT_ERRNO = 0x00050000


def expanded(name):
    """The calls of a set, and of the sets in it."""
    if not name.startswith("@"):
        return {name}
    listing = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True)
    words = [line.strip() for line in listing.stdout.splitlines()[1:]]
    return {call for word in words if word and not word.startswith("#") for call in expanded(word)}


allowed, code = None, errno.EPERM
for line in open(unit):
    key, _, value = line.strip().partition("=")
    if key == "SystemCallErrorNumber":
        code = getattr(errno, value)
    elif key == "SystemCallFilter":
        is_denied = value.startswith("~")
        calls = set().union(*(expanded(name) for name in value.lstrip("~").split()))
        assert allowed is not None or not is_denied, "a list of what is allowed comes first"
        allowed = allowed - calls if is_denied else (allowed or set()) | calls
assert allowed, f"{unit} has no SystemCallFilter"
# What systemd itself adds, so that a program can be started at all.
allowed |= {"execve", "exit", "exit_group", "rt_sigreturn", "sigreturn", "getrlimit", "arch_prctl"}

seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
seccomp.seccomp_init.restype = ctypes.c_void_p
seccomp.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
rules = seccomp.seccomp_init(ACT_ERRNO | code)
for call in sorted(allowed):
    number = seccomp.seccomp_syscall_resolve_name(call.encode())
    # Calls that this architecture does not have, or that the library does not know, cannot be made anyway.
    if number >= 0:
        assert seccomp.seccomp_rule_add(rules, ACT_ALLOW, number, 0) == 0, call
assert seccomp.seccomp_load(rules) == 0, "the filter was not taken"

if command == ["--probe"]:
    libc = ctypes.CDLL(None, use_errno=True)
    # All zeros only ask. Without the filter both work for everybody.
    asked = ctypes.create_string_buffer(1024)
    for name, arguments in (("adjtimex", [asked]), ("clock_adjtime", [0, asked])):
        ctypes.set_errno(0)
        answer = getattr(libc, name)(*arguments)
        print(name, "works" if answer >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
else:
    os.execvp(command[0], command)
