package run

import (
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/piped"
)

const (
	// A frame's payload, with room for the beginning of an incomplete line.
	pieceBytes = 64 << 10
	// A pipe's capacity, unless root raised the limit.
	pipeBytes = 1 << 20
	// After so much at once there is a pause, so that the next read takes more: waking up for each write costs both sides.
	muchBytes = 16 << 10
	pauseTime = time.Millisecond
)

var pieces = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

// pump copies one of an application's streams to the client. It has a buffer only while there is data in it.
type pump struct {
	file  *os.File
	raw   syscall.RawConn
	to    io.WriteCloser
	gone  bool       // the client takes no more
	guard *lineGuard // nil: bytes are passed on unchanged

	isFull, isWide bool // whether its pipe was ever full, and was widened then
}

// newPump makes a pipe whose other end is the application's. Lines that are too long are kept in the file kept, unless
// its name is empty.
func newPump(to io.WriteCloser, kept string) (p *pump, theirs int, err error) {
	ends, err := rawPipe()
	if err != nil {
		return nil, -1, err
	}
	if p, err = pumpFrom(ends[0], to); err != nil {
		syscall.Close(ends[1])
		return nil, -1, err
	}
	if kept != "" {
		p.guard = newLineGuard(kept, p.write)
	}
	return p, ends[1], nil
}

// pumpFrom copies from our end, which it owns.
func pumpFrom(end int, to io.WriteCloser) (*pump, error) {
	p := &pump{file: polled(end), to: to}
	var err error
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, err
	}
	return p, nil
}

// run returns when nobody has the other end open any more, or when it has read everything that was there at finish.
func (p *pump) run() {
	for p.next() {
	}
	if p.guard != nil {
		p.guard.close()
	}
	_ = p.to.Close()
	p.file.Close()
}

// finish says that any process with the other end still open is not the application's.
func (p *pump) finish() {
	_ = p.file.SetReadDeadline(time.Unix(1, 0))
}

// next waits for a piece and passes it on.
func (p *pump) next() bool {
	var piece *[pieceBytes]byte
	var n int
	err := p.raw.Read(func(file uintptr) bool {
		piece, n = p.read(file)
		return piece != nil || n == 0
	})
	if err != nil {
		p.rest()
		return false
	}
	if piece == nil {
		return false
	}
	full := n == pieceBytes-p.guard.ahead()
	p.take(piece, n)
	switch {
	case full && !p.isFull:
		p.isFull, p.isWide = true, piped.Widen(p.file)
	case !full && p.isWide && n >= muchBytes:
		time.Sleep(pauseTime)
	}
	return true
}

// rest reads what is left in the pipe.
func (p *pump) rest() {
	for taken := 0; taken < pipeBytes; {
		var piece *[pieceBytes]byte
		var n int
		if p.raw.Control(func(file uintptr) { piece, n = p.read(file) }) != nil || piece == nil {
			return
		}
		p.take(piece, n)
		taken += n
	}
}

// read returns no piece at the end (0) or if there is no data yet (-1); it also takes what arrives meanwhile.
func (p *pump) read(file uintptr) (*[pieceBytes]byte, int) {
	piece := pieces.Get().(*[pieceBytes]byte)
	into := piece[p.guard.ahead():]
	for taken := 0; ; {
		n, err := syscall.Read(int(file), into[taken:])
		if err == syscall.EINTR {
			continue
		}
		if taken += max(n, 0); n > 0 && taken < len(into) {
			continue
		}
		if taken > 0 {
			return piece, taken
		}
		pieces.Put(piece)
		if err == syscall.EAGAIN {
			return nil, -1
		}
		return nil, 0
	}
}

func (p *pump) take(piece *[pieceBytes]byte, n int) {
	if p.guard != nil {
		p.guard.feed(piece[:p.guard.ahead()+n])
	} else {
		p.write(piece[:n])
	}
	pieces.Put(piece)
}

// write discards data without a client: an application that is stopped may still print much.
func (p *pump) write(data []byte) {
	if !p.gone {
		_, err := p.to.Write(data)
		p.gone = err != nil
	}
}

func (p *pump) cutLines() int {
	if p == nil || p.guard == nil {
		return 0
	}
	return p.guard.cutLines
}

// pipe makes the application's stdin.
func pipe() (theirs int, ours *os.File, err error) {
	ends, err := rawPipe()
	if err != nil {
		return -1, nil, err
	}
	return ends[0], polled(ends[1]), nil
}

// rawPipe makes a close-on-exec pipe. Not os.Pipe, whose ends are both non-blocking, the application's too.
func rawPipe() (ends [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err = syscall.Pipe(ends[:]); err == nil {
		syscall.CloseOnExec(ends[0])
		syscall.CloseOnExec(ends[1])
	}
	return ends, err
}

// polled makes a file of our end that uses the runtime's poller instead of a thread.
func polled(end int) *os.File {
	_ = syscall.SetNonblock(end, true)
	return os.NewFile(uintptr(end), "pipe")
}

// feed copies from the client to the application's stdin. What the application does not read is dropped.
func feed(stdin *os.File, from io.Reader) {
	buffer := pieces.Get().(*[pieceBytes]byte)
	defer pieces.Put(buffer)
	defer stdin.Close()
	for open := true; ; {
		n, err := from.Read(buffer[:])
		if open && n > 0 {
			_, failed := stdin.Write(buffer[:n])
			open = failed == nil
		}
		if err != nil {
			return
		}
	}
}
