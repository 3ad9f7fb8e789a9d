package main

import (
	"os"
	"strconv"
	"strings"
)

// inheritAllocation takes over by which variables Slurm is found, and the allocation, where Testground's daemon was started
// in one. The daemon hands none of its own variables to an instance, but is its parent. The names are those by which
// `fab local.*` hands them on (remote_runner/inventory/sources/slurm.py).
func inheritAllocation() {
	environ, err := os.ReadFile("/proc/" + strconv.Itoa(os.Getppid()) + "/environ")
	if err != nil {
		return // no Linux, or another user's
	}
	for _, variable := range strings.Split(string(environ), "\x00") {
		for _, name := range []string{"SLURM_JOB_ID", "SLURM_CONF"} {
			given, own := name+"=", "REMOTE_RUNNER_"+name
			if strings.HasPrefix(variable, given) && os.Getenv(own) == "" {
				os.Setenv(own, strings.TrimPrefix(variable, given))
			}
		}
	}
}
