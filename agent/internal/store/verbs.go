package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/wire"
)

const (
	// More than a stream's initial credit, to fill a line with high latency; it is used only while the disk is slower.
	bulkCredit = 4 << 20
	firstGrant = 256 << 10
	// How long to wait for another push of the same artifact. After that both are received, and one is kept.
	longestWait = 2 * time.Minute
)

// hashes are those of content.py.
var hashes = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Service serves the verbs about artifacts.
type Service struct {
	// Base is the agent's directory.
	Base base.Directory
	// Used returns the artifacts that living runs use: a hash, or a store path's base name. It fails where that cannot be
	// known.
	Used func() (map[string]bool, error)
	// Places returns all our directories on this host, Base included.
	Places func() []base.Directory
	// Prove finds the way in which a program here can be shown the user's own Nix store.
	Prove func(context.Context, UserStore) (how string, err error)
}

func (s *Service) cache() *Cache {
	return &Cache{s.Base.Artifacts(), s.Used}
}

// Use reports whether the artifact exists, complete and unchanged, and marks it as used.
func (s *Service) Use(hash string) bool { return s.cache().use(hash) }

// wanted is an artifact that a client pushes: on lane 0, or in a File that another program writes for it.
type wanted struct {
	Hash, File  string
	Size, Limit int64
}

// Artifact is the verb `artifact`: it returns where the artifact is, and receives it from the client if it is missing.
func (s *Service) Artifact(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request wanted
	if err := json.Unmarshal(open.Head, &request); err != nil || !hashes.MatchString(request.Hash) || request.Size < 0 {
		return wire.Fail("breach", "no artifact can be asked for by %s", open.Head)
	}
	cache := s.cache()
	if request.File != "" {
		if filepath.Dir(request.File) != cache.directory || !strings.HasPrefix(filepath.Base(request.File), Aside) {
			return wire.Fail("breach", "nothing is brought to %s", request.File)
		}
		defer os.Remove(request.File)
	}
	place := cache.content(request.Hash)
	if cache.use(request.Hash) {
		return stream.Send(map[string]any{"have": place})
	}
	if err := os.MkdirAll(cache.directory, 0o700); err != nil {
		return noRoom(err)
	}
	path := filepath.Join(cache.directory, ".lock-"+request.Hash)
	unlock, err := tryLock(path)
	if err != nil {
		if errors.Is(err, errHeld) && request.File != "" {
			if err := stream.Send(map[string]any{"waits": true}); err != nil {
				return err
			}
		}
		if unlock, err = turn(ctx, path); err != nil {
			return err
		}
	}
	defer unlock()
	if cache.use(request.Hash) {
		return stream.Send(map[string]any{"have": place})
	}
	cache.makeRoom(ctx, request.Hash, request.Size, request.Limit)
	if err := s.take(ctx, cache, stream, request); err != nil {
		return err
	}
	if err := stream.Send(map[string]any{"done": place}); err != nil {
		return err
	}
	cache.makeRoom(ctx, request.Hash, 0, request.Limit)
	removeAbandoned(cache.directory)
	return nil
}

// turn waits while somebody else brings the same. Where that takes too long it is brought twice.
func turn(ctx context.Context, path string) (unlock func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	unlock, err = lock(waiting, path)
	switch {
	case err == nil:
		return unlock, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return func() {}, nil
	}
	return nil, noRoom(err)
}

func (s *Service) take(ctx context.Context, cache *Cache, stream *wire.Stream, request wanted) error {
	hash, size := request.Hash, request.Size
	place, err := cache.newAside()
	if err != nil {
		return noRoom(err)
	}
	defer base.Remove(place)
	if err := stream.Send(map[string]any{"send": true}); err != nil {
		return err
	}
	if size > firstGrant {
		stream.Grant(0, int(min(size, bulkCredit))-firstGrant)
	}
	content, err := request.content(stream.Reader(0))
	if err == nil {
		defer content.Close()
		err = Unpack(content, place, size)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, content)
	}
	if err == nil {
		err = cache.finish(ctx, place, hash)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errUnsafe):
		return wire.Fail("hash", "the artifact %s did not come as it is: %v", hash, err)
	case errors.Is(err, context.DeadlineExceeded):
		return wire.Fail("busy", "another agent has held %s for more than %v", cache.directory, longestLocked)
	}
	return noRoom(err)
}

// content is what comes on the lane; where that is nothing, what lies in the file, which loses its name.
func (w wanted) content(lane io.Reader) (io.ReadCloser, error) {
	if w.File == "" {
		return io.NopCloser(lane), nil
	}
	defer os.Remove(w.File)
	buffered := bufio.NewReader(lane)
	if _, err := buffered.Peek(1); err != io.EOF {
		return io.NopCloser(buffered), nil
	}
	file, err := os.OpenFile(w.File, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errUnsafe, err)
	}
	return file, nil
}

// noRoom turns a file system's error into a failure for the client.
func noRoom(err error) error {
	var path *os.PathError
	var link *os.LinkError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &path):
		return wire.NoRoom(err, path.Path)
	case errors.As(err, &link):
		return wire.NoRoom(err, link.New)
	}
	return wire.NoRoom(err, "")
}
