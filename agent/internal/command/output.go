package command

import (
	"context"
	"io"
	"os"
	"time"
)

// Output runs a program of the host without a stdin, and returns its exit status and what it said on both streams, at
// most limit bytes. It is ended at once when ctx is over.
func (s *Service) Output(ctx context.Context, limit int64, argv ...string) (status int, said string, err error) {
	program, err := s.start(argv, s.Environ, "")
	if err != nil {
		return 0, "", err
	}
	program.stdin.Close()
	defer program.closePipes()
	texts := make(chan string, 2)
	for _, pipe := range []*os.File{program.stdout, program.stderr} {
		go func(pipe *os.File) {
			text, _ := io.ReadAll(io.LimitReader(pipe, limit))
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{pipe})
			texts <- string(text)
		}(pipe)
	}
	select {
	case <-program.Done():
	case <-ctx.Done():
		s.Processes.EndGroup(ctx, program.PID, 0)
		err = ctx.Err()
	}
	// What it left may have its streams still.
	late := time.AfterFunc(100*time.Millisecond, program.closePipes)
	said = <-texts + <-texts
	late.Stop()
	return program.Status().ExitStatus(), said, err
}

// Find is the path of a program of the login's PATH, "" where there is none.
func (s *Service) Find(name string) string {
	path, err := find(name, s.Environ, s.Home)
	if err != nil {
		return ""
	}
	return path
}
