package leftovers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"remote-runner/agent/internal/base"
)

// Places returns all our directories on this host: an earlier agent may have chosen another of the usual places. A
// directory named in the inventory is the only one. Of unread (path, why) it is not known whether it is ours.
func Places(own base.Directory, home string) (found []base.Directory, unread [][2]string) {
	var usual []string
	if home != "" && home != "/" {
		usual = append(usual, filepath.Join(home, ".cache", "remote-runner"))
	}
	for _, parent := range []string{"/var/tmp", "/tmp", "/dev/shm"} {
		usual = append(usual, fmt.Sprintf("%s/remote-runner-%d", parent, os.Getuid()))
	}
	found = []base.Directory{own}
	isUsual := false
	here, err := os.Stat(string(own))
	if err != nil {
		return found, nil
	}
	for _, place := range usual {
		info, err := os.Lstat(place)
		if err != nil {
			if !base.IsNothing(err) && !errors.Is(err, syscall.ENOTDIR) {
				unread = append(unread, [2]string{place, base.Why(err)})
			}
			continue
		}
		if !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
			continue
		}
		if os.SameFile(info, here) {
			isUsual = true
		} else if real, err := filepath.EvalSymlinks(place); err == nil {
			found = append(found, base.Directory(real))
		} else {
			unread = append(unread, [2]string{place, base.Why(err)})
		}
	}
	if !isUsual {
		return found[:1], nil
	}
	return found, unread
}
