package base

import "syscall"

// BootID changes with each boot of the machine.
func BootID() string {
	id, _ := syscall.Sysctl("kern.bootsessionuuid")
	return id
}
