package piped

import (
	"os"
	"syscall"
)

// Widen raises a pipe's capacity to 1 MiB, the default limit for users, to save context switches, and tells whether it
// could.
func Widen(pipe *os.File) (done bool) {
	const setPipeSize = 1031 // F_SETPIPE_SZ
	if raw, err := pipe.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_, _, number := syscall.Syscall(syscall.SYS_FCNTL, fd, setPipeSize, 1<<20)
			done = number == 0
		})
	}
	return done
}
