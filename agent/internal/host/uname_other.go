//go:build !linux

package host

import "syscall"

// uname tells what `uname -s` and `uname -m` tell.
func uname() (system, machine string) {
	system, _ = syscall.Sysctl("kern.ostype")
	machine, _ = syscall.Sysctl("hw.machine")
	return system, machine
}
