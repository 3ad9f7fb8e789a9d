package facts

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// read returns a small file's text without surrounding space, "" if it cannot be read.
func read(path string) string {
	text, _ := os.ReadFile(path)
	return strings.Trim(string(text), " \t\r\n\x00")
}

func (s *Service) system(context.Context) Fact {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if name := valueIn(read(path), "PRETTY_NAME", "="); name != "" {
			return Fact{"name": strings.Trim(name, `"'`)}
		}
	}
	return nil
}

// processor returns the name in cpuinfo (s390x and some ARM have it elsewhere), or the board's in the device tree.
func (s *Service) processor(context.Context) Fact {
	info := read("/proc/cpuinfo")
	for _, key := range []string{"model name", "cpu model", "cpu", "Processor", "Hardware", "uarch", "isa"} {
		if name := valueIn(info, key, ":"); name != "" {
			return Fact{"name": name}
		}
	}
	if name := read("/proc/device-tree/model"); name != "" {
		return Fact{"name": name}
	}
	return nil
}

func (s *Service) cores(context.Context) Fact {
	fact := Fact{"usable": runtime.NumCPU()}
	if online := strings.Count(read("/proc/stat"), "\ncpu"); online > 0 {
		fact["online"] = online
	}
	return fact
}

// governor lists the governors of all cores, which may differ.
func (s *Service) governor(context.Context) Fact {
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
	seen := map[string]bool{}
	for _, file := range files {
		seen[read(file)] = true
	}
	delete(seen, "")
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil
	}
	sort.Strings(names)
	return Fact{"name": strings.Join(names, ", ")}
}

// virtualization returns the kind of container, else the hypervisor, else "none"; nil if it is unknown.
func (s *Service) virtualization(context.Context) Fact {
	for path, kind := range map[string]string{"/.dockerenv": "docker", "/run/.containerenv": "podman", "/proc/vz": "openvz"} {
		if _, err := os.Stat(path); err == nil {
			return Fact{"kind": kind}
		}
	}
	if kind := read("/run/systemd/container"); kind != "" {
		return Fact{"kind": kind}
	}
	if strings.Contains(strings.ToLower(read("/proc/sys/kernel/osrelease")), "microsoft") {
		return Fact{"kind": "wsl"}
	}
	if kind := read("/sys/hypervisor/type"); kind != "" {
		return Fact{"kind": kind}
	}
	if kind := hypervisorOf(read("/sys/class/dmi/id/sys_vendor") + " " + read("/sys/class/dmi/id/product_name")); kind != "" {
		return Fact{"kind": kind}
	}
	if _, found := strings.CutPrefix(read("/proc/device-tree/hypervisor/compatible"), "linux,kvm"); found {
		return Fact{"kind": "kvm"}
	}
	flags := " " + valueIn(read("/proc/cpuinfo"), "flags", ":") + " "
	if strings.Contains(flags, " hypervisor ") {
		return Fact{"kind": "a hypervisor"}
	}
	if strings.TrimSpace(flags) != "" {
		return Fact{"kind": "none"}
	}
	return nil
}
