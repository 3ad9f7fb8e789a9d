//go:build !linux

package facts

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"strings"
)

// TryNamespaces is used on Linux only.
const TryNamespaces = "try-namespaces"

func (s *Service) load(ctx context.Context) Fact {
	return loadOf(strings.Fields(strings.Trim(s.said(ctx, "sysctl", "-n", "vm.loadavg"), "{} ")))
}

func (s *Service) memory(ctx context.Context) Fact {
	for _, name := range []string{"hw.memsize", "hw.physmem64", "hw.physmem"} {
		if total, err := strconv.ParseInt(s.said(ctx, "sysctl", "-n", name), 10, 64); err == nil && total > 0 {
			return Fact{"total": total}
		}
	}
	return nil
}

func (s *Service) kernel(ctx context.Context) Fact {
	name, release := s.said(ctx, "uname", "-s"), s.said(ctx, "uname", "-r")
	if name == "" {
		return nil
	}
	return Fact{"name": name, "release": release, "version": s.said(ctx, "uname", "-v")}
}

func (s *Service) disk(ctx context.Context) Fact {
	lines := strings.Split(s.said(ctx, "df", "-Pk", string(s.Base)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	// A device's name may contain spaces: the numbers stand before the percentage.
	for i, field := range fields {
		if i >= 3 && strings.HasSuffix(field, "%") {
			total, _ := strconv.ParseInt(fields[i-3], 10, 64)
			free, err := strconv.ParseInt(fields[i-1], 10, 64)
			if err == nil {
				return Fact{"path": string(s.Base), "free": free << 10, "total": total << 10}
			}
		}
	}
	return nil
}

func (s *Service) system(ctx context.Context) Fact {
	if version := s.said(ctx, "sw_vers", "-productVersion"); version != "" {
		return Fact{"name": "macOS " + version}
	}
	if name := s.said(ctx, "uname", "-sr"); name != "" {
		return Fact{"name": name}
	}
	return nil
}

func (s *Service) processor(ctx context.Context) Fact {
	for _, name := range []string{"machdep.cpu.brand_string", "hw.model"} {
		if model := s.said(ctx, "sysctl", "-n", name); model != "" {
			return Fact{"name": model}
		}
	}
	return nil
}

func (s *Service) cores(ctx context.Context) Fact {
	fact := Fact{"usable": runtime.NumCPU()}
	if online, err := strconv.Atoi(s.said(ctx, "sysctl", "-n", "hw.ncpu")); err == nil {
		fact["online"] = online
	}
	return fact
}

func (s *Service) governor(context.Context) Fact { return nil }

// virtualization: FreeBSD names the hypervisor; macOS only tells whether there is one.
func (s *Service) virtualization(ctx context.Context) Fact {
	if kind := s.said(ctx, "sysctl", "-n", "kern.vm_guest"); kind != "" {
		return Fact{"kind": kind}
	}
	switch s.said(ctx, "sysctl", "-n", "kern.hv_vmm_present") {
	case "1":
		return Fact{"kind": "a hypervisor"}
	case "0":
		return Fact{"kind": "none"}
	}
	return nil
}

func (s *Service) namespaces(context.Context) Fact { return nil }

// Try is used on Linux only.
func Try([]string) error { return errors.New("there are no namespaces here") }
