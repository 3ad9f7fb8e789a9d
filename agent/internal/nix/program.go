package nix

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

const (
	// What is kept of a program's words: the last.
	longestSaid = 8 << 10
	// What a program gets to end by itself.
	grace = 2 * time.Second
	// How long what a program has left may keep its words open.
	lateWords = 100 * time.Millisecond
)

// program is one of Nix's that runs, with our ends of its streams. What it says on stderr is kept.
type program struct {
	*process.Process
	keeper *process.Keeper
	stdin  *os.File
	stdout *os.File
	stderr *os.File
	said   tail
	heard  chan struct{}
}

// start starts a program; stdout false: with its stdout on stderr.
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
	var files [6]*os.File // in turn the ends to read from and to write to
	for i := 0; i < len(files); i += 2 {
		var err error
		if files[i], files[i+1], err = os.Pipe(); err != nil {
			closeAll(files[:]...)
			return nil, wire.Fail("processes", "%s: no pipe can be made: %v", spec.Argv[0], err)
		}
	}
	// Fd makes them blocking, as programs expect their streams.
	spec.Stdin, spec.Stdout, spec.Stderr = int(files[0].Fd()), int(files[3].Fd()), int(files[5].Fd())
	if !stdout {
		spec.Stdout = spec.Stderr
	}
	child, err := s.Processes.Start(spec)
	closeAll(files[0], files[3], files[5])
	if err != nil {
		closeAll(files[1], files[2], files[4])
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) {
			return nil, wire.Fail("processes", "%s: no process can be started: %v", spec.Argv[0], err)
		}
		return nil, err
	}
	started := &program{Process: child, keeper: s.Processes, stdin: files[1], stdout: files[2], stderr: files[4],
		heard: make(chan struct{})}
	go func() {
		// As a plain one: what a pipe does by itself to be copied is not for us.
		_, _ = io.Copy(&started.said, struct{ io.Reader }{started.stderr})
		close(started.heard)
	}()
	return started, nil
}

// end ends the program, unless it has ended, and closes its streams.
func (p *program) end() {
	select {
	case <-p.Done():
	default:
		p.keeper.EndGroup(context.Background(), p.PID, grace)
	}
	closeAll(p.stdin, p.stdout, p.stderr)
}

// words are the last that the program has said, once it has ended.
func (p *program) words() string {
	<-p.Done()
	select {
	case <-p.heard:
	case <-time.After(lateWords):
	}
	return p.said.String()
}

// run runs a program to its end, and returns its exit status (negative after a signal) and its last words.
func (s *Service) run(ctx context.Context, argv ...string) (status int, said string, err error) {
	return s.runSpec(ctx, process.Spec{Path: argv[0], Argv: argv})
}

func (s *Service) runSpec(ctx context.Context, spec process.Spec) (status int, said string, err error) {
	running, err := s.start(spec, false)
	if err != nil {
		return 0, "", err
	}
	defer running.end()
	running.stdin.Close()
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

func closeAll(files ...*os.File) {
	for _, file := range files {
		if file != nil {
			file.Close()
		}
	}
}
