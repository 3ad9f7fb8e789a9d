package nix

import (
	"context"
	"errors"
	"os"
	"strings"

	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
)

// Prove tests whether a program can be shown the user's own store, and returns the way that worked.
func (s *Service) Prove(ctx context.Context, own store.UserStore) (how string, err error) {
	refused := errors.New("programs on this system all see the same files")
	for _, way := range ways() {
		if refused = s.try(ctx, way, own); refused == nil {
			return way, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
	return "", refused
}

func (s *Service) try(ctx context.Context, way string, own store.UserStore) error {
	report, err := os.CreateTemp(string(own), store.Aside)
	if err != nil {
		return err
	}
	report.Close()
	defer os.Remove(report.Name())
	var spec process.Spec
	enter(&spec, way, own, "/", report.Name(), "")
	status, said, err := s.runSpec(ctx, spec)
	if err != nil {
		return errors.New("the kernel gives no namespaces: " + err.Error())
	}
	if status == 0 {
		return nil
	}
	text, _ := os.ReadFile(report.Name())
	return errors.New(strings.TrimSpace(string(text) + " " + said))
}
