package nix

import (
	"context"
	"path/filepath"
	"strings"
	"syscall"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
	"remote-runner/agent/internal/wire"
)

// The stores that a run can start from, besides the cache.
const (
	HostStore = "nix"
	UserStore = "user"
)

// A report is one sentence with a path or two.
const longestReport = 16 << 10

// Place is where a run's program lies in a Nix store; nil if it is in none.
type Place struct {
	// Program is its path as the application sees it.
	Program string

	own store.UserStore // "" for the host's own store
	how string
	run base.Run
}

// Place finds a run's program in the output at a store path, and keeps that path while the run's directory exists. It
// fails with `missing` if the output has to be pushed again.
func (s *Service) Place(ctx context.Context, storeName, out, program string, run base.Run) (*Place, error) {
	missing := func(format string, words ...any) error {
		return wire.Fail("missing", format, words...).With("artifact", out)
	}
	if !IsStorePath(out) {
		return nil, wire.Fail("breach", "no store path: %q", out)
	}
	place := &Place{Program: out + "/" + program, run: run}
	if storeName == UserStore {
		place.own = store.UserStoreIn(s.Base)
		place.how = place.own.How()
		if place.how == "" || !place.own.Use(filepath.Base(out)) {
			return nil, missing("it is not in the user's own store")
		}
		return place, nil
	}
	nixStore := s.NixStore()
	if nixStore == "" {
		return nil, missing("there is no nix-store")
	}
	kept, said, err := s.keep(ctx, nixStore, out, filepath.Join(string(run), "gcroot"))
	if err != nil {
		return nil, err
	}
	if !kept {
		return nil, missing("%s", strings.ReplaceAll(said, "\n", " "))
	}
	// The push's root tells cleaners that it is in use.
	touchLink(s.root(out))
	return place, nil
}

// isOwn reports whether it is the user's own store.
func (p *Place) isOwn() bool { return p != nil && p.own != "" }

// See returns the path here of what the program sees at that path.
func (p *Place) See(path string) string {
	if !p.isOwn() {
		return path
	}
	return p.own.LookUp(path)
}

// Enter changes a process to be started so that it sees the user's own store, if it needs that.
func (p *Place) Enter(spec *process.Spec) {
	if p.isOwn() {
		enter(spec, p.how, p.own, spec.Dir, p.report(), spec.Path)
	}
}

func (p *Place) report() string { return filepath.Join(string(p.run), "entering") }

// NotStarted returns the problem for the client if the error means that the kernel refused namespaces, else "".
func (p *Place) NotStarted(err error) string {
	if !p.isOwn() || err == syscall.EAGAIN || err == syscall.ENOMEM {
		return ""
	}
	return p.refused("the kernel gives no namespaces: " + err.Error())
}

// Ended returns the problem for the client if the process ended before it executed the program, else "". If exec failed,
// it returns exec's error.
func (p *Place) Ended() (problem string, exec error) {
	if !p.isOwn() {
		return "", nil
	}
	text, _ := base.ReadFile(p.report(), longestReport) // the application can write there too
	if len(text) == 0 {
		return "", nil
	}
	if number, failed := execError(string(text)); failed {
		return "", number
	}
	return p.refused(string(text)), nil
}

// refused makes the next push test again whether namespaces work.
func (p *Place) refused(words string) string {
	p.own.Forget()
	return "namespace:" + strings.ReplaceAll(strings.TrimSpace(words), "\n", " ")
}
