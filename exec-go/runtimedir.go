package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// runtimeDirectory returns this user's directory for sockets and locks: remote_runner/controller.py finds the same one, and
// rejects it for the same reasons.
func runtimeDirectory() (string, error) {
	path := os.Getenv("REMOTE_RUNNER_RUNTIME_DIR")
	if path == "" {
		run := "/run/user/" + strconv.Itoa(os.Getuid())
		path = "/tmp/remote-runner-" + strconv.Itoa(os.Getuid())
		if found, err := os.Stat(run); err == nil && found.IsDir() && owner(found) == os.Getuid() {
			path = run + "/remote-runner"
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return path, ownDirectory(path)
}

// ownDirectory creates the directory with mode 0700, or returns why an existing one cannot be trusted. Nothing is created
// where others could interfere.
func ownDirectory(path string) error {
	if err := checkWay(path); err != nil {
		return err
	}
	return makeOwn(path)
}

// makeOwn creates a directory below one of ours, or accepts an existing one if it is ours alone.
func makeOwn(path string) error {
	found, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(path, 0o700); err == nil {
			found, err = os.Lstat(path)
		}
	}
	if err != nil {
		return err
	}
	if !found.IsDir() || owner(found) != os.Getuid() {
		return errors.New(path + ": is not a directory of user " + strconv.Itoa(os.Getuid()))
	}
	if found.Mode().Perm()&0o022 != 0 {
		return errors.New(path + ": other users may write to it")
	}
	if found.Mode().Perm()&0o077 != 0 {
		return os.Chmod(path, 0o700)
	}
	return nil
}

// at adds the place to an error.
func at(where string, err error) error { return errors.New(where + ": " + err.Error()) }

// checkWay checks each existing directory and link on the way to path.
func checkWay(path string) error {
	const mostLinks = 40 // as Linux
	here, todo, links := "/", append([]string{"."}, strings.Split(filepath.Dir(path), "/")...), 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		if part == "" {
			continue
		}
		place := filepath.Join(here, part)
		found, err := os.Lstat(place)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && part != ".." {
			err = mayLieBelow(path, place, found)
		}
		if err != nil {
			return err
		}
		if found.Mode()&os.ModeSymlink == 0 {
			here = place
			continue
		}
		if links++; links > mostLinks {
			return &os.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(place)
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			here = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil
}

// mayLieBelow returns an error if somebody else could replace what lies below that directory, or behind that link.
func mayLieBelow(path, place string, found os.FileInfo) error {
	system := found.Sys().(*syscall.Stat_t)
	if !isTrusted(int(system.Uid)) {
		return errors.New(path + ": user " + strconv.Itoa(int(system.Uid)) + " owns " + place + " and could replace it")
	}
	if !found.IsDir() || found.Mode()&os.ModeSticky != 0 {
		return nil // in a sticky directory (/tmp) nobody else can rename what is ours
	}
	if found.Mode().Perm()&0o002 != 0 {
		return errors.New(path + ": any user could replace it: " + place + " is writable by all")
	}
	// A group with the same number as the directory's user is that user's private group.
	if found.Mode().Perm()&0o020 != 0 && system.Gid != system.Uid {
		return errors.New(path + ": group " + strconv.Itoa(int(system.Gid)) + " could replace it: it may write to " + place)
	}
	return nil
}

// isTrusted reports whether our directory may lie below one of that user: root or this user. In a user namespace everything
// from outside, root's included, shows as one owner.
func isTrusted(user int) bool {
	if user == 0 || user == os.Getuid() {
		return true
	}
	mapped, err := os.ReadFile("/proc/self/uid_map")
	overflow, failed := os.ReadFile("/proc/sys/kernel/overflowuid")
	return err == nil && failed == nil && strings.TrimSpace(string(overflow)) == strconv.Itoa(user) &&
		strings.Join(strings.Fields(string(mapped)), " ") != "0 0 4294967295"
}

func owner(found os.FileInfo) int {
	return int(found.Sys().(*syscall.Stat_t).Uid)
}

// A fileLock is an flock(2) on a file of its own, as in remote_runner/controller.py.
type fileLock struct{ fd int }

// acquire waits for the lock for a limited time: its holder may have been stopped.
func acquire(path string, limit time.Duration) (fileLock, error) {
	type outcome struct {
		lock fileLock
		err  error
	}
	taken := make(chan outcome, 1)
	go func() {
		lock, err := flock(path)
		taken <- outcome{lock, err}
	}()
	select {
	case found := <-taken:
		return found.lock, found.err
	case <-time.After(limit):
		return fileLock{}, errors.New(path + ": somebody holds it for more than " + limit.String())
	}
}

func flock(path string) (fileLock, error) {
	for {
		fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return fileLock{}, &os.PathError{Op: "open", Path: path, Err: err}
		}
		if err = ignoringInterrupts(func() error { return syscall.Flock(fd, syscall.LOCK_EX) }); err != nil {
			syscall.Close(fd)
			return fileLock{}, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		var held, there syscall.Stat_t
		err = syscall.Fstat(fd, &held)
		if err == nil {
			err = syscall.Stat(path, &there)
		}
		if err == nil && held.Dev == there.Dev && held.Ino == there.Ino {
			return fileLock{fd}, nil
		}
		syscall.Close(fd) // `fab clean` removed the file between the two calls
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fileLock{}, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
}

func (lock fileLock) release() {
	syscall.Close(lock.fd)
}

// readFile avoids os.ReadFile, which sets up polling first: ten system calls, and often a thread.
func readFile(path string) ([]byte, error) {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer syscall.Close(fd)
	content, size := make([]byte, 4096), 0
	for {
		count := 0
		err = ignoringInterrupts(func() (err error) { count, err = syscall.Read(fd, content[size:]); return })
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if count == 0 {
			return content[:size], nil
		}
		if size += count; size == len(content) {
			content = append(content, make([]byte, size)...)
		}
	}
}

func ignoringInterrupts(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}
