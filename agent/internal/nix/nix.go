// Package nix adds store paths to the host's Nix store, keeps GC roots for them, and mounts a store of the user's own at
// /nix for one program.
package nix

import (
	"context"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
)

// IsStorePath reports whether a text is a path directly in Nix's store.
func IsStorePath(words string) bool { return storePath.MatchString(words) }

var storePath = regexp.MustCompile(`^/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]{1,211}$`)

// Service serves the verb `nix`, and finds the programs of runs in Nix stores.
type Service struct {
	Base      base.Directory
	Processes *process.Keeper
	// Environ is the login's environment, as NAME=VALUE.
	Environ []string
	// Home is the login's directory.
	Home string
}

// What a login may do with the host's Nix store.
const (
	None      = "none"      // there is no Nix
	Root      = "root"      // everything
	Owner     = "owner"     // everything: this user owns the store
	Trusted   = "trusted"   // everything, through the daemon
	Untrusted = "untrusted" // through the daemon: build, and add what is signed or content-addressed
	Refused   = "refused"   // nothing: the daemon refuses this user
	Foreign   = "foreign"   // nothing: the store is somebody else's, and no daemon listens
)

// NixStore returns the path of nix-store, "" if there is none. A login without a terminal may not have it on PATH.
func (s *Service) NixStore() string {
	name := ""
	if who, err := user.Current(); err == nil {
		name = who.Username
	}
	places := append(strings.Split(s.variable("PATH"), ":"),
		"/nix/var/nix/profiles/default/bin", s.Home+"/.nix-profile/bin", "/run/current-system/sw/bin",
		"/etc/profiles/per-user/"+name+"/bin", "/usr/local/bin", "/usr/bin")
	for _, place := range places {
		program := place + "/nix-store"
		if info, err := os.Stat(program); err == nil && info.Mode().IsRegular() && mayUse(program, mayExecute) {
			return program
		}
	}
	return ""
}

// Access returns what this login may do with the store; why is the daemon's message if it refuses. It decides as Nix does:
// the store itself if that is writable, else the daemon.
func (s *Service) Access(ctx context.Context, nixStore string) (access, why string) {
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
	case nixStore == "":
		return None, ""
	case os.Getuid() == 0:
		return Root, ""
	case s.variable("NIX_REMOTE") != "daemon" && mayUse(state, mayWrite) && mayUse("/nix/store", mayWrite):
		return Owner, ""
	case err == nil && info.Mode().Type() == os.ModeSocket:
		return s.askDaemon(ctx, filepath.Join(filepath.Dir(nixStore), "nix"))
	}
	return Foreign, ""
}

// askDaemon: since 2.15 the daemon says "Trusted: 0". An older one warns an untrusted user that it ignores the setting.
func (s *Service) askDaemon(ctx context.Context, nix string) (access, why string) {
	status, said, err := s.run(ctx, nix, "--extra-experimental-features", "nix-command",
		"store", "ping", "--store", "daemon", "--debug", "--option", "sandbox", "true")
	switch {
	case strings.Contains(said, "not a trusted user") || strings.Contains(said, "Trusted: 0"):
		return Untrusted, ""
	case err != nil:
		return Refused, err.Error()
	case status == 0:
		return Trusted, ""
	}
	for _, line := range strings.Split(said, "\n") {
		if strings.HasPrefix(line, "error") {
			why = line
		}
	}
	return Refused, why
}

func (s *Service) roots() string { return filepath.Join(string(s.Base), "nix", "roots") }

// keep makes a GC root for a valid path, without fetching or building anything. If the path is not valid or the root
// cannot be made, the second result is Nix's message.
func (s *Service) keep(ctx context.Context, nixStore, path, root string) (kept bool, said string, err error) {
	status, said, err := s.run(ctx, nixStore, "--option", "substitute", "false", "--add-root", root, "-r", path)
	return err == nil && status == 0, said, err
}

// variable returns one of the login's environment variables.
func (s *Service) variable(name string) string {
	for _, variable := range s.Environ {
		if value, found := strings.CutPrefix(variable, name+"="); found {
			return value
		}
	}
	return ""
}

const (
	mayExecute = 1
	mayWrite   = 2
)

func mayUse(path string, how uint32) bool { return syscall.Access(path, how) == nil }
