package store

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/wire"
)

// Left is an artifact on the host, or what a broken push left. Directory is its directory in the cache, the GC root of a
// path in the host's Nix store, the list of a closure in the user's own store, or a path there that no closure names.
type Left struct {
	Name      string `json:"name"`
	Directory string `json:"directory"`
	Used      bool   `json:"used"`
	AgeS      int64  `json:"age_s"`
	Size      int64  `json:"size"`
}

// Removal reports what became of what was to be removed.
type Removal struct {
	Removed []string    `json:"removed"`
	Alive   []string    `json:"alive"`
	Failed  [][2]string `json:"failed"`
	Unknown []string    `json:"unknown"`
}

// NewRemoval returns one with empty lists, which are not null in JSON.
func NewRemoval() *Removal {
	return &Removal{[]string{}, []string{}, [][2]string{}, []string{}}
}

// Did adds one place to the report.
func (r *Removal) Did(place string, err error) {
	if err != nil {
		r.Failed = append(r.Failed, [2]string{place, err.Error()})
		return
	}
	r.Removed = append(r.Removed, place)
}

// Artifacts is the verb `artifacts`: one message per artifact.
func (s *Service) Artifacts(_ context.Context, stream *wire.Stream, _ wire.Message) error {
	used, err := s.Used()
	if err != nil {
		return unreadable(err)
	}
	for _, place := range s.places() {
		found, err := listLeft(string(place), used)
		if err != nil {
			return unreadable(err)
		}
		for _, left := range found {
			if err := stream.Send(map[string]any{"artifact": left}); err != nil {
				return err
			}
		}
	}
	return nil
}

func unreadable(err error) error {
	failure := wire.Fail("unreadable", "%v", err)
	var path *os.PathError
	if errors.As(err, &path) {
		return failure.With("path", path.Path)
	}
	return failure
}

func (s *Service) places() []base.Directory {
	if s.Places == nil {
		return []base.Directory{s.Base}
	}
	return s.Places()
}

func listLeft(home string, used map[string]bool) (found []Left, err error) {
	add := func(place string, size int64) {
		name := filepath.Base(place)
		found = append(found, Left{name, place, used[name], int64(time.Since(lastUse(place)).Seconds()), size})
	}
	ours, err := directories(home)
	if err != nil {
		return nil, err
	}
	for _, place := range ours {
		add(place, SizeOf(place))
	}
	roots, err := names(filepath.Join(home, "nix", "roots"))
	if err != nil {
		return nil, err
	}
	for _, root := range roots {
		add(root, 0)
	}
	own := UserStoreIn(base.Directory(home))
	lists, err := own.closures()
	if err != nil {
		return nil, err
	}
	closures, unnamed, err := own.weigh()
	if err != nil {
		return nil, err
	}
	for _, closure := range lists {
		if !strings.HasPrefix(filepath.Base(closure), Aside) {
			add(closure, closures[closure])
		}
	}
	for name, size := range unnamed {
		add(own.path(name), size)
	}
	return found, nil
}

// directories returns the cache's, and what broken pushes left there and in the user's own store.
func directories(home string) (found []string, err error) {
	for _, parent := range []string{"artifacts", "store"} {
		places, err := names(filepath.Join(home, parent))
		if err != nil {
			return nil, err
		}
		for _, place := range places {
			ours := parent == "artifacts" || strings.HasPrefix(filepath.Base(place), Aside)
			if info, err := os.Lstat(place); err == nil && info.IsDir() && ours {
				found = append(found, place)
			}
		}
	}
	return found, nil
}

// names returns the paths of a directory's entries, none where it does not exist.
func names(directory string) (found []string, err error) {
	entries, err := os.ReadDir(directory)
	if base.IsNothing(err) {
		return nil, nil
	}
	for _, entry := range entries {
		found = append(found, filepath.Join(directory, entry.Name()))
	}
	return found, err
}

// RemoveArtifacts is the verb `remove-artifacts`. In the host's Nix store it only removes GC roots: the store's own garbage
// collection removes what nothing else keeps.
func (s *Service) RemoveArtifacts(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ Names []string }
	if err := json.Unmarshal(open.Head, &request); err != nil {
		return wire.Fail("breach", "no artifacts can be removed by %s", open.Head)
	}
	removing := &removing{Removal: NewRemoval(), asked: map[string]bool{}, seen: map[string]bool{}, used: s.Used}
	for _, name := range request.Names {
		removing.asked[name] = true
	}
	for _, place := range s.places() {
		if err := removing.from(ctx, place); err != nil {
			return err
		}
	}
	for _, name := range request.Names {
		if !removing.seen[name] {
			removing.Unknown = append(removing.Unknown, name)
		}
	}
	return stream.Send(removing.Removal)
}

type removing struct {
	*Removal
	asked, seen map[string]bool
	used        func() (map[string]bool, error)
}

func (r *removing) from(ctx context.Context, place base.Directory) error {
	home := string(place)
	cache := &Cache{place.Artifacts(), r.used}
	unlock, err := cache.lock(ctx)
	switch {
	case err == nil:
		defer unlock()
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return wire.Fail("busy", "another agent has held %s for more than %v", cache.directory, longestLocked)
	}
	used, err := r.used()
	if err != nil {
		return unreadable(err)
	}
	ours, err := directories(home)
	if err != nil {
		return unreadable(err)
	}
	roots, err := names(filepath.Join(home, "nix", "roots"))
	if err != nil {
		return unreadable(err)
	}
	own := UserStoreIn(base.Directory(home))
	lists, err := own.closures()
	if err != nil {
		return unreadable(err)
	}
	_, unnamed, err := own.weigh()
	if err != nil {
		return unreadable(err)
	}
	for _, place := range ours {
		if r.mayGo(place, used) {
			r.Did(place, removeAside(place))
		}
	}
	for _, root := range roots {
		if r.mayGo(root, used) {
			r.Did(root, os.Remove(root))
		}
	}
	// A run that started since the check had its record before it found its list. So a list is moved aside, where it
	// still counts, and its paths are removed after a second check.
	var gone []string
	for _, closure := range lists {
		if r.mayGo(closure, used) {
			if err := os.Rename(closure, own.goneList(closure)); err != nil {
				r.Did(closure, err)
				continue
			}
			gone = append(gone, closure)
		}
	}
	used, failed := r.used()
	for _, closure := range gone {
		if failed != nil {
			r.Did(closure, failed)
			_ = os.Rename(own.goneList(closure), closure)
			continue
		}
		if used[filepath.Base(closure)] {
			r.Alive = append(r.Alive, closure)
			_ = os.Rename(own.goneList(closure), closure)
			continue
		}
		r.Did(closure, os.Remove(own.goneList(closure)))
	}
	own.sweep()
	for name := range unnamed {
		if r.asked[name] {
			r.seen[name] = true
			_, err := os.Lstat(own.path(name))
			if err == nil {
				r.Did(own.path(name), errors.New("it is still there"))
			} else {
				r.Did(own.path(name), nil)
			}
		}
	}
	return nil
}

// mayGo reports whether the place is to be removed and no living run uses it.
func (r *removing) mayGo(place string, used map[string]bool) bool {
	name := filepath.Base(place)
	if !r.asked[name] {
		return false
	}
	r.seen[name] = true
	if used[name] {
		r.Alive = append(r.Alive, place)
		return false
	}
	return true
}

// removeAside renames it first, so that nothing half removed can be started.
func removeAside(place string) error {
	gone, err := os.MkdirTemp(filepath.Dir(place), Aside)
	if err != nil {
		return err
	}
	if err := os.Rename(place, filepath.Join(gone, filepath.Base(place))); err != nil {
		os.Remove(gone)
		return err
	}
	return base.Remove(gone)
}
