//go:build !linux

package nix

import (
	"errors"
	"os"

	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
)

// ways: only Linux has mount namespaces.
func ways() []string { return nil }

func enter(*process.Spec, string, store.UserStore, string, string, string) {}

// Enter works on Linux only.
func Enter([]string) error { return errors.New("there are no namespaces on this system") }

func execError(string) (error, bool) { return nil, false }

// touchLink sets a symbolic link's own times, here by recreating it.
func touchLink(path string) {
	target, err := os.Readlink(path)
	if err != nil {
		return
	}
	aside := path + ".touched"
	if os.Symlink(target, aside) == nil && os.Rename(aside, path) != nil {
		os.Remove(aside)
	}
}
