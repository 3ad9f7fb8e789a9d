package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"remote-runner/agent/internal/base"
)

// UserStore is the directory of a Nix store of the user's own. In it nothing is registered: a path is whole as soon as
// it is there.
//
//	nix/store/HASH-NAME   what a program started from here sees at /nix/store
//	closures/HASH-NAME    for each output that was pushed: the names of all that it needs, a line each; touched at use
//	how.HOST              by which namespaces HOST (a home may be shared) shows it to a program
//	root                  an empty directory, to mount on
type UserStore string

// UserStoreIn is the one in our directory.
func UserStoreIn(home base.Directory) UserStore {
	return UserStore(filepath.Join(string(home), "store"))
}

var storeName = regexp.MustCompile(`^[0-9a-z]{32}-[0-9A-Za-z+._?=-]{1,211}$`)

func (s UserStore) path(name string) string { return filepath.Join(string(s), "nix", "store", name) }

func (s UserStore) closure(name string) string { return filepath.Join(string(s), "closures", name) }

func (s UserStore) howFile() string {
	host, _ := os.Hostname()
	return filepath.Join(string(s), "how."+host)
}

// How is the way by which a program of this host was seen to get to it, "" while none was.
func (s UserStore) How() string {
	text, _ := base.ReadFile(s.howFile(), longestNote)
	return strings.TrimSpace(string(text))
}

// Forget has the next push try the way again.
func (s UserStore) Forget() { os.Remove(s.howFile()) }

// Use notes that an output is used now, and tells whether it is there.
func (s UserStore) Use(name string) bool {
	now := time.Now()
	return os.Chtimes(s.closure(name), now, now) == nil
}

// LookUp is where that lies which a program in the store would find at the path.
func (s UserStore) LookUp(path string) string {
	const mostLinks = 40
	found, rest := "", path
	for links := 0; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			found = filepath.Dir("/" + found)
			continue
		}
		found = filepath.Join("/", found, name)
		target, err := os.Readlink(s.outside(found))
		if err != nil || links == mostLinks {
			continue
		}
		links++
		if found = filepath.Dir(found); filepath.IsAbs(target) {
			found = ""
		}
		rest = target + "/" + rest
	}
	return s.outside(filepath.Join("/", found))
}

func (s UserStore) outside(path string) string {
	if path == "/nix" || strings.HasPrefix(path, "/nix/") {
		return string(s) + path
	}
	return path
}

// make makes its directories. What a program sees of them looks as it does elsewhere.
func (s UserStore) make() error {
	for _, place := range []string{"nix/store", "closures", "root"} {
		if err := os.MkdirAll(filepath.Join(string(s), place), 0o755); err != nil {
			return err
		}
	}
	for _, place := range []string{"nix", "nix/store"} {
		if err := os.Chmod(filepath.Join(string(s), place), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// closures are the lists, also those (with the prefix Aside) of pushes that go on.
func (s UserStore) closures() []string { return names(s.closure("")) }

func (s UserStore) goneList(closure string) string {
	return filepath.Join(filepath.Dir(closure), Aside+"gone-"+filepath.Base(closure))
}

// named visits what the lists name. The error is the first of what could not be read: then nothing counts as unnamed.
func (s UserStore) named(visit func(closure, name string)) error {
	lists, failed := os.ReadDir(s.closure(""))
	for _, list := range lists {
		closure := s.closure(list.Name())
		text, err := base.ReadFile(closure, longestList)
		if err != nil && failed == nil {
			failed = err
		}
		for _, name := range strings.Fields(string(text)) {
			visit(closure, name)
		}
	}
	return failed
}

// weigh has the sizes of closures by their lists, and those of paths that no closure names. Of a path that several
// closures share, one has the size.
func (s UserStore) weigh() (closures, unnamed map[string]int64) {
	closures, unnamed = map[string]int64{}, map[string]int64{}
	for _, path := range names(s.path("")) {
		unnamed[filepath.Base(path)] = SizeOf(path)
	}
	err := s.named(func(closure, name string) {
		closures[closure] += unnamed[name]
		delete(unnamed, name)
	})
	if err != nil {
		clear(unnamed)
	}
	return closures, unnamed
}

// sweep removes the paths that no closure names.
func (s UserStore) sweep() {
	unnamed := map[string]bool{}
	for _, path := range names(s.path("")) {
		unnamed[filepath.Base(path)] = true
	}
	err := s.named(func(_, name string) { delete(unnamed, name) })
	if err != nil || len(unnamed) == 0 {
		return
	}
	gone, err := os.MkdirTemp(string(s), Aside)
	if err != nil {
		return
	}
	for name := range unnamed {
		_ = move(s.path(name), filepath.Join(gone, name))
	}
	// A push that began meanwhile has written its list first and looked then: what it found here goes back.
	again := map[string]bool{}
	if s.named(func(_, name string) { again[name] = true }) != nil {
		again = unnamed
	}
	for name := range again {
		if unnamed[name] {
			_ = move(filepath.Join(gone, name), s.path(name))
		}
	}
	_ = base.Remove(gone)
}

// move moves a store path. Only a directory that may be written to can be moved.
func move(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		// A rename would put it in the place of what somebody else has brought meanwhile; that stays.
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			return fs.ErrExist
		}
		return os.Rename(from, to)
	}
	if err := os.Chmod(from, 0o755); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return os.Chmod(to, 0o555)
}

// makeRoom removes the closures that were not used for longest until the paths fit into the limit: not keep, none of
// the last minutes, none that a living run has.
func (s UserStore) makeRoom(keep string, limit int64, used func() map[string]bool) {
	lists := s.closures()
	sort.Slice(lists, func(i, j int) bool { return lastUse(lists[i]).Before(lastUse(lists[j])) })
	for _, list := range lists {
		name := filepath.Base(list)
		if SizeOf(s.path("")) <= limit {
			return
		}
		if name == keep || strings.HasPrefix(name, ".") || time.Since(lastUse(list)) < justUsed {
			continue
		}
		// A run has its record before it looks for its list.
		if os.Rename(list, s.goneList(list)) != nil {
			continue
		}
		if used()[name] {
			_ = os.Rename(s.goneList(list), list)
			continue
		}
		os.Remove(s.goneList(list))
		s.sweep()
	}
}

// tidy removes what pushes left that were cut off.
func (s UserStore) tidy() {
	for _, pattern := range []string{filepath.Join(string(s), Aside+"*"), s.closure(Aside + "*")} {
		left, _ := filepath.Glob(pattern)
		for _, place := range left {
			if info, err := os.Lstat(place); err == nil && time.Since(info.ModTime()) > abandoned {
				_ = base.Remove(place)
			}
		}
	}
}
