package nix

import (
	"context"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/piped"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

const (
	// More than a stream's initial credit, to fill a line with high latency.
	bulkCredit = 4 << 20
	// How much of a failed build's output is kept.
	longestLog = 30
	// An older build directory is left from a crash of the machine.
	abandoned = 24 * time.Hour
)

// Copy is the verb `nix`: it makes a GC root for a store path that is valid here; else it connects the client to
// `nix-store --serve --write`, and makes a root for what came, or what is built from it.
//
// The server holds what it was asked for with `lock`, and what was added, as long as it runs, and it runs until there is
// a permanent root. So no garbage collection takes a path in between.
func (s *Service) Copy(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Out, Drv   string
		Substitute bool
	}
	if err := open.Decode(&request); err != nil {
		return err
	}
	if !IsStorePath(request.Out) || request.Drv != "" && !IsStorePath(request.Drv) {
		return wire.Fail("breach", "no store paths: %q, %q", request.Out, request.Drv)
	}
	nixStore := s.NixStore()
	if nixStore == "" {
		return stream.Send(map[string]any{"access": None, "why": ""})
	}
	if err := os.MkdirAll(s.roots(), 0o700); err != nil {
		return wire.Fail("room", "%v", err)
	}
	if err := stream.Send(map[string]any{"asks": nixStore}); err != nil {
		return err
	}
	// A path that exists may be invalid; one that does not exist is, and not starting a program saves 25 ms.
	if _, err := os.Lstat(request.Out); err == nil {
		kept, _, err := s.keep(ctx, nixStore, request.Out, s.root(request.Out))
		if kept {
			return stream.Send(map[string]any{"have": s.Base})
		}
		if err != nil {
			return err
		}
	}
	access, why := s.Access(ctx, nixStore)
	if err := ctx.Err(); err != nil {
		return err
	}
	if access == Refused || access == Foreign {
		return stream.Send(map[string]any{"access": access, "why": why})
	}
	name := ""
	if who, err := user.Current(); err == nil {
		name = who.Username
	}
	if err := stream.Send(map[string]any{"serve": access, "user": name}); err != nil {
		return err
	}
	copying := &copying{s, stream, nixStore}
	return copying.serve(ctx, func() error { return copying.realise(ctx, request.Out, request.Drv, request.Substitute) })
}

// root returns the path of a push's GC root.
func (s *Service) root(path string) string { return filepath.Join(s.roots(), filepath.Base(path)) }

type copying struct {
	*Service
	stream   *wire.Stream
	nixStore string
}

// serve runs the server on lanes 0 and 1, and calls whenAll when the client says that it has sent everything.
func (c *copying) serve(ctx context.Context, whenAll func() error) error {
	server, err := c.start(process.Spec{Path: c.nixStore, Argv: []string{c.nixStore, "--serve", "--write"}}, true)
	if err != nil {
		return err
	}
	defer server.End()
	piped.Widen(server.Stdin)
	c.stream.Grant(0, bulkCredit)
	go func() {
		lane := c.stream.Reader(0)
		copyAll(server.Stdin, lane)
		server.Stdin.Close()
	}()
	told := make(chan struct{})
	go func() {
		defer close(told)
		copyAll(c.stream.Writer(1, false), server.Stdout)
	}()
	all := make(chan error, 1)
	go func() {
		_, err := c.stream.Receive(ctx)
		all <- err
	}()
	select {
	case err := <-all:
		if err != nil {
			return err
		}
		if err := whenAll(); err != nil {
			return err
		}
		server.Stdin.Close() // lets it end by itself
		select {
		case <-server.Done():
		case <-time.After(piped.Grace):
		}
		return nil
	case <-server.Done():
		<-told // its answers precede its exit
		return wire.Fail("nix", "%s", server.words())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// realise builds the derivation, if there is one, and makes out's permanent root.
func (c *copying) realise(ctx context.Context, out, drv string, substitute bool) error {
	if drv != "" {
		aside, err := c.newAside()
		if err != nil {
			return wire.Fail("room", "%v", err)
		}
		// The derivation's outputs have roots of their own (NAME, NAME-dev, …) until out has one.
		defer base.Remove(aside)
		option := map[bool]string{true: "true", false: "false"}[substitute]
		status, said, err := c.run(ctx, c.nixStore, "--option", "substitute", option, "--add-root",
			filepath.Join(aside, "out"), "-r", drv)
		if err != nil {
			return err
		}
		if status != 0 {
			lines := strings.Split(said, "\n")
			said = strings.Join(lines[max(0, len(lines)-longestLog):], "\n")
			return c.stream.Send(map[string]any{"unbuilt": status, "said": said})
		}
	}
	kept, said, err := c.keep(ctx, c.nixStore, out, c.root(out))
	switch {
	case err != nil:
		return err
	case !kept:
		return wire.Fail("nix", "%s", said)
	}
	return c.stream.Send(map[string]any{"rooted": c.Base})
}

const asidePrefix = ".build-"

func (c *copying) newAside() (string, error) {
	directory := filepath.Join(string(c.Base), "nix")
	left, _ := filepath.Glob(filepath.Join(directory, asidePrefix+"*"))
	for _, place := range left {
		if info, err := os.Lstat(place); err == nil && time.Since(info.ModTime()) > abandoned {
			_ = base.Remove(place)
		}
	}
	return os.MkdirTemp(directory, asidePrefix)
}

// copyAll copies to the end, or until one side is gone. Anything that the client sends later is dropped with the stream.
func copyAll(to io.Writer, from io.Reader) {
	buffer := make([]byte, 128<<10)
	for {
		size, err := from.Read(buffer)
		if _, failed := to.Write(buffer[:size]); failed != nil {
			return
		}
		if err != nil {
			return
		}
	}
}
