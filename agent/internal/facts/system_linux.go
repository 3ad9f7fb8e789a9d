package facts

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"

	"remote-runner/agent/internal/process"
)

// TryNamespaces is the argument that makes this program test what namespaces allow.
const TryNamespaces = "try-namespaces"

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

// namespaces tests whether this login may create user and mount namespaces and mount in them.
func (s *Service) namespaces(ctx context.Context) Fact {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	done, err := s.Commands.OutputOf(ctx, 4096, process.Spec{
		Path: "/proc/self/exe", Argv: []string{"agent", TryNamespaces}, Dir: "/", Adapt: func(attributes *syscall.SysProcAttr) {
			attributes.Cloneflags |= syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
			attributes.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			attributes.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		},
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		done.Stderr = err.Error()
	}
	return Fact{"user": err == nil && done.Status == 0, "problem": strings.TrimSpace(done.Stderr)}
}

// Try runs in the new namespaces, in this program started with TryNamespaces.
func Try([]string) error {
	return syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
}
