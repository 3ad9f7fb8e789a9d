package run

import "remote-runner/agent/internal/process"

// Start starts a program outside of any store; if it cannot, it returns the same problems as for a run.
func Start(keeper *process.Keeper, spec process.Spec) (*process.Process, error) {
	program := Program{Path: spec.Path, Argv: spec.Argv}
	started, err := startProgram(keeper, program, spec)
	if err != nil {
		return nil, explain(err, program)
	}
	return started, nil
}
