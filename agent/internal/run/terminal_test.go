package run

import (
	"io"
	"os"
	"strings"
	"testing"
)

// terminalTrial is a run with a terminal, and what types at it.
func terminalTrial(t *testing.T) (*trial, io.Writer) {
	if _, err := os.Stat("/dev/ptmx"); err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	r := newTrial(t)
	typed, keys := io.Pipe()
	r.stdin = typed
	t.Cleanup(func() { keys.Close() })
	r.head["terminal"] = map[string]int{"rows": 31, "columns": 87}
	r.head["cut_lines"] = false
	return r, keys
}

func TestATerminalIsItsOwnAndHasTheSizeThatWasGiven(t *testing.T) {
	r, _ := terminalTrial(t)
	r.sh(`test -t 0 && test -t 1 && test -t 2 && stty size && echo told >&2 && : >/dev/tty; exit 7`)
	exited := r.clean()
	if r.text(1) != "31 87\r\ntold\r\n" || exited["status"] != 7.0 || exited["left"] != 0.0 {
		t.Errorf("it said %q, exited %v", r.text(1), exited)
	}
	if !r.ended[1] || !r.ended[2] {
		t.Errorf("lanes ended: %v", r.ended)
	}
}

func TestKeysGoToTheProgramAtATerminal(t *testing.T) {
	r, keys := terminalTrial(t)
	r.sh(`trap 'echo interrupted; come=1' INT; echo ready; until [ "$come" ]; do sleep 0.05; done
		read line; echo "got $line"; cat; echo the end`)
	r.until(t, func() bool { return strings.Contains(r.text(1), "ready") })
	for _, step := range [][2]string{{"\x03", "interrupted"}, {"words\r", "got words"}, {"\x04", "the end"}} {
		if _, err := io.WriteString(keys, step[0]); err != nil {
			t.Fatal(err)
		}
		r.until(t, func() bool { return strings.Contains(r.text(1), step[1]) })
	}
	if exited := r.clean(); exited["status"] != 0.0 {
		t.Errorf("exited %v", exited)
	}
}

func TestATerminalChangesItsSize(t *testing.T) {
	r, _ := terminalTrial(t)
	r.sh(`trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done`)
	r.until(t, func() bool { return strings.Contains(r.text(1), "ready") })
	r.words <- `{"window":{"rows":50,"columns":132}}`
	r.until(t, func() bool { return strings.Contains(r.text(1), "50 132") })
	r.clean()
}

func TestAShellAtATerminalEndsWhenItIsStopped(t *testing.T) {
	r, _ := terminalTrial(t)
	r.head["grace_s"] = 20
	r.start([]string{"/bin/sh", "-i"}, "PS1=ready ")
	r.until(t, func() bool { return strings.Contains(r.text(1), "ready") })
	r.words <- `{"stop":"enough"}`
	if exited := r.clean(); exited["reason"] != "stop" || exited["signal"] == 9.0 {
		t.Errorf("exited %v", exited)
	}
}

func TestAWindowWithoutATerminalIsNothing(t *testing.T) {
	r := newTrial(t)
	r.sh(`trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
	r.until(t, func() bool { return strings.Contains(r.text(1), "ready") })
	r.words <- `{"window":{"rows":50,"columns":132}}`
	r.words <- `{"stop":"enough"}`
	if exited := r.clean(); exited["status"] != 5.0 {
		t.Errorf("exited %v", exited)
	}
}
