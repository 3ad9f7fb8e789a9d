package command

import (
	"context"
	"io"
	"os"
	"time"

	"remote-runner/agent/internal/piped"
	"remote-runner/agent/internal/process"
)

// Finished is a program's exit status and the beginning of its output.
type Finished struct {
	Status         int
	Stdout, Stderr string
}

// Output runs a program of the host without stdin and keeps the first limit bytes of each stream. When ctx ends, the
// program is killed.
func (s *Service) Output(ctx context.Context, limit int64, argv ...string) (Finished, error) {
	program, err := s.start(argv, s.Environ, "")
	if err != nil {
		return Finished{}, err
	}
	return s.collect(ctx, limit, program)
}

// OutputOf is like Output, for a program that start starts.
func (s *Service) OutputOf(ctx context.Context, limit int64, spec process.Spec) (Finished, error) {
	program, err := s.launch(spec)
	if err != nil {
		return Finished{}, err
	}
	return s.collect(ctx, limit, program)
}

func (s *Service) collect(ctx context.Context, limit int64, program *piped.Program) (done Finished, err error) {
	program.Stdin.Close()
	defer program.Close()
	read := func(pipe *os.File, into *string, ended chan<- struct{}) {
		text, _ := io.ReadAll(io.LimitReader(pipe, limit))
		*into = string(text)
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{pipe})
		ended <- struct{}{}
	}
	ended := make(chan struct{}, 2)
	go read(program.Stdout, &done.Stdout, ended)
	go read(program.Stderr, &done.Stderr, ended)
	select {
	case <-program.Done():
	case <-ctx.Done():
		s.Processes.EndGroup(ctx, program.PID, 0)
		err = ctx.Err()
	}
	late := time.AfterFunc(piped.LateWords, program.Close)
	defer late.Stop()
	<-ended
	<-ended
	if err == nil {
		done.Status = program.Status().ExitStatus()
	}
	return done, err
}

// Find returns the path of a program on the login's PATH, "" if it is not there.
func (s *Service) Find(name string) string {
	path, err := find(name, s.Environ, s.Home)
	if err != nil {
		return ""
	}
	return path
}
