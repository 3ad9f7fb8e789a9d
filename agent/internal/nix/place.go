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

// Stores that a run can start from, besides the cache.
const (
	HostStore = "nix"
	UserStore = "user"
)

// A report is a sentence with a path or two.
const longestReport = 16 << 10

// Place is where the program of a run lies that is in a Nix store; nil for one that is in none.
type Place struct {
	// Program is its path as the application sees it.
	Program string

	own store.UserStore // "" for the host's store
	how string
	run base.Run
}

// Place finds the program of a run in the output at a store path, and holds that while the run's directory is there. It
// fails with `missing` where the output has to be pushed again.
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
	// Used now, says the root of the push to those who clean.
	touchLink(s.root(out))
	return place, nil
}

// isOwn tells whether it has to be shown to the program.
func (p *Place) isOwn() bool { return p != nil && p.own != "" }

// See is where from here that is which the program finds at that path.
func (p *Place) See(path string) string {
	if !p.isOwn() {
		return path
	}
	return p.own.LookUp(path)
}

// Enter makes a process that is to be started see the user's own store, where that is what it needs.
func (p *Place) Enter(spec *process.Spec) {
	if p.isOwn() {
		enter(spec, p.how, p.own, spec.Dir, p.report(), spec.Path)
	}
}

func (p *Place) report() string { return filepath.Join(string(p.run), "entering") }

// NotStarted has the problem for the client when the kernel has refused namespaces by that error, else "".
func (p *Place) NotStarted(err error) string {
	if !p.isOwn() || err == syscall.EAGAIN || err == syscall.ENOMEM {
		return ""
	}
	return p.refused("the kernel gives no namespaces: " + err.Error())
}

// Ended has the problem for the client when the process has ended without having become the program, else "". A problem
// of the program itself is the error that exec had.
func (p *Place) Ended() (problem string, exec error) {
	if !p.isOwn() {
		return "", nil
	}
	text, _ := base.ReadFile(p.report(), longestReport) // the application may write there too
	if len(text) == 0 {
		return "", nil
	}
	if number, failed := execError(string(text)); failed {
		return "", number
	}
	return p.refused(string(text)), nil
}

// refused has the next push try again whether there are namespaces.
func (p *Place) refused(words string) string {
	p.own.Forget()
	return "namespace:" + strings.ReplaceAll(strings.TrimSpace(words), "\n", " ")
}
