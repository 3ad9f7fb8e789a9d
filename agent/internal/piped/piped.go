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
	// Grace is how long a program gets to end by itself.
	Grace = 2 * time.Second
	// LateWords is how long leftover processes may keep its stderr open.
	LateWords = 100 * time.Millisecond
)

// Program is a running program with our ends of its streams.
type Program struct {
	*process.Process
	Stdin, Stdout, Stderr *os.File
	keeper                *process.Keeper
}

// Start starts the spec's program by start, which may be the keeper's Start, with its streams on pipes. With together, its
// stdout comes on Stderr as well.
func Start(keeper *process.Keeper, spec process.Spec, together bool, start func(process.Spec) (*process.Process, error)) (*Program, error) {
	var files [6]*os.File // read and write ends in turn
	for i := 0; i < len(files); i += 2 {
		var err error
		if files[i], files[i+1], err = os.Pipe(); err != nil {
			closeAll(files[:]...)
			return nil, wire.Fail("processes", "%s: no pipe can be made: %v", spec.Path, err)
		}
	}
	// Fd makes them blocking, as programs expect of their streams.
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

// End ends it with its process group, unless it has ended, and closes its streams.
func (p *Program) End() {
	select {
	case <-p.Done():
	default:
		// Not the request's context, which may have ended.
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
