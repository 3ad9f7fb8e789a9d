"""Runs a program on a terminal of 140 columns: `python -S -E terminal.py PROGRAM …`; what it draws goes to stdout."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios


def main() -> int:
    """The program's exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        os.execvp(sys.argv[1], sys.argv[1:])
    while True:
        try:
            drawn = os.read(terminal, 65536)
        except OSError:  # Linux' word for the end of a terminal
            break
        os.write(1, drawn)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
