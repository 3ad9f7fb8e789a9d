package store

import (
	"os"
	"path/filepath"
	"strings"

	"remote-runner/agent/internal/base"
)

// userStore is the directory of a Nix store of the user's own. In it nothing is registered: a path is whole as soon as
// it is there, and closures/NAME has the names of all paths that NAME needs, a line each.
type userStore string

func (s userStore) path(name string) string { return filepath.Join(string(s), "nix", "store", name) }

// closures are the lists, also those (with the prefix aside) of pushes that go on.
func (s userStore) closures() []string { return names(filepath.Join(string(s), "closures")) }

func (s userStore) goneList(closure string) string {
	return filepath.Join(filepath.Dir(closure), aside+"gone-"+filepath.Base(closure))
}

func (s userStore) named(visit func(closure, name string)) {
	for _, closure := range s.closures() {
		text, _ := os.ReadFile(closure)
		for _, name := range strings.Fields(string(text)) {
			visit(closure, name)
		}
	}
}

// weigh has the sizes of closures by their lists, and those of paths that no closure names. Of a path that several
// closures share, one has the size.
func (s userStore) weigh() (closures, unnamed map[string]int64) {
	closures, unnamed = map[string]int64{}, map[string]int64{}
	for _, path := range names(s.path("")) {
		unnamed[filepath.Base(path)] = SizeOf(path)
	}
	s.named(func(closure, name string) {
		closures[closure] += unnamed[name]
		delete(unnamed, name)
	})
	return closures, unnamed
}

// sweep removes the paths that no closure names.
func (s userStore) sweep() {
	unnamed := map[string]bool{}
	for _, path := range names(s.path("")) {
		unnamed[filepath.Base(path)] = true
	}
	s.named(func(_, name string) { delete(unnamed, name) })
	if len(unnamed) == 0 {
		return
	}
	gone, err := os.MkdirTemp(string(s), aside)
	if err != nil {
		return
	}
	for name := range unnamed {
		// Only what may be written to can be moved.
		if info, err := os.Lstat(s.path(name)); err == nil && info.IsDir() {
			_ = os.Chmod(s.path(name), 0o700)
		}
		_ = os.Rename(s.path(name), filepath.Join(gone, name))
	}
	// A push that began meanwhile has written its list first and looked then: what it found here goes back.
	s.named(func(_, name string) {
		if unnamed[name] {
			if os.Rename(filepath.Join(gone, name), s.path(name)) == nil {
				if info, err := os.Lstat(s.path(name)); err == nil && info.IsDir() {
					_ = os.Chmod(s.path(name), 0o555)
				}
			}
		}
	})
	_ = base.Remove(gone)
}
