//go:build !linux && !darwin

package base

// BootID changes with each boot of the machine; it is unknown here.
func BootID() string { return "" }
