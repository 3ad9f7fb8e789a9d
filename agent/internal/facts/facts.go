// Package facts tells what a host is: what it has free, what it is busy with, and what it could run. Whatever cannot be
// told is left out.
package facts

import (
	"context"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/command"
	"remote-runner/agent/internal/wire"
)

const (
	// A program that answers later is as good as none.
	programTime = 2 * time.Second
	// Nix starts slowly on a small machine, and its daemon may be stopped.
	nixTime     = 10 * time.Second
	longestSaid = 64 << 10
)

// Fact is one object of the answer.
type Fact = map[string]any

// Service answers the verb `facts`.
type Service struct {
	Base     base.Directory
	Commands *command.Service
}

// Facts is the verb `facts`. Programs are asked at the same time; the clock is looked at last.
func (s *Service) Facts(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ What []string }
	if err := open.Decode(&request); err != nil {
		return err
	}
	tellers := map[string]func(context.Context) Fact{
		"load": s.load, "memory": s.memory, "cores": s.cores, "kernel": s.kernel, "disk": s.disk, "user": s.user,
		"shell": s.shell, "namespaces": s.namespaces, "python": s.python, "nix": s.nix, "limits": s.limits,
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

// said is what the program says on its streams, "" where it cannot be started or fails.
func (s *Service) said(ctx context.Context, argv ...string) string {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	status, said, err := s.Commands.Output(ctx, longestSaid, argv...)
	if err != nil || status != 0 {
		return ""
	}
	return strings.TrimSpace(said)
}

func (s *Service) cores(context.Context) Fact { return Fact{"usable": runtime.NumCPU()} }

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

// variable is one of the login's.
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

// nix says what this login may do with the Nix store here:
//
//	root       everything
//	owner      everything: the store is this user's
//	trusted    everything, by the daemon
//	untrusted  by the daemon: build, and add what is signed or addressed by its content
//	refused    nothing: the daemon does not serve them; `why` has its words
//	foreign    nothing: the store is somebody else's, and no daemon listens
//	none       there is no Nix
//
// Nix goes the same way: to the store itself where it may write, else to the daemon.
func (s *Service) nix(ctx context.Context) Fact {
	program := s.findNix()
	if program == "" {
		return Fact{"access": "none"}
	}
	fact := Fact{"path": program, "why": ""}
	if words := strings.Fields(s.said(ctx, program, "--version")); len(words) > 0 {
		fact["version"] = words[len(words)-1]
	}
	state := s.variable("NIX_STATE_DIR")
	if state == "" {
		state = "/nix/var/nix"
	}
	socket := s.variable("NIX_DAEMON_SOCKET_PATH")
	if socket == "" {
		socket = filepath.Join(state, "daemon-socket", "socket")
	}
	info, err := os.Stat(socket)
	switch {
	case os.Getuid() == 0:
		fact["access"] = "root"
	case s.variable("NIX_REMOTE") != "daemon" && mayWrite(state) && mayWrite("/nix/store"):
		fact["access"] = "owner"
	case err == nil && info.Mode().Type() == os.ModeSocket:
		fact["access"], fact["why"] = s.askDaemon(ctx, filepath.Join(filepath.Dir(program), "nix"))
	default:
		fact["access"] = "foreign"
	}
	return fact
}

// findNix also looks where the PATH of a login without a terminal may not.
func (s *Service) findNix() string {
	if path := s.Commands.Find("nix-store"); path != "" {
		return path
	}
	name := ""
	if who, err := user.Current(); err == nil {
		name = who.Username
	}
	for _, place := range []string{
		"/nix/var/nix/profiles/default/bin", s.Commands.Home + "/.nix-profile/bin", "/run/current-system/sw/bin",
		"/etc/profiles/per-user/" + name + "/bin", "/usr/local/bin", "/usr/bin",
	} {
		if mayExecute(place + "/nix-store") {
			return place + "/nix-store"
		}
	}
	return ""
}

func mayWrite(path string) bool { return syscall.Access(path, 2) == nil }

func mayExecute(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && syscall.Access(path, 1) == nil
}

// askDaemon: since 2.15 it says "Trusted: 0". A daemon of before tells whom it does not trust that it ignores the setting.
func (s *Service) askDaemon(ctx context.Context, nix string) (access, why string) {
	ctx, cancel := context.WithTimeout(ctx, nixTime)
	defer cancel()
	status, said, err := s.Commands.Output(ctx, longestSaid, nix, "--extra-experimental-features", "nix-command", "store", "ping",
		"--store", "daemon", "--debug", "--option", "sandbox", "true")
	switch {
	case strings.Contains(said, "not a trusted user") || strings.Contains(said, "Trusted: 0"):
		return "untrusted", ""
	case err == nil && status == 0:
		return "trusted", ""
	case err != nil:
		return "refused", "no answer of the daemon: " + err.Error()
	}
	for _, line := range strings.Split(said, "\n") {
		if strings.HasPrefix(line, "error") {
			why = line
		}
	}
	return "refused", why
}

// limits are those of a process that is started here.
func (s *Service) limits(ctx context.Context) Fact {
	fact := Fact{}
	for name, option := range map[string]string{"nofile": "-n", "nproc": "-u"} {
		// The agent's own limit of files may have been raised since; a shell is as any program.
		said := s.said(ctx, "/bin/sh", "-c", "ulimit "+option)
		if number, err := strconv.ParseInt(said, 10, 64); err == nil {
			fact[name] = number
		} else if said == "unlimited" {
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
