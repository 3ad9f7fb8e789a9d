package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
)

const (
	// Aside is the prefix of names that are being pushed or removed.
	Aside = ".tmp-"
	// A starting run touches its artifact before it writes its record, and does both sooner than this.
	justUsed = 10 * time.Minute
	// What is older is left from a broken push; none takes this long.
	abandoned = 24 * time.Hour
	// The cache's lock is never held for long, unless a disk hangs.
	longestLocked = time.Minute
	// A note beside an artifact is one line.
	longestNote = 4 << 10
)

// Cache is the directory with the artifacts. It is changed under its lock.
type Cache struct {
	directory string
	// used is that of the Service.
	used func() (map[string]bool, error)
}

func (c *Cache) content(name string) string { return filepath.Join(c.directory, name, top) }

// use reports whether the artifact exists, complete and unchanged, and marks it as used.
//
// An artifact that was verified before is only stat'ed; its files are read again if anything about them changed.
func (c *Cache) use(hash string) bool {
	place := filepath.Join(c.directory, hash)
	content, err := LookAtContent(filepath.Join(place, top))
	if err != nil {
		return false
	}
	seen, err := base.ReadFile(filepath.Join(place, "seen"), longestNote)
	if err != nil || string(seen) != content.Seen {
		content, err = ReadContent(filepath.Join(place, top))
		if err != nil || content.Hash != hash {
			return false
		}
		// If this cannot be written, the artifact is read each time.
		_ = base.WriteFile(filepath.Join(place, "seen"), []byte(content.Seen), 0o600)
	}
	touch(filepath.Join(place, "used"))
	return true
}

// touch does not fail on a read-only file system.
func touch(path string) {
	now := time.Now()
	if errors.Is(os.Chtimes(path, now, now), os.ErrNotExist) {
		_ = os.WriteFile(path, nil, 0o600)
	}
}

// finish verifies what is unpacked in place and makes it the artifact, replacing one that has changed.
func (c *Cache) finish(ctx context.Context, place, hash string) error {
	content, err := ReadContent(filepath.Join(place, top))
	if err != nil {
		return err
	}
	if content.Hash != hash {
		return fmt.Errorf("%w: its hash is %s", errUnsafe, content.Hash)
	}
	for name, text := range map[string]string{
		"used": "", "seen": content.Seen, "kib": strconv.FormatInt(content.Disk/1024+1, 10) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(place, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if c.use(hash) {
		return nil // somebody else pushed it meanwhile
	}
	if err := removeAside(filepath.Join(c.directory, hash)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(place, filepath.Join(c.directory, hash))
}

func (c *Cache) lock(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, longestLocked)
	defer cancel()
	return lock(ctx, filepath.Join(c.directory, ".lock"))
}

func (c *Cache) newAside() (string, error) {
	return os.MkdirTemp(c.directory, Aside)
}

// makeRoom removes the least recently used artifacts that no living run uses, until the rest and `more` fit in limit.
func (c *Cache) makeRoom(ctx context.Context, keep string, more, limit int64) {
	entries, total := c.measured()
	if limit <= 0 || total+more <= limit {
		return
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return // somebody else is making room
	}
	defer unlock()
	used, err := c.used()
	if err != nil {
		return // each may be in use; who cleans is told
	}
	for _, entry := range entries {
		if total+more <= limit || time.Since(entry.used) < justUsed {
			return
		}
		if entry.name != keep && !used[entry.name] && removeAside(filepath.Join(c.directory, entry.name)) == nil {
			total -= entry.size
		}
	}
}

type measured struct {
	name string
	size int64
	used time.Time
}

// measured returns the finished artifacts, least recently used first, and their total size.
func (c *Cache) measured() (found []measured, total int64) {
	entries, _ := os.ReadDir(c.directory)
	for _, entry := range entries {
		place := filepath.Join(c.directory, entry.Name())
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		text, _ := base.ReadFile(filepath.Join(place, "kib"), longestNote)
		kib, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			kib = SizeOf(place) / 1024
		}
		total += kib * 1024
		found = append(found, measured{entry.Name(), kib * 1024, lastUse(place)})
	}
	sort.Slice(found, func(i, j int) bool { return found[i].used.Before(found[j].used) })
	return found, total
}

// lastUse returns the mtime of the file `used` in the directory, else the directory's own.
func lastUse(place string) time.Time {
	info, err := os.Stat(filepath.Join(place, "used"))
	if err != nil {
		if info, err = os.Lstat(place); err != nil {
			return time.Now()
		}
	}
	return info.ModTime()
}

// removeAbandoned removes what broken pushes left in these directories.
func removeAbandoned(directories ...string) {
	for _, directory := range directories {
		left, _ := filepath.Glob(filepath.Join(directory, Aside+"*"))
		for _, place := range left {
			if info, err := os.Lstat(place); err == nil && time.Since(info.ModTime()) > abandoned {
				_ = base.Remove(place)
			}
		}
	}
}

// SizeOf returns how many bytes a file or a tree takes on disk, without what cannot be read.
func SizeOf(place string) (size int64) {
	_ = filepath.WalkDir(place, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := entry.Info(); err == nil {
			size += diskSize(info)
		}
		return nil
	})
	return size
}

// diskSize is what the file takes on its disk.
func diskSize(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(stat.Blocks) * 512
	}
	return info.Size()
}
