package samples

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/command"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wiretest"
)

// keeper is the only one of this process, as it takes all children.
var keeper = process.NewKeeper(nil)

func service() *Service {
	return &Service{Processes: keeper, Commands: &command.Service{Processes: keeper, Environ: os.Environ(), Home: "/"}}
}

func begin(t testing.TB, id, script string) {
	t.Helper()
	null, err := syscall.Open(os.DevNull, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(null)
	started, err := keeper.Start(process.Spec{
		Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Dir: t.TempDir(),
		Env: append(os.Environ(), process.Marker+"="+id+":secret"), Marker: id + ":secret",
		Stdin: null, Stdout: null, Stderr: null,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		started.Signal(syscall.SIGKILL)
		<-started.Done()
		keeper.EndRun(started, 0)
	})
}

type line struct {
	NS   int64
	Host map[string]float64
	Runs map[string][6]float64
}

// next reads the stream's next sample; rest is what was read beyond it.
func next(t *testing.T, stream *wiretest.Stream, rest *string) line {
	t.Helper()
	for !strings.Contains(*rest, "\n") {
		*rest += stream.Read(0, 1)
	}
	text, more, _ := strings.Cut(*rest, "\n")
	*rest = more
	var found line
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		t.Fatal(err, text)
	}
	return found
}

func TestSamples(t *testing.T) {
	stream := wiretest.New(t, service().Watch).Open(map[string]any{"verb": "watch", "every_s": 0.1})
	begin(t, "busy", "exec 7</dev/null 8</dev/null; sh -c 'while :; do :; done' & while :; do :; done")
	begin(t, "idle", "(setsid sleep 60 &); sleep 60; :")
	rest := ""
	for began := time.Now(); ; {
		seen := next(t, stream, &rest)
		busy, idle := seen.Runs["busy"], seen.Runs["idle"]
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%v", seen)
		}
		if busy[0] < 0.2 || busy[1] < 1<<18 || idle[1] < 1<<18 || len(seen.Runs) != 2 {
			continue // it has just begun
		}
		if idle[0] >= busy[0] {
			t.Errorf("CPU %v and %v", busy, idle)
		}
		// Two shells with five descriptors each; a shell, a sleep, and one that nobody waits for, with three.
		if runtime.GOOS == "linux" && (busy[2] != 2 || busy[3] < 10 || idle[2] != 3 || idle[3] < 9) {
			t.Errorf("threads and descriptors %v and %v", busy, idle)
		}
		if time.Since(time.Unix(0, seen.NS)).Abs() > time.Minute {
			t.Errorf("at %d", seen.NS)
		}
		if runtime.GOOS == "linux" && (seen.Host["cpu_s"] <= 0 || seen.Host["available_bytes"] < 1<<20) {
			t.Errorf("host %v", seen.Host)
		}
		return
	}
}

func TestLooks(t *testing.T) {
	stream := wiretest.New(t, service().Watch).Open(map[string]any{"verb": "watch", "every_s": 60})
	stream.Send(map[string]any{"clock": true})
	stream.Send(map[string]any{"state": true})
	clock := stream.Receive()["clock"].(map[string]any)
	if time.Since(time.Unix(0, int64(clock["ns"].(float64)))).Abs() > time.Minute {
		t.Error(clock)
	}
	if state := stream.Receive()["state"].(map[string]any); state["load"] == nil {
		t.Error(state)
	}
}

func TestNothingIsSampledWithoutRuns(t *testing.T) {
	lane := make(chan []byte)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		service().sample(ctx, channel(lane), 20*time.Millisecond)
	}()
	select {
	case text := <-lane:
		t.Errorf("%s", text)
	case <-time.After(200 * time.Millisecond):
	}
	begin(t, "one", "sleep 60")
	if text := <-lane; !strings.Contains(string(text), `"one":[`) {
		t.Errorf("%s", text)
	}
	cancel()
	for {
		select {
		case <-lane:
		case <-ended:
			return
		}
	}
}

type channel chan []byte

func (c channel) Write(text []byte) (int, error) {
	c <- append([]byte(nil), text...)
	return len(text), nil
}

func TestNonsense(t *testing.T) {
	for _, every := range []any{0, -1, 1e9, "x", nil} {
		failure := wiretest.New(t, service().Watch).Open(map[string]any{"verb": "watch", "every_s": every}).Failure()
		if failure["error"] != "breach" && failure["error"] != "failed" {
			t.Errorf("%v: %v", every, failure)
		}
	}
}
