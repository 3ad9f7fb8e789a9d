package host

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// How long an unused program is kept.
const abandoned = 24 * time.Hour

var programName = regexp.MustCompile(`^[0-9a-f]{16}-`)

// use marks a program as in use until the result is closed.
func use(program string) (*os.File, error) {
	file, err := os.Open(program)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	now := time.Now()
	return file, os.Chtimes(program, now, now)
}

func isUsed(program string) bool {
	file, err := os.Open(program)
	if err != nil {
		return true
	}
	defer file.Close()
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// sweep removes what other agents left in their directory: programs of other versions, incomplete programs, and logs of
// killed agents. Sockets stay: they may belong to another machine with the same home.
func sweep(agents string) {
	entries, _ := os.ReadDir(agents)
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(agents, entry.Name())
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()) < abandoned {
			continue
		}
		switch {
		case programName.MatchString(name):
			if isUsed(path) {
				continue
			}
		case strings.HasSuffix(name, ".log"):
			if _, err := os.Lstat(filepath.Join(agents, bootName(strings.TrimSuffix(name, ".log")))); err == nil {
				continue
			}
		case !strings.HasPrefix(name, ".new-"):
			continue
		}
		os.Remove(path)
	}
}
