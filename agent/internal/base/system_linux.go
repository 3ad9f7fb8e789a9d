package base

import (
	"os"
	"strconv"
	"strings"
	"sync"
)

// BootID changes with each boot of the machine.
var BootID = sync.OnceValue(func() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
})

// StartTime returns when a process started, in the system's own unit; "" where that is unknown.
func StartTime(pid int) string {
	if fields := stat(pid); len(fields) > 19 {
		return fields[19]
	}
	return ""
}

// stat is /proc/PID/stat from its third field, the state.
func stat(pid int) []string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	// The second field is the name in parentheses, which may contain anything.
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}
