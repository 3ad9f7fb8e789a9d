package nix

import (
	"os"
	"syscall"
)

// widen lets a pipe hold 1 MiB, the most that the kernel lets everybody have: fewer turns of both sides.
func widen(pipe *os.File) {
	const setPipeSize = 1031 // F_SETPIPE_SZ
	if raw, err := pipe.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, fd, setPipeSize, 1<<20)
		})
	}
}
