package host

import (
	"os"
	"syscall"
	"time"

	"remote-runner/agent/internal/piped"
)

// outlet writes to a transport's stdout. sshd reads 32 KiB at a time, and waking the agent for each read costs more than
// the read: a pipe that was full is widened, and then gets some time to drain.
type outlet struct {
	*os.File
	isFull, isWide bool
}

const pauseTime = time.Millisecond

func (o *outlet) Write(data []byte) (written int, err error) {
	raw, err := o.SyscallConn()
	for err == nil && written < len(data) {
		if o.isWide && written > 0 {
			time.Sleep(pauseTime)
		}
		n := 0
		failed := raw.Write(func(fd uintptr) bool {
			for n, err = syscall.Write(int(fd), data[written:]); err == syscall.EINTR; {
				n, err = syscall.Write(int(fd), data[written:])
			}
			return err != syscall.EAGAIN
		})
		if failed != nil {
			return written, failed
		}
		written += max(n, 0)
		if written < len(data) && !o.isFull {
			o.isFull, o.isWide = true, piped.Widen(o.File)
		}
	}
	return written, err
}
