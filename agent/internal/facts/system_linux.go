package facts

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// The argument with which this program is started to try what a program in namespaces may do.
const (
	TryNamespaces    = "try-namespaces"
	insideNamespaces = "inside"
)

func (s *Service) load(context.Context) Fact {
	text, _ := os.ReadFile("/proc/loadavg")
	return loadOf(strings.Fields(string(text)))
}

func (s *Service) memory(context.Context) Fact {
	text, _ := os.ReadFile("/proc/meminfo")
	kib := map[string]int64{}
	for _, line := range strings.Split(string(text), "\n") {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			kib[name], _ = strconv.ParseInt(fields[0], 10, 64)
		}
	}
	if kib["MemTotal"] == 0 {
		return nil
	}
	if _, known := kib["MemAvailable"]; !known { // before Linux 3.14
		kib["MemAvailable"] = kib["MemFree"] + kib["Cached"]
	}
	return Fact{
		"total": kib["MemTotal"] << 10, "available": kib["MemAvailable"] << 10,
		"swap_total": kib["SwapTotal"] << 10, "swap_free": kib["SwapFree"] << 10,
	}
}

func (s *Service) kernel(context.Context) Fact {
	read := func(name string) string {
		text, _ := os.ReadFile("/proc/sys/kernel/" + name)
		return strings.TrimSpace(string(text))
	}
	return Fact{"name": read("ostype"), "release": read("osrelease"), "version": read("version")}
}

func (s *Service) disk(context.Context) Fact {
	var found syscall.Statfs_t
	if syscall.Statfs(string(s.Base), &found) != nil {
		return nil
	}
	size := int64(found.Bsize)
	return Fact{"path": string(s.Base), "free": int64(found.Bavail) * size, "total": int64(found.Blocks) * size}
}

// namespaces says whether this login may have a user namespace with a mount namespace, by trying.
func (s *Service) namespaces(ctx context.Context) Fact {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	status, said, err := s.Commands.Output(ctx, 4096, self, TryNamespaces)
	if err != nil {
		return nil
	}
	return Fact{"user": status == 0, "problem": strings.TrimSpace(said)}
}

// Try is what this program does as TryNamespaces: it starts itself in new namespaces, where it changes a mount. It is
// a process of its own, since only a child can get namespaces from a program with threads, and the agent has but one
// place that forks.
func Try(arguments []string) error {
	if len(arguments) > 0 && arguments[0] == insideNamespaces {
		return syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	}
	child := exec.Command("/proc/self/exe", TryNamespaces, insideNamespaces)
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	said, err := child.CombinedOutput()
	if words := strings.TrimSpace(string(said)); err != nil && words != "" {
		return errors.New(words)
	}
	return err
}
