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

// UserStore is the directory of a Nix store of the user's own. It has no database: a path that exists is complete.
//
//	nix/store/HASH-NAME   what programs from this store see at /nix/store
//	closures/HASH-NAME    for each pushed output, the names in its closure, one a line; touched at use
//	how.HOST              how HOST (a home may be shared) shows the store to a program
//	root                  an empty directory, a mount point
type UserStore string

// UserStoreIn returns the one in our directory.
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

// How returns the way that is known to work on this host, "" if none is.
func (s UserStore) How() string {
	text, _ := base.ReadFile(s.howFile(), longestNote)
	return strings.TrimSpace(string(text))
}

// Forget makes the next push test the ways again.
func (s UserStore) Forget() { os.Remove(s.howFile()) }

// Use marks an output as used, and reports whether it exists.
func (s UserStore) Use(name string) bool {
	now := time.Now()
	return os.Chtimes(s.closure(name), now, now) == nil
}

// LookUp returns where the file lies that a program in the store sees at the path.
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

// make creates its directories, with the usual modes where programs see them.
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

// closures returns the lists, including those of unfinished pushes (with the prefix Aside).
func (s UserStore) closures() ([]string, error) { return names(s.closure("")) }

func (s UserStore) goneList(closure string) string {
	return filepath.Join(filepath.Dir(closure), Aside+"gone-"+filepath.Base(closure))
}

// named visits what the lists name. It returns the first read error: then nothing may be treated as unnamed.
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

// weigh returns the sizes of closures by their lists, and of paths that no closure names: none where not all can be read,
// which is the error. A path that several closures share counts for one of them.
func (s UserStore) weigh() (closures, unnamed map[string]int64, err error) {
	closures, unnamed = map[string]int64{}, map[string]int64{}
	paths, err := names(s.path(""))
	for _, path := range paths {
		unnamed[filepath.Base(path)] = SizeOf(path)
	}
	failed := s.named(func(closure, name string) {
		closures[closure] += unnamed[name]
		delete(unnamed, name)
	})
	if failed != nil {
		clear(unnamed)
		if !base.IsNothing(failed) {
			err = failed
		}
	}
	return closures, unnamed, err
}

// sweep removes the paths that no closure names.
func (s UserStore) sweep() {
	unnamed := map[string]bool{}
	paths, _ := names(s.path("")) // what it cannot read stays
	for _, path := range paths {
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
	// A push that started meanwhile wrote its list first and checked after: what it found is moved back.
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

// move moves a store path: a directory must be writable to be moved.
func move(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		// A rename would replace what somebody else pushed meanwhile.
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

// makeRoom removes the least recently used closures until the paths fit in the limit. It spares keep, those of the last
// minutes, and those of living runs.
func (s UserStore) makeRoom(keep string, limit int64, used func() (map[string]bool, error)) {
	lists, _ := s.closures() // what it cannot read stays
	sort.Slice(lists, func(i, j int) bool { return lastUse(lists[i]).Before(lastUse(lists[j])) })
	for _, list := range lists {
		name := filepath.Base(list)
		if SizeOf(s.path("")) <= limit {
			return
		}
		if name == keep || strings.HasPrefix(name, ".") || time.Since(lastUse(list)) < justUsed {
			continue
		}
		// A run writes its record before it looks for its list.
		if os.Rename(list, s.goneList(list)) != nil {
			continue
		}
		inUse, err := used()
		if err != nil || inUse[name] {
			_ = os.Rename(s.goneList(list), list)
			continue
		}
		os.Remove(s.goneList(list))
		s.sweep()
	}
}
