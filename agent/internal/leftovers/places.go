package leftovers

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"remote-runner/agent/internal/base"
)

// Places returns all our directories on this host: an earlier agent may have chosen another of the usual places. A
// directory named in the inventory is the only one.
func Places(own base.Directory, home string) []base.Directory {
	var usual []string
	if home != "" && home != "/" {
		usual = append(usual, filepath.Join(home, ".cache", "remote-runner"))
	}
	for _, parent := range []string{"/var/tmp", "/tmp", "/dev/shm"} {
		usual = append(usual, fmt.Sprintf("%s/remote-runner-%d", parent, os.Getuid()))
	}
	found := []base.Directory{own}
	isUsual := false
	here, err := os.Stat(string(own))
	if err != nil {
		return found
	}
	for _, place := range usual {
		info, err := os.Lstat(place)
		if err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
			continue
		}
		if os.SameFile(info, here) {
			isUsual = true
		} else if real, err := filepath.EvalSymlinks(place); err == nil {
			found = append(found, base.Directory(real))
		}
	}
	if !isUsual {
		return found[:1]
	}
	return found
}
