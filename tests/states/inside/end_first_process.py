"""Ends the first process of the machine: no signal may, so it is made to run into nothing.

Runs in a sandbox, as root: `python3 end_first_process.py SECONDS`; SECONDS later it strikes.
"""

import ctypes
import os
import sys
import time

ATTACH, POKE_USER, DETACH = 16, 6, 17
INSTRUCTION_POINTER = 16 * 8

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, address=None, data=None):
    if libc.ptrace(request, 1, address, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


time.sleep(float(sys.argv[1]))
ptrace(ATTACH)
os.waitpid(1, 0x40000000)  # __WALL: it is no child of ours
ptrace(POKE_USER, INSTRUCTION_POINTER, 8)
ptrace(DETACH)
