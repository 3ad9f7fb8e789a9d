package base

import "syscall"

// BootID is different after each start of the machine.
func BootID() string {
	id, _ := syscall.Sysctl("kern.bootsessionuuid")
	return id
}
