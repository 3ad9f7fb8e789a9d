// Package process starts programs, reports how they ended, and ends what they leave behind.
//
// One goroutine, locked to its thread, does all forking: on Linux a child gets a signal when that thread ends (PDEATHSIG).
// Another goroutine reaps all children. So nothing else in the agent may fork, and os/exec cannot be used.
//
// On Linux the agent is a child subreaper: whatever a run leaves behind stays below the agent, however it hides.
package process

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Marker is the variable in the environment of every process of a run, unless one removed it.
const Marker = "REMOTE_RUNNER_INSTANCE"

// Groups learns of each process group that must end when the agent dies: the guardian's list.
type Groups interface {
	Add(group int)
	Remove(group int)
}

// Spec describes what to start.
type Spec struct {
	Path                  string
	Argv                  []string
	Env                   []string
	Dir                   string
	Stdin, Stdout, Stderr int                        // descriptors, all required
	Marker                string                     // of a run, whose leftovers EndRun finds; empty for a command, which may leave processes
	Exited                func()                     // called after it has ended; must not block
	Terminal              bool                       // Stdin is a terminal, which becomes the process's controlling one
	Adapt                 func(*syscall.SysProcAttr) // further ways to start it: namespaces
}

// Process is a started program. It leads its own session and process group.
type Process struct {
	PID    int
	marker string
	exited func()
	done   chan struct{}
	status syscall.WaitStatus
	usage  syscall.Rusage
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Status is how it ended; valid after Done.
func (p *Process) Status() syscall.WaitStatus { return p.status }

// Usage is what it and the children that it waited for used; valid after Done.
func (p *Process) Usage() syscall.Rusage { return p.usage }

// MaxRSS is its peak memory in bytes; valid after Done. Linux includes what the agent had when it forked.
func (p *Process) MaxRSS() int64 {
	if runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		return int64(p.usage.Maxrss)
	}
	return int64(p.usage.Maxrss) << 10
}

// Signal sends a signal to the process's group.
func (p *Process) Signal(number syscall.Signal) { signalGroup(p.PID, number) }

func signalGroup(group int, number syscall.Signal) {
	_ = syscall.Kill(-group, number)
	if number == syscall.SIGTERM {
		_ = syscall.Kill(-group, syscall.SIGCONT) // a stopped process does not act on it
	}
}

// Keeper owns all processes that the agent starts.
type Keeper struct {
	groups Groups
	starts chan start
	woken  chan os.Signal

	sockets sockets

	// mu is held during a start, so that a process is not reaped before it is registered.
	mu        sync.Mutex
	processes map[int]*Process // not reaped yet
	runs      map[int]*Process // until EndRun returns
	nextRun   chan struct{}    // nil unless somebody waits for one
	commands  map[int]bool     // sessions of commands that may have left something
}

type start struct {
	spec  Spec
	reply chan started
}

type started struct {
	process *Process
	err     error
}

// NewKeeper starts to reap all children of this process. groups may be nil.
func NewKeeper(groups Groups) *Keeper {
	k := &Keeper{
		groups:    groups,
		starts:    make(chan start),
		woken:     make(chan os.Signal, 1),
		processes: map[int]*Process{},
		runs:      map[int]*Process{},
		commands:  map[int]bool{},
	}
	BecomeSubreaper()
	forgetInherited()
	hearIgnored()
	signal.Notify(k.woken, syscall.SIGCHLD)
	go k.fork()
	go func() {
		for range k.woken {
			k.mu.Lock()
			k.reap()
			k.mu.Unlock()
		}
	}()
	return k
}

// forgetInherited makes inherited descriptors close-on-exec: sshd or a shell may leave files open. What Go opens itself
// is close-on-exec anyway.
func forgetInherited() {
	for file := 3; file < 1024; file++ {
		syscall.CloseOnExec(file)
	}
}

// hearIgnored catches the signals that this process was started to ignore (nohup, a script's background job): a caught
// signal has its default effect again in an executed program.
func hearIgnored() {
	for _, number := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM} {
		if signal.Ignored(number) {
			signal.Notify(make(chan os.Signal, 1), number)
		}
	}
}

// Close ends the goroutines, and with the forking thread what it started.
func (k *Keeper) Close() {
	signal.Stop(k.woken)
	close(k.woken)
	close(k.starts)
}

// Start starts a program. The error is the errno of fork, chdir or exec.
func (k *Keeper) Start(spec Spec) (*Process, error) {
	reply := make(chan started, 1)
	k.starts <- start{spec, reply}
	answer := <-reply
	if answer.err == nil && k.groups != nil {
		k.groups.Add(answer.process.PID)
	}
	return answer.process, answer.err
}

// fork is the only place that makes processes. Its thread stays, since they end with it.
func (k *Keeper) fork() {
	runtime.LockOSThread()
	for wanted := range k.starts {
		process, err := k.forkOne(wanted.spec)
		wanted.reply <- started{process, err}
	}
}

func (k *Keeper) forkOne(spec Spec) (*Process, error) {
	attributes := syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   spec.Env,
		Files: []uintptr{uintptr(spec.Stdin), uintptr(spec.Stdout), uintptr(spec.Stderr)},
		Sys:   systemAttributes(),
	}
	attributes.Sys.Setctty = spec.Terminal
	if spec.Adapt != nil {
		spec.Adapt(attributes.Sys)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	pid, err := syscall.ForkExec(spec.Path, spec.Argv, &attributes)
	if err != nil {
		return nil, err
	}
	process := &Process{PID: pid, marker: spec.Marker, exited: spec.Exited, done: make(chan struct{})}
	k.processes[pid] = process
	if spec.Marker != "" {
		k.runs[pid] = process
		k.sayRun()
	} else {
		k.commands[pid] = true
	}
	return process, nil
}

// reap reaps all children that have ended, including those not started here, and reports whether no child is left. The
// caller holds mu.
func (k *Keeper) reap() (childless bool) {
	for {
		var status syscall.WaitStatus
		var usage syscall.Rusage
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, &usage)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return true // ECHILD
		}
		if pid <= 0 {
			return false
		}
		process := k.processes[pid]
		if process == nil {
			continue
		}
		delete(k.processes, pid)
		process.status, process.usage = status, usage
		close(process.done)
		if process.exited != nil {
			process.exited()
		}
		if process.marker == "" && k.groups != nil {
			k.groups.Remove(pid)
		}
	}
}

// EndRun ends what a run has left: its group, and all processes that descend from it (TERM, grace, KILL until they are
// gone). The process itself must have ended. left is how many there were at first. With the host's last run, processes
// that belong to no run end as well, because they changed their session and environment: untold is their number.
//
// Where processes cannot be listed, the group counts as one.
func (k *Keeper) EndRun(run *Process, grace time.Duration) (left, untold int) {
	find := func() []int { return k.leftOf(run) }
	// What is ending anyway, by the group's signal or a broken pipe, was not left behind.
	for pause := 2 * firstPause; pause <= 16*firstPause; pause *= 2 {
		if len(find()) == 0 {
			break
		}
		time.Sleep(pause)
	}
	left = k.endUntil(nil, grace, find)
	k.mu.Lock()
	delete(k.runs, run.PID)
	last := len(k.runs) == 0 && !k.reap() // exactly one of several that end at the same time
	k.mu.Unlock()
	if last {
		untold = k.endUntil(nil, grace, k.leftOfNone)
	}
	if k.groups != nil {
		k.groups.Remove(run.PID)
	}
	return left, untold
}

// EndGroup ends a group: TERM, grace, KILL; KILL at once when ctx ends.
func (k *Keeper) EndGroup(ctx context.Context, group int, grace time.Duration) {
	k.endUntil(ctx.Done(), grace, func() []int { return groupAlone(group) })
}

const (
	firstPause = time.Millisecond
	longPause  = 100 * time.Millisecond
	killFor    = 5 * time.Second
)

// endUntil ends what find returns, and returns how many there were at first.
func (k *Keeper) endUntil(hurry <-chan struct{}, grace time.Duration, find func() []int) int {
	return End(func() []int {
		k.mu.Lock()
		k.reap()
		k.mu.Unlock()
		return find()
	}, Ending{grace, killFor, firstPause, hurry})
}

// Ending configures End.
type Ending struct {
	Grace   time.Duration
	KillFor time.Duration   // how long KILL is repeated: a process inside the kernel ends only when it leaves it
	Pause   time.Duration   // before the second look
	Hurry   <-chan struct{} // closed to end the grace time early; may be nil
}

// End ends what find returns (negative numbers are groups), by TERM, and by KILL after the grace time, until it returns
// nothing. It returns how many there were at first.
func End(find func() []int, how Ending) int {
	found := find()
	first := len(found)
	told := map[int]bool{}
	began, killing := time.Now(), false
	for pause := how.Pause; len(found) > 0 && time.Since(began) < how.Grace+how.KillFor; pause = min(2*pause, longPause) {
		if !killing && time.Since(began) >= how.Grace {
			killing, pause = true, how.Pause
		}
		for _, pid := range found {
			switch {
			case killing:
				_ = syscall.Kill(pid, syscall.SIGKILL)
			case !told[pid]: // a process may just have been started
				told[pid] = true
				_ = syscall.Kill(pid, syscall.SIGTERM)
				_ = syscall.Kill(pid, syscall.SIGCONT) // what was stopped could not act on it
			}
		}
		select {
		case <-time.After(pause):
		case <-how.Hurry:
			how.Grace, how.Hurry = time.Since(began), nil
		}
		found = find()
	}
	return first
}

// groupAlone returns the group where processes cannot be listed.
func groupAlone(group int) []int {
	if err := syscall.Kill(-group, 0); err != nil && err != syscall.EPERM {
		return nil
	}
	return []int{-group}
}
