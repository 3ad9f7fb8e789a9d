package store

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// inProcess has the files that this agent holds: where flock is made of fcntl locks (NFS), it excludes other processes
// only. A held lock's channel is closed when it is let go.
var inProcess = struct {
	sync.Mutex
	held map[string]chan struct{}
}{held: map[string]chan struct{}{}}

// lock takes the file at path for this one request, among all agents; unlock lets go of it, and removes it.
//
// Where the file system knows no locks, only this agent's own requests exclude each other.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	release, err := lockInProcess(ctx, path)
	if err != nil {
		return nil, err
	}
	pause := 5 * time.Millisecond
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			release()
			return nil, err
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			file.Close()
			select {
			case <-time.After(pause):
				pause = min(2*pause, 500*time.Millisecond)
				continue
			case <-ctx.Done():
				release()
				return nil, ctx.Err()
			}
		}
		if err == nil && !isAt(file, path) {
			// Who had it removed it, and a third one may have made another.
			file.Close()
			continue
		}
		return func() {
			os.Remove(path)
			file.Close()
			release()
		}, nil
	}
}

func isAt(file *os.File, path string) bool {
	ours, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, there)
}

func lockInProcess(ctx context.Context, path string) (release func(), err error) {
	for {
		inProcess.Lock()
		gone, held := inProcess.held[path]
		if !held {
			gone = make(chan struct{})
			inProcess.held[path] = gone
			inProcess.Unlock()
			return func() {
				inProcess.Lock()
				delete(inProcess.held, path)
				inProcess.Unlock()
				close(gone)
			}, nil
		}
		inProcess.Unlock()
		select {
		case <-gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
