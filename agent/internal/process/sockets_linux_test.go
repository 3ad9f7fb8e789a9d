package process

import (
	"os"
	"sync"
	"syscall"
	"testing"
)

func TestASocketIsKnownByItsRun(t *testing.T) {
	var runs [3]*Process
	var inodes [3]uint64
	for i, id := range []string{"socket-1", "socket-2", "socket-3"} {
		ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(ends[0])
		var info syscall.Stat_t
		if err := syscall.Fstat(ends[1], &info); err != nil {
			t.Fatal(err)
		}
		inodes[i] = info.Ino
		// A child of the run's process has it as well.
		runs[i], err = keeper.Start(Spec{
			Path: "/bin/sh", Argv: []string{"sh", "-c", "sleep 60; :"}, Env: append(os.Environ(), Marker+"="+id+":secret"),
			Marker: id + ":secret", Stdin: ends[1], Stdout: null, Stderr: 2,
		})
		syscall.Close(ends[1])
		if err != nil {
			t.Fatal(err)
		}
	}
	var asking sync.WaitGroup
	for i := 0; i < 90; i++ {
		asking.Add(1)
		go func(i int) {
			defer asking.Done()
			if got, want := keeper.RunOfSocket(inodes[i%3]), "socket-"+string(rune('1'+i%3)); got != want {
				t.Errorf("%q, not %q", got, want)
			}
		}(i)
	}
	asking.Wait()
	for i, run := range runs {
		run.Signal(syscall.SIGKILL)
		wait(t, run)
		keeper.EndRun(run, 0)
		if got := keeper.RunOfSocket(inodes[i]); got != "" {
			t.Errorf("%q has it still", got)
		}
	}
}
