// Package facts collects facts about a host: its system, free resources, load, and what it can run. What cannot be found
// out is left out.
package facts

import (
	"context"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/command"
	"remote-runner/agent/internal/nix"
	"remote-runner/agent/internal/wire"
)

const (
	// A program that takes longer counts as missing.
	programTime = 2 * time.Second
	// Nix starts slowly on small machines, and its daemon may hang.
	nixTime     = 10 * time.Second
	longestSaid = 64 << 10
)

// Fact is one object of the answer.
type Fact = map[string]any

// Service answers the verb `facts`.
type Service struct {
	Base     base.Directory
	Commands *command.Service
	Nix      *nix.Service
}

// Facts is the verb `facts`. Programs run in parallel; the clock is read last.
func (s *Service) Facts(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ What []string }
	if err := open.Decode(&request); err != nil {
		return err
	}
	tellers := map[string]func(context.Context) Fact{
		"load": s.load, "memory": s.memory, "cores": s.cores, "kernel": s.kernel, "disk": s.disk, "user": s.user,
		"shell": s.shell, "namespaces": s.namespaces, "python": s.python, "nix": s.nix, "limits": s.limits,
		"system": s.system, "processor": s.processor, "governor": s.governor, "virtualization": s.virtualization,
	}
	told := map[string]any{}
	var mutex sync.Mutex
	var asked sync.WaitGroup
	clock := false
	for _, what := range request.What {
		clock = clock || what == "clock"
		if tellers[what] == nil {
			continue
		}
		asked.Add(1)
		go func(what string) {
			defer asked.Done()
			if fact := tellers[what](ctx); fact != nil {
				mutex.Lock()
				told[what] = fact
				mutex.Unlock()
			}
		}(what)
	}
	asked.Wait()
	if clock {
		told["clock"] = Fact{"ns": time.Now().UnixNano()}
	}
	return stream.Send(told)
}

// said returns the program's stdout, "" if it cannot be started or fails.
func (s *Service) said(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	done, err := s.Commands.Output(ctx, longestSaid, argv...)
	if err != nil || done.Status != 0 {
		return ""
	}
	return strings.TrimSpace(done.Stdout)
}

func (s *Service) user(context.Context) Fact {
	fact := Fact{"uid": os.Getuid(), "gid": os.Getgid()}
	if who, err := user.Current(); err == nil && who.Username != "" {
		fact["name"] = who.Username
	}
	return fact
}

func (s *Service) shell(context.Context) Fact {
	if shell := s.variable("SHELL"); shell != "" {
		return Fact{"path": shell}
	}
	return nil
}

// variable returns one of the login's environment variables.
func (s *Service) variable(name string) string {
	for _, variable := range s.Commands.Environ {
		if value, found := strings.CutPrefix(variable, name+"="); found {
			return value
		}
	}
	return ""
}

func (s *Service) python(ctx context.Context) Fact {
	path := s.Commands.Find("python3")
	// Without its developer tools, a Mac asks its user to install them.
	if path == "/usr/bin/python3" && runtime.GOOS == "darwin" && s.said(ctx, "xcode-select", "-p") == "" {
		return nil
	}
	if path == "" {
		return nil
	}
	version, found := strings.CutPrefix(s.said(ctx, path, "-V"), "Python ")
	if !found {
		return nil
	}
	return Fact{"path": path, "version": version}
}

// nix describes what this login may do with the Nix store; `why` is the daemon's message if it refuses.
func (s *Service) nix(ctx context.Context) Fact {
	program := s.Nix.NixStore()
	if program == "" {
		return Fact{"access": nix.None}
	}
	fact := Fact{"path": program}
	if words := strings.Fields(s.said(ctx, program, "--version")); len(words) > 0 {
		fact["version"] = words[len(words)-1]
	}
	ctx, cancel := context.WithTimeout(ctx, nixTime)
	defer cancel()
	fact["access"], fact["why"] = s.Nix.Access(ctx, program)
	return fact
}

// limits are those that programs started here get; null means unlimited. The agent may have raised its own.
func (s *Service) limits(ctx context.Context) Fact {
	// dash has another letter for the number of processes.
	words := strings.Fields(s.said(ctx, "/bin/sh", "-c", "ulimit -n; ulimit -u 2>/dev/null || ulimit -p"))
	fact := Fact{}
	for i, name := range []string{"nofile", "nproc"} {
		if i >= len(words) {
			break
		}
		if number, err := strconv.ParseInt(words[i], 10, 64); err == nil {
			fact[name] = number
		} else if words[i] == "unlimited" {
			fact[name] = nil
		}
	}
	return fact
}

func loadOf(words []string) Fact {
	if len(words) < 3 {
		return nil
	}
	fact := Fact{}
	for i, name := range []string{"1", "5", "15"} {
		number, err := strconv.ParseFloat(words[i], 64)
		if err != nil {
			return nil
		}
		fact[name] = number
	}
	return fact
}

// valueIn returns the first value of that key in lines like `key : value`, "" if there is none.
func valueIn(text, key, separator string) string {
	for _, line := range strings.Split(text, "\n") {
		name, value, found := strings.Cut(line, separator)
		if found && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// hypervisorOf returns the hypervisor that a machine's vendor and product name imply, "" for a physical machine.
func hypervisorOf(product string) string {
	for _, known := range [][2]string{
		{"KVM", "kvm"}, {"OpenStack", "kvm"}, {"Google Compute Engine", "kvm"}, {"Amazon EC2", "amazon"}, {"QEMU", "qemu"},
		{"VMware", "vmware"}, {"VirtualBox", "virtualbox"}, {"innotek", "virtualbox"}, {"Virtual Machine", "hyper-v"},
		{"Parallels", "parallels"}, {"BHYVE", "bhyve"}, {"Apple Virtualization", "apple"}, {"Xen", "xen"},
		{"Hetzner", "kvm"}, {"DigitalOcean", "kvm"},
	} {
		// The names of Amazon's bare-metal machines end like this.
		if strings.Contains(product, known[0]) && !strings.Contains(product, ".metal") {
			return known[1]
		}
	}
	return ""
}
