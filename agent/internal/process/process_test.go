package process

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// list is a guardian's.
type list struct {
	mu  sync.Mutex
	now map[int]bool
}

func (l *list) Add(group int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now[group] = true
}

func (l *list) Remove(group int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.now, group)
}

func (l *list) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.now)
}

var (
	guarded = &list{now: map[int]bool{}}
	keeper  *Keeper
	null    int
)

func TestMain(m *testing.M) {
	keeper = NewKeeper(guarded)
	null, _ = syscall.Open(os.DevNull, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	os.Exit(m.Run())
}

var count int

// sh starts a script as a run of its own, and returns what it says, for reading.
func sh(t *testing.T, script string) (*Process, *os.File) {
	t.Helper()
	count++
	return begin(t, script, fmt.Sprintf("run-%d:secret", count))
}

func begin(t *testing.T, script, marker string) (*Process, *os.File) {
	t.Helper()
	var ends [2]int
	if err := syscall.Pipe(ends[:]); err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(ends[0])
	syscall.CloseOnExec(ends[1])
	defer syscall.Close(ends[1])
	reader := os.NewFile(uintptr(ends[0]), "pipe")
	t.Cleanup(func() { reader.Close() })
	env := os.Environ()
	if marker != "" {
		env = append(env, Marker+"="+marker)
	}
	process, err := keeper.Start(Spec{
		Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: env, Marker: marker,
		Stdin: null, Stdout: ends[1], Stderr: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	return process, reader
}

func wait(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func linux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("this system shows no processes")
	}
}

func TestEachEndIsTold(t *testing.T) {
	var all []*Process
	for i := 0; i < 50; i++ { // most end before Start returns
		p, _ := sh(t, fmt.Sprintf("exit %d", i))
		all = append(all, p)
	}
	for i, p := range all {
		wait(t, p)
		if p.Status().ExitStatus() != i {
			t.Errorf("%d: status %v", i, p.Status())
		}
		if left, untold := keeper.EndRun(p, time.Second); left+untold > 0 {
			t.Errorf("%d: %d left, %d untold", i, left, untold)
		}
		if p.MaxRSS() < 100<<10 || p.MaxRSS() > 1<<30 {
			t.Errorf("%d bytes", p.MaxRSS())
		}
	}
	if guarded.size() != 0 {
		t.Errorf("%d groups are still guarded", guarded.size())
	}
}

func TestWhatCannotBeStartedIsAnError(t *testing.T) {
	_, err := keeper.Start(Spec{Path: "/no/such/program", Argv: []string{"x"}, Stdin: null, Stdout: null, Stderr: null})
	if err != syscall.ENOENT || guarded.size() != 0 {
		t.Errorf("%v", err)
	}
}

// pids reads numbers from a script, one a line, until it closes its stdout or n have come.
func numbers(t *testing.T, from io.Reader, n int) []int {
	t.Helper()
	var found []int
	var text []byte
	one := make([]byte, 1)
	for len(found) < n {
		if _, err := from.Read(one); err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		if one[0] != '\n' {
			text = append(text, one[0])
			continue
		}
		number, err := strconv.Atoi(string(text))
		if err != nil {
			t.Fatal(err)
		}
		found, text = append(found, number), nil
	}
	return found
}

func gone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("%d is there", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func TestWhatHidesIsFound(t *testing.T) {
	linux(t)
	for name, each := range map[string]struct {
		script       string
		left, untold int
	}{
		"group":             {"sleep 603 >/dev/null & echo $!", 1, 0},
		"session":           {"setsid sh -c 'echo $$; exec sleep 603 >/dev/null' & sleep 0.2", 1, 0},
		"ignores TERM":      {"(trap '' TERM; exec sleep 603 >/dev/null) & echo $!; sleep 0.1", 1, 0},
		"stopped":           {"sleep 603 >/dev/null & echo $!; kill -STOP $!", 1, 0},
		"no environment":    {"env -i setsid sh -c 'echo $$; exec sleep 603 >/dev/null' & sleep 0.2", 0, 1},
		"overwritten":       {`setsid perl -e '$0 = "x" x 100000; $| = 1; print "$$\n"; close STDOUT; sleep 603' & sleep 0.5`, 0, 1},
		"two generations":   {"env -i setsid sh -c 'echo $$; sleep 603 >/dev/null; exit' & sleep 0.2", 0, 2},
		"large environment": {"X=$(head -c 100000 /dev/zero | tr '\\0' x) setsid sh -c 'echo $$; exec sleep 603 >/dev/null' & sleep 0.2", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("perl"); err != nil && strings.Contains(each.script, "perl") {
				t.Skip("needs perl")
			}
			p, said := sh(t, each.script)
			pids := numbers(t, said, 1)
			wait(t, p)
			left, untold := keeper.EndRun(p, 200*time.Millisecond)
			if left != each.left || untold != each.untold {
				t.Errorf("%d left, %d untold", left, untold)
			}
			gone(t, pids...)
		})
	}
	if guarded.size() != 0 {
		t.Errorf("%d groups are still guarded", guarded.size())
	}
}

func TestAnOrphanOfNoneEndsWithTheLastRun(t *testing.T) {
	linux(t)
	first, said := sh(t, "env -i setsid sh -c 'echo $$; exec sleep 604 >/dev/null' & sleep 0.2")
	second, _ := sh(t, "sleep 60")
	third, _ := sh(t, "setsid sleep 604 >/dev/null & sleep 0.1")
	pids := numbers(t, said, 1)
	wait(t, first)
	if left, untold := keeper.EndRun(first, time.Second); left != 0 || untold != 0 {
		t.Errorf("%d left, %d untold", left, untold)
	}
	if syscall.Kill(pids[0], 0) != nil {
		t.Error("it was ended though it may be the second's")
	}
	wait(t, third)
	second.Signal(syscall.SIGTERM)
	wait(t, second)
	var together sync.WaitGroup
	lefts, untolds := make([]int, 2), make([]int, 2)
	for i, p := range []*Process{second, third} {
		together.Add(1)
		go func(i int, p *Process) {
			defer together.Done()
			lefts[i], untolds[i] = keeper.EndRun(p, time.Second)
		}(i, p)
	}
	together.Wait()
	if lefts[0] != 0 || lefts[1] != 1 || untolds[0]+untolds[1] != 1 {
		t.Errorf("left %v, untold %v", lefts, untolds)
	}
	gone(t, pids...)
}

func TestWhatACommandLeavesIsNoRuns(t *testing.T) {
	linux(t)
	command, said := begin(t, "sleep 605 >/dev/null & echo $!", "")
	pids := numbers(t, said, 1)
	wait(t, command)
	run, _ := sh(t, "exit 0")
	wait(t, run)
	if left, untold := keeper.EndRun(run, time.Second); left+untold != 0 {
		t.Errorf("%d left, %d untold", left, untold)
	}
	if syscall.Kill(pids[0], 0) != nil {
		t.Error("it was ended")
	}
	keeper.EndGroup(context.Background(), command.PID, time.Second)
	gone(t, pids...)
}

func TestEndGroupKillsAfterTheGraceTimeOrAtOnce(t *testing.T) {
	for _, hurry := range []bool{false, true} {
		p, said := begin(t, "trap '' TERM; echo $$; while :; do sleep 0.05; done", "")
		numbers(t, said, 1)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		grace := 100 * time.Millisecond
		if hurry {
			cancel()
			grace = time.Minute
		}
		keeper.EndGroup(ctx, p.PID, grace)
		wait(t, p)
		if p.Status().Signal() != syscall.SIGKILL {
			t.Errorf("%v", p.Status())
		}
	}
}

func TestMarkedFindsWhatItsAgentForgot(t *testing.T) {
	linux(t)
	p, said := begin(t, "setsid sh -c 'echo $$; exec sleep 606 >/dev/null' & sleep 0.2; echo $$; exec sleep 606", "lost:secret")
	pids := numbers(t, said, 2)
	found := Marked("lost:secret")
	if len(found) != 2 || len(Marked("los")) != 0 || len(Marked("")) != 0 {
		t.Errorf("%v of %v", found, pids)
	}
	if members := Members(p.PID); len(members) != 1 || members[0] != p.PID {
		t.Errorf("%v", members)
	}
	p.Signal(syscall.SIGKILL)
	wait(t, p)
	keeper.EndRun(p, time.Second)
	gone(t, pids...)
}

func TestManyAtOnce(t *testing.T) {
	linux(t)
	var all sync.WaitGroup
	for i := 0; i < 60; i++ {
		p, _ := sh(t, "setsid sleep 607 >/dev/null & sleep 0.1")
		all.Add(1)
		go func(i int) {
			defer all.Done()
			<-p.Done()
			if left, untold := keeper.EndRun(p, time.Second); left != 1 || untold != 0 {
				t.Errorf("%d: %d left, %d untold", i, left, untold)
			}
		}(i)
	}
	all.Wait()
}

func TestNoThreadForEach(t *testing.T) {
	linux(t)
	threads := func() int {
		names, _ := os.ReadDir("/proc/self/task")
		return len(names)
	}
	before := threads()
	var all []*Process
	for i := 0; i < 100; i++ {
		p, _ := sh(t, "exec sleep 60")
		all = append(all, p)
	}
	if now := threads(); now > before+4 {
		t.Errorf("%d threads became %d", before, now)
	}
	for _, p := range all {
		p.Signal(syscall.SIGTERM)
		wait(t, p)
		keeper.EndRun(p, time.Second)
	}
}

func TestNothingIgnoredOrBlockedReachesAProgram(t *testing.T) {
	linux(t)
	p, said := sh(t, "grep -E '^Sig(Blk|Ign)' /proc/self/status")
	text, err := io.ReadAll(said)
	wait(t, p)
	keeper.EndRun(p, time.Second)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if err != nil || len(lines) != 2 {
		t.Fatalf("%s", text)
	}
	for _, line := range lines {
		mask, err := strconv.ParseUint(strings.Fields(line)[1], 16, 64)
		if err != nil || mask&(1<<31-1) != 0 { // the first of those behind are the C library's own
			t.Errorf("%s", line)
		}
	}
}

func TestWhatPsSays(t *testing.T) {
	uses := usesIn("  10   1024   0:01.50\n 10 1024 01:00:00\n 20 1 1-00:00:01\nnonsense\n 30 x 0:00\n")
	if uses[10] != (Use{CPUS: 3601.5, RSSBytes: 2 << 20}) || uses[20] != (Use{CPUS: 86401, RSSBytes: 1024}) || len(uses) != 2 {
		t.Errorf("%v", uses)
	}
}
