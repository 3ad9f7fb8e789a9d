//go:build !linux

package host

import "syscall"

// uname returns what `uname -s` and `uname -m` print.
func uname() (system, machine string) {
	system, _ = syscall.Sysctl("kern.ostype")
	machine, _ = syscall.Sysctl("hw.machine")
	return system, machine
}
