// Package command runs programs as ssh would: with the login's environment, in a session of their own, and without a
// directory or a record.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"remote-runner/agent/internal/piped"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/run"
	"remote-runner/agent/internal/wire"
)

// Service answers the verb `exec`, and runs the agent's own commands.
type Service struct {
	Processes *process.Keeper
	// Environ is the login's environment, as NAME=VALUE.
	Environ []string
	// Home is what a relative cwd is relative to.
	Home string
}

// Exec is the verb `exec`. As with sshd, a stream ends when every process that holds it has closed it.
func (s *Service) Exec(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Argc     int
		Cwd      string
		LoginEnv *bool `json:"login_env"`
	}
	err := json.Unmarshal(open.Head, &request)
	if err != nil || request.Argc < 1 || request.Argc > len(open.Fields) {
		return wire.Fail("breach", "nothing can be executed by %s", open.Head)
	}
	words := make([]string, len(open.Fields))
	for i, field := range open.Fields {
		words[i] = string(field)
	}
	environ := s.Environ
	if request.LoginEnv != nil && !*request.LoginEnv {
		environ = nil
	}
	started, err := s.start(words[:request.Argc], merge(environ, words[request.Argc:]), request.Cwd)
	if err != nil {
		return err
	}
	if err := stream.Send(map[string]any{"started": map[string]any{"pid": started.PID}}); err != nil {
		started.Close()
		s.Processes.EndGroup(ctx, started.PID, 0)
		return err
	}
	return s.serve(ctx, stream, started)
}

func (s *Service) serve(ctx context.Context, stream *wire.Stream, program *piped.Program) error {
	var listening, telling sync.WaitGroup
	listening.Add(2)
	go func() {
		defer listening.Done()
		lane := stream.Reader(0)
		_, _ = io.Copy(program.Stdin, lane)
		program.Stdin.Close()
		// The client must not block on what nobody reads any more.
		_, _ = io.Copy(io.Discard, lane)
	}()
	go func() {
		defer listening.Done()
		passSignals(ctx, stream, program)
	}()
	for number, pipe := range []*os.File{program.Stdout, program.Stderr} {
		telling.Add(1)
		go func(lane io.WriteCloser, pipe *os.File) {
			defer telling.Done()
			// As a plain reader and writer: the pipe's own fast path for copying cannot write to our lanes.
			_, err := io.Copy(struct{ io.Writer }{lane}, struct{ io.Reader }{pipe})
			if err == nil {
				_ = lane.Close()
			}
			pipe.Close()
		}(stream.Writer(byte(number+1), false), pipe)
	}
	told := make(chan struct{})
	go func() {
		telling.Wait()
		close(told)
	}()
	err := s.wait(ctx, stream, program, told)
	program.Close()
	<-told
	_ = stream.Close(err)
	listening.Wait()
	return err
}

// wait returns how the program ended, once its streams have ended as well or the client has closed.
func (s *Service) wait(ctx context.Context, stream *wire.Stream, program *piped.Program, told <-chan struct{}) error {
	select {
	case <-program.Done():
	case <-ctx.Done():
		program.End()
		return ctx.Err()
	}
	status := program.Status()
	said := map[string]any{"status": status.ExitStatus(), "signal": 0}
	if status.Signaled() {
		said = map[string]any{"status": 128 + int(status.Signal()), "signal": int(status.Signal())}
	}
	if err := stream.Send(map[string]any{"exited": said}); err != nil {
		return err
	}
	select {
	case <-told:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func passSignals(ctx context.Context, stream *wire.Stream, program *piped.Program) {
	for {
		message, err := stream.Receive(ctx)
		if err != nil {
			return
		}
		var said struct{ Signal int }
		if json.Unmarshal(message.Head, &said) != nil || said.Signal < 1 || said.Signal > 64 {
			continue
		}
		select {
		case <-program.Done(): // its number may have been reused
		default:
			program.Signal(syscall.Signal(said.Signal))
		}
	}
}

func (s *Service) start(argv, environ []string, cwd string) (*piped.Program, error) {
	if cwd == "" || cwd[0] != '/' {
		cwd = s.Home + "/" + cwd
	}
	path, err := find(argv[0], environ, cwd)
	if err == nil {
		_, err = os.Stat(cwd) // fork's error would read as if it came from the program
	}
	if err != nil {
		return nil, cannotStart(argv[0], err)
	}
	return s.launch(process.Spec{Path: path, Argv: argv, Env: environ, Dir: cwd})
}

// launch starts what the spec says, but for its streams, which are pipes.
func (s *Service) launch(spec process.Spec) (*piped.Program, error) {
	return piped.Start(s.Processes, spec, false, func(spec process.Spec) (*process.Process, error) {
		return run.Start(s.Processes, spec)
	})
}

func cannotStart(program string, err error) error {
	problem := err.Error()
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		problem = "nothing"
	case errors.Is(err, syscall.EISDIR):
		problem = "directory"
	case errors.Is(err, os.ErrPermission):
		problem = "not-executable"
	}
	return wire.Fail("program", "%s cannot be started: %v", program, err).With("program", program).With("problem", problem)
}

// find returns what a shell would start: a name without a slash is looked up on the environment's PATH.
func find(name string, environ []string, cwd string) (string, error) {
	if strings.Contains(name, "/") {
		if name[0] != '/' {
			name = cwd + "/" + name
		}
		return name, executable(name)
	}
	path := ""
	for _, variable := range environ {
		if value, found := strings.CutPrefix(variable, "PATH="); found {
			path = value
		}
	}
	var problem error = os.ErrNotExist
	for _, directory := range strings.Split(path, ":") {
		if directory == "" || directory[0] != '/' {
			directory = cwd + "/" + directory
		}
		err := executable(directory + "/" + name)
		if err == nil {
			return directory + "/" + name, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			problem = err
		}
	}
	return "", problem
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return syscall.EISDIR
	}
	return syscall.Access(path, 1) // X_OK
}

// merge returns environ with the variables of more in place of its own.
func merge(environ, more []string) []string {
	given := map[string]bool{}
	for _, variable := range more {
		name, _, _ := strings.Cut(variable, "=")
		given[name] = true
	}
	var merged []string
	for _, variable := range environ {
		if name, _, _ := strings.Cut(variable, "="); !given[name] {
			merged = append(merged, variable)
		}
	}
	return append(merged, more...)
}
