// Package files transfers single files to and from the host.
package files

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"remote-runner/agent/internal/wire"
)

const (
	bulkCredit = 4 << 20
	bufferSize = 64 << 10
	modeBits   = 0o7777
)

// Service answers the verbs about files.
type Service struct {
	// Home is what relative paths are relative to.
	Home string
}

func (s *Service) absolute(path string) string {
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.Home, path)
	}
	return filepath.Clean(path)
}

// Put is the verb `put`: it writes a temporary file beside the target and renames it, so readers see the old or the new.
func (s *Service) Put(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Path, Name string
		Mode       *uint32
	}
	if err := json.Unmarshal(open.Head, &request); err != nil || request.Path == "" {
		return wire.Fail("breach", "no file can be written by %s", open.Head)
	}
	path := s.absolute(request.Path)
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		if name := request.Name; name == "" || name == "." || name == ".." || filepath.Base(name) != name {
			return wire.Fail("breach", "%q is no name for a file in %s", name, path)
		}
		path = filepath.Join(path, request.Name)
		info, err = os.Stat(path)
	}
	if err == nil {
		// A link is followed, not replaced.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return cannotWrite(path, err)
		}
		if info.IsDir() {
			return cannotWrite(path, syscall.EISDIR)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return cannotWrite(path, err)
	}
	stream.Grant(0, bulkCredit)
	if info != nil && !info.Mode().IsRegular() {
		err = writeInto(ctx, path, stream.Reader(0))
	} else {
		err = replace(ctx, path, modeOf(request.Mode, info), stream.Reader(0))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return cannotWrite(path, err)
	}
	return stream.Send(map[string]any{"written": path})
}

// modeOf returns the requested mode, else the existing file's; nil leaves it to the umask.
func modeOf(asked *uint32, there fs.FileInfo) *uint32 {
	if asked == nil && there != nil {
		mode := bitsOf(there)
		return &mode
	}
	return asked
}

func bitsOf(info fs.FileInfo) uint32 {
	return uint32(info.Sys().(*syscall.Stat_t).Mode) & modeBits
}

func replace(ctx context.Context, path string, mode *uint32, content io.Reader) (err error) {
	file, err := newBeside(path)
	if err != nil {
		return err
	}
	defer func() {
		file.Close()
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	if err := copyTo(ctx, file, content); err != nil {
		return err
	}
	if mode != nil {
		// Not File.Chmod, which has its own idea of the bits above 0777.
		if err := syscall.Fchmod(int(file.Fd()), *mode&modeBits); err != nil {
			return err
		}
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

// newBeside creates a file with the umask's mode, which os.CreateTemp does not.
func newBeside(path string) (*os.File, error) {
	temporary, err := os.CreateTemp(filepath.Dir(path), ".remote-runner-*")
	if err != nil {
		return nil, err
	}
	name := temporary.Name()
	temporary.Close()
	os.Remove(name)
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
}

// writeInto is for devices and pipes, which cannot be replaced.
func writeInto(ctx context.Context, path string, content io.Reader) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return copyTo(ctx, file, content)
}

// copyTo writes all of the content; a stream that breaks off is an error.
func copyTo(ctx context.Context, file *os.File, content io.Reader) error {
	// As a plain writer: os.File.ReadFrom would not use this buffer.
	if _, err := io.CopyBuffer(struct{ io.Writer }{file}, content, make([]byte, bufferSize)); err != nil {
		return err
	}
	return ctx.Err()
}

func cannotWrite(path string, err error) error {
	kind := "room"
	if errors.Is(err, syscall.EROFS) {
		kind = "readonly"
	}
	return failure(kind, path, err)
}

func failure(kind, path string, err error) error {
	var wrapped *fs.PathError
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return wire.Fail(kind, "%s: %v", path, err).With("path", path)
}

// Get is the verb `get`.
func (s *Service) Get(_ context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct{ Path string }
	if err := json.Unmarshal(open.Head, &request); err != nil || request.Path == "" {
		return wire.Fail("breach", "no file can be read by %s", open.Head)
	}
	path := s.absolute(request.Path)
	// Opening a pipe without a writer would block.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return failure("unknown", path, err)
	}
	if err != nil {
		return failure("unreadable", path, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return failure("unreadable", path, err)
	}
	if !info.Mode().IsRegular() {
		return failure("unreadable", path, errors.New("it is no file"))
	}
	if err := stream.Send(map[string]any{"mode": bitsOf(info), "size": info.Size(), "path": path}); err != nil {
		return err
	}
	lane := stream.Writer(0, true)
	if _, err := io.CopyBuffer(struct{ io.Writer }{lane}, struct{ io.Reader }{file}, make([]byte, bufferSize)); err != nil {
		return failure("unreadable", path, err)
	}
	return lane.Close()
}
