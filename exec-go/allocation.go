package main

import (
	"os"
	"strconv"
	"strings"
)

// inheritAllocation copies the variables that locate Slurm and its allocation, if Testground's daemon was started in one.
// The daemon passes none of its own variables to an instance, but is its parent. The names are the same as those that
// `fab local.*` passes on (remote_runner/inventory/sources/slurm.py).
func inheritAllocation() {
	environ, err := readFile("/proc/" + strconv.Itoa(os.Getppid()) + "/environ")
	if err != nil {
		return // not Linux, or another user's process
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
