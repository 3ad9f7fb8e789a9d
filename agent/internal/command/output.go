package command

import (
	"context"
	"io"
	"os"
	"time"

	"remote-runner/agent/internal/piped"
	"remote-runner/agent/internal/process"
)

// Finished is what a program did, and the beginning of what it said.
type Finished struct {
	Status         int
	Stdout, Stderr string
}

// Output runs a program of the host without a stdin; of each of its streams limit bytes are kept. It is ended at once
// when ctx is over.
func (s *Service) Output(ctx context.Context, limit int64, argv ...string) (Finished, error) {
	program, err := s.start(argv, s.Environ, "")
	if err != nil {
		return Finished{}, err
	}
	return s.collect(ctx, limit, program)
}

// OutputOf is as Output, for a program that has to be started in a way of its own.
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

// Find is the path of a program of the login's PATH, "" where there is none.
func (s *Service) Find(name string) string {
	path, err := find(name, s.Environ, s.Home)
	if err != nil {
		return ""
	}
	return path
}
