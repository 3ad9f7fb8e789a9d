package nix

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/piped"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

// How much of a program's stderr is kept: its end.
const longestSaid = 8 << 10

// program is a running program of Nix's, whose stderr is kept.
type program struct {
	*piped.Program
	said  tail
	heard chan struct{}
}

// start starts a program; with stdout false its stdout goes to stderr.
func (s *Service) start(spec process.Spec, stdout bool) (*program, error) {
	spec.Dir = "/"
	if spec.Env == nil {
		spec.Env = []string{"LC_ALL=C"}
		for _, variable := range s.Environ {
			if !strings.HasPrefix(variable, "LC_ALL=") {
				spec.Env = append(spec.Env, variable)
			}
		}
	}
	child, err := piped.Start(s.Processes, spec, !stdout, s.Processes.Start)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
		return nil, wire.Fail("processes", "%s: no process can be started: %v", spec.Argv[0], err)
	}
	if err != nil {
		return nil, err
	}
	started := &program{Program: child, heard: make(chan struct{})}
	go func() {
		// As a plain reader: the pipe's own fast path for copying does not apply.
		_, _ = io.Copy(&started.said, struct{ io.Reader }{started.Stderr})
		close(started.heard)
	}()
	return started, nil
}

// words returns the end of the program's stderr, once it has ended.
func (p *program) words() string {
	<-p.Done()
	select {
	case <-p.heard:
	case <-time.After(piped.LateWords):
	}
	return p.said.String()
}

// run runs a program to its end, and returns its exit status (negative: a signal) and the end of its stderr.
func (s *Service) run(ctx context.Context, argv ...string) (status int, said string, err error) {
	return s.runSpec(ctx, process.Spec{Path: argv[0], Argv: argv})
}

func (s *Service) runSpec(ctx context.Context, spec process.Spec) (status int, said string, err error) {
	running, err := s.start(spec, false)
	if err != nil {
		return 0, "", err
	}
	defer running.End()
	running.Stdin.Close()
	select {
	case <-running.Done():
		return exitStatus(running.Process), running.words(), nil
	case <-ctx.Done():
		return 0, "", ctx.Err()
	}
}

func exitStatus(ended *process.Process) int {
	if status := ended.Status(); status.Signaled() {
		return -int(status.Signal())
	}
	return ended.Status().ExitStatus()
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(more []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, more...)
	if len(t.text) > 2*longestSaid {
		t.text = append(t.text[:0], t.text[len(t.text)-longestSaid:]...)
	}
	return len(more), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text[max(0, len(t.text)-longestSaid):]))
}
