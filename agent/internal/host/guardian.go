package host

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
)

const (
	firstConnection = 3 // the descriptors that guardian and agent are started with
	groupsPipe      = 4

	graceTime = 2 * time.Second
	killTime  = 10 * time.Second
	lookTime  = 20 * time.Millisecond
)

// guardian holds the process groups that the agent has announced.
type guardian struct {
	mu     sync.Mutex
	groups map[int]bool
}

// Guard is the program `serve BASE SESSION`: it starts the agent, and when that ends, it ends every announced group and
// every process that was reparented to it.
func Guard(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: agent serve BASE SESSION")
	}
	process.BecomeSubreaper()
	_ = os.Chdir("/") // keep no directory busy
	program, err := self()
	if err != nil {
		return err
	}
	told, telling, err := os.Pipe()
	if err != nil {
		return err
	}
	agent, err := syscall.ForkExec(program, []string{program, "agent", args[0], args[1]}, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2, firstConnection, telling.Fd()},
	})
	if err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	syscall.Close(firstConnection)
	telling.Close()
	g := &guardian{groups: map[int]bool{}}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		g.listen(told)
	}()
	status, err := waitFor(agent)
	if err != nil {
		return fmt.Errorf("waiting for the agent: %w", err)
	}
	if status.ExitStatus() != 0 {
		log.Printf("the agent ended: exit status %d, signal %d", status.ExitStatus(), status.Signal())
		agents := base.Directory(args[0]).Agents()
		os.Remove(filepath.Join(agents, socketName(args[1])))
		os.Remove(filepath.Join(agents, bootName(args[1])))
	}
	select {
	case <-heard:
	case <-time.After(time.Second): // another process holds the pipe
	}
	g.end()
	return nil
}

// waitFor waits for one child, and reaps all others.
func waitFor(child int) (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if pid == child || (err != nil && err != syscall.EINTR) {
			return status, err
		}
	}
}

// listen takes lines +GROUP and -GROUP.
func (g *guardian) listen(told io.Reader) {
	lines := bufio.NewScanner(told)
	for lines.Scan() {
		line := lines.Text()
		if len(line) < 2 {
			continue
		}
		group, err := strconv.Atoi(line[1:])
		if err != nil || group <= 1 {
			continue
		}
		g.mu.Lock()
		if line[0] == '+' {
			g.groups[group] = true
		} else {
			delete(g.groups, group)
		}
		g.mu.Unlock()
	}
}

// end ends everything that is left. Children are reparented to us while their parents end.
func (g *guardian) end() {
	process.End(func() []int {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		return append(g.alive(), process.Children()...)
	}, process.Ending{Grace: graceTime, KillFor: killTime, Pause: lookTime})
}

// alive returns the groups that still exist, as negative numbers. A group that is gone is forgotten, since its number
// may be reused.
func (g *guardian) alive() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	var found []int
	for group := range g.groups {
		if syscall.Kill(-group, 0) == syscall.ESRCH {
			delete(g.groups, group)
		} else {
			found = append(found, -group)
		}
	}
	return found
}

// teller is the agent's end of the pipe.
type teller struct {
	mu   sync.Mutex
	pipe *os.File
}

func (t *teller) Add(group int)    { t.tell('+', group) }
func (t *teller) Remove(group int) { t.tell('-', group) }

// tell gives up if the guardian is gone or has not read for long: the agent goes on without it.
func (t *teller) tell(sign byte, group int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pipe == nil {
		return
	}
	_ = t.pipe.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(t.pipe, "%c%d\n", sign, group); err != nil {
		log.Printf("the guardian is not told of groups any more: %v", err)
		t.pipe.Close()
		t.pipe = nil
	}
}
