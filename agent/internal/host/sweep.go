package host

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// What nobody has used for so long is removed.
const abandoned = 24 * time.Hour

var programName = regexp.MustCompile(`^[0-9a-f]{16}-`)

// use says that a program is used now, and until the result is closed.
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

// sweep removes from the directory of the agents what others have left there: programs of other versions, programs whose
// sending was cut off, and the logs of agents that were killed. Sockets may be those of another machine with this home.
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
