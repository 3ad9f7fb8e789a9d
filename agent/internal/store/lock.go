package store

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// inProcess has the locks that this agent holds: where flock is emulated by fcntl locks (NFS), it excludes other processes
// only. A lock's channel is closed when it is released.
var inProcess = struct {
	sync.Mutex
	held map[string]chan struct{}
}{held: map[string]chan struct{}{}}

// lock locks the file at path for one request, among all agents; unlock releases and removes it.
//
// On a file system without locks, only this agent's own requests exclude each other.
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
			// Its holder removed it, and another process may have created a new one.
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

var errHeld = errors.New("somebody holds it")

// tryLock is as lock, but that it does not wait: errHeld then.
func tryLock(path string) (unlock func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if unlock, err = lock(ctx, path); errors.Is(err, context.Canceled) {
		err = errHeld
	}
	return unlock, err
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
