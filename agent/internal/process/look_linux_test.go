package process

import (
	"syscall"
	"testing"
	"time"
)

func TestWhatHidesIsFoundByAKernelWithoutListsOfChildren(t *testing.T) {
	childrenFile = "none"
	defer func() { childrenFile = "children" }()
	TestWhatHidesIsFound(t)
}

// A process whose parents end just when it is looked for comes to this process, whose children have been read by then.
func TestAChainThatEndsWhileItIsLookedAt(t *testing.T) {
	linux(t)
	missed := 0
	for i := 0; i < 50; i++ {
		p, said := sh(t, "(((((sleep 606 >/dev/null & echo $!; :); :); :); :); :)")
		pid := numbers(t, said, 1)[0]
		for look := 0; look < 20; look++ {
			shown := false
			for _, each := range keeper.below(nil) {
				shown = shown || each.pid == pid
			}
			if !shown {
				missed++
			}
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		wait(t, p)
		keeper.EndRun(p, time.Second)
	}
	if missed > 0 {
		t.Errorf("%d of 1,000 looks missed it", missed)
	}
}
