package process

import (
	"reflect"
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

// A sampler that has looked all along knows what one knows that looks for the first time.
func TestASamplerMissesNoChange(t *testing.T) {
	linux(t)
	old := keeper.NewSampler()
	seen, anew := map[string]Use{}, map[string]Use{}
	p, _ := sh(t, "sleep 0.2; exec 7</dev/null 8</dev/null; (sleep 606 >/dev/null &); (sleep 0.2; exec sleep 606 9</dev/null >/dev/null) & "+
		"sleep 0.2; while :; do :; done & echo $!; sleep 0.2; kill -STOP $!; sleep 606")
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		old.Uses(seen, nil)
	}
	keeper.NewSampler().Uses(anew, nil)
	if len(seen) != 1 || !reflect.DeepEqual(seen, anew) {
		t.Errorf("%v, anew %v", seen, anew)
	}
	for _, use := range seen {
		// Shells, of which one runs for a while and is stopped, and three that sleep.
		if use.Threads != 5 || use.Descriptors < 5*3+2 || use.CPUS <= 0 {
			t.Errorf("%v", use)
		}
	}
	p.Signal(syscall.SIGKILL)
	wait(t, p)
	keeper.EndRun(p, 0)
}
