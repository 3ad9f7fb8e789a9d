package run

import (
	"os"
	"syscall"
	"unsafe"
)

// window is the size of a terminal, in characters.
type window struct{ Rows, Columns uint16 }

// openTerminal makes a pseudo-terminal, and returns the application's end.
func (a *application) openTerminal(size window) (theirs int, err error) {
	ours, theirs, err := pseudoTerminal()
	if err != nil {
		return -1, err
	}
	again, err := duplicate(ours)
	if err == nil {
		a.stdin = polled(again)
		a.pumps[0], err = pumpFrom(ours, a.stream.Writer(laneStdout, false))
	} else {
		syscall.Close(ours)
	}
	if err != nil {
		syscall.Close(theirs)
		return -1, err
	}
	a.resize(size)
	return theirs, nil
}

func (a *application) hasTerminal() bool { return a.pumps[1] == nil }

// resize sets the terminal's size; the kernel notifies the programs at it.
func (a *application) resize(size window) {
	if !a.hasTerminal() {
		return
	}
	if raw, err := a.stdin.SyscallConn(); err == nil {
		_ = raw.Control(func(file uintptr) {
			told := [4]uint16{size.Rows, size.Columns} // struct winsize
			_ = control(int(file), syscall.TIOCSWINSZ, unsafe.Pointer(&told))
		})
	}
}

// duplicate returns another descriptor, so that reading and writing end independently.
func duplicate(file int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	again, err := syscall.Dup(file)
	if err == nil {
		syscall.CloseOnExec(again)
	}
	return again, err
}

// control is ioctl(2).
func control(file int, request uintptr, argument unsafe.Pointer) error {
	if _, _, number := syscall.Syscall(syscall.SYS_IOCTL, uintptr(file), request, uintptr(argument)); number != 0 {
		return number
	}
	return nil
}

// openBoth opens the two ends; named unlocks the application's end, given ours, and returns its path.
func openBoth(named func(ours int) (string, error)) (ours, theirs int, err error) {
	const flags = syscall.O_RDWR | syscall.O_NOCTTY | syscall.O_CLOEXEC
	if ours, err = syscall.Open("/dev/ptmx", flags, 0); err != nil {
		return -1, -1, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	path, err := named(ours)
	if err == nil {
		if theirs, err = syscall.Open(path, flags, 0); err != nil {
			err = &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	if err != nil {
		syscall.Close(ours)
		return -1, -1, err
	}
	return ours, theirs, nil
}
