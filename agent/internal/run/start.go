package run

import "remote-runner/agent/internal/process"

// Start starts a program that is in no store, and tells why it cannot be, as of a run's.
func Start(keeper *process.Keeper, spec process.Spec) (*process.Process, error) {
	program := Program{Path: spec.Path, Argv: spec.Argv}
	started, err := startProgram(keeper, program, spec)
	if err != nil {
		return nil, explain(err, program)
	}
	return started, nil
}
