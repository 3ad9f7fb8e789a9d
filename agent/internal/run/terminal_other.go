//go:build !linux && !darwin

package run

import "errors"

func pseudoTerminal() (ours, theirs int, err error) {
	return -1, -1, errors.New("remote-runner makes terminals on Linux and macOS only")
}
