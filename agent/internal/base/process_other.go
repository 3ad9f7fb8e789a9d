//go:build !linux

package base

// StartTime returns when a process started, in the system's own unit; "" where that is unknown.
func StartTime(pid int) string { return "" }

func stat(pid int) []string { return nil }
