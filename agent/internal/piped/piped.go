// Package piped starts programs whose standard streams are pipes of ours.
package piped

import (
	"context"
	"os"
	"time"

	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

const (
	// Grace is what a program gets to end by itself.
	Grace = 2 * time.Second
	// LateWords is how long what a program has left may keep its words open.
	LateWords = 100 * time.Millisecond
)

// Program is one that runs, with our ends of its streams.
type Program struct {
	*process.Process
	Stdin, Stdout, Stderr *os.File
	keeper                *process.Keeper
}

// Start starts what the spec says, but for its streams, by start, which may be the keeper's own. together: what it says
// on stdout comes on Stderr as well.
func Start(keeper *process.Keeper, spec process.Spec, together bool, start func(process.Spec) (*process.Process, error)) (*Program, error) {
	var files [6]*os.File // in turn the ends to read from and to write to
	for i := 0; i < len(files); i += 2 {
		var err error
		if files[i], files[i+1], err = os.Pipe(); err != nil {
			closeAll(files[:]...)
			return nil, wire.Fail("processes", "%s: no pipe can be made: %v", spec.Path, err)
		}
	}
	// Fd makes them blocking, as programs expect their streams.
	spec.Stdin, spec.Stdout, spec.Stderr = int(files[0].Fd()), int(files[3].Fd()), int(files[5].Fd())
	if together {
		spec.Stdout = spec.Stderr
	}
	child, err := start(spec)
	closeAll(files[0], files[3], files[5])
	program := &Program{child, files[1], files[2], files[4], keeper}
	if err != nil {
		program.Close()
		return nil, err
	}
	return program, nil
}

// Close closes our ends of its streams.
func (p *Program) Close() { closeAll(p.Stdin, p.Stdout, p.Stderr) }

// End ends it with all of its group, unless it has ended, and closes its streams.
func (p *Program) End() {
	select {
	case <-p.Done():
	default:
		// Without the request's context, which may be over.
		p.keeper.EndGroup(context.Background(), p.PID, Grace)
	}
	p.Close()
}

func closeAll(files ...*os.File) {
	for _, file := range files {
		if file != nil {
			file.Close()
		}
	}
}
