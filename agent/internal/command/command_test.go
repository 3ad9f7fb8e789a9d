package command

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wiretest"
)

// keeper is the only one of this process, as it takes all children.
var keeper = process.NewKeeper(nil)

func serve(t *testing.T) (*Service, *wiretest.Client) {
	service := &Service{Processes: keeper, Home: t.TempDir(), Environ: []string{"PATH=/usr/bin:/bin", "LOGIN=yes"}}
	return service, wiretest.New(t, service.Exec)
}

func shell(client *wiretest.Client, script string, variables ...string) *wiretest.Stream {
	return execute(client, "", append([]string{"sh", "-c", script}, variables...), 3)
}

func execute(client *wiretest.Client, cwd string, words []string, argc int) *wiretest.Stream {
	return client.Open(map[string]any{"verb": "exec", "argc": argc, "cwd": cwd, "login_env": true}, words...)
}

func begun(t *testing.T, stream *wiretest.Stream) (pid int) {
	t.Helper()
	said, _ := stream.Receive()["started"].(map[string]any)
	if said == nil {
		t.Fatalf("failed by %v", stream.Failure())
	}
	return int(said["pid"].(float64))
}

func exited(t *testing.T, stream *wiretest.Stream, status, signal float64) {
	t.Helper()
	said, _ := stream.Receive()["exited"].(map[string]any)
	if said == nil || said["status"] != status || said["signal"] != signal {
		t.Errorf("exited %v, failed by %v", said, stream.Failure())
	}
}

func TestStreamsAndStatus(t *testing.T) {
	service, client := serve(t)
	stream := shell(client, `cat; echo "$LOGIN $MORE" >&2; pwd; exit 7`, "MORE=some", "LOGIN=no")
	begun(t, stream)
	long := strings.Repeat("line\n", 200_000)
	go func() {
		stream.Write(0, []byte(long))
		stream.End(0)
	}()
	if got, ended := stream.ReadAll(1); got != long+service.Home+"\n" || !ended {
		t.Errorf("%d bytes, %v", len(got), ended)
	}
	if got, _ := stream.ReadAll(2); got != "no some\n" {
		t.Errorf("%q", got)
	}
	exited(t, stream, 7, 0)
	if failure := stream.Failure(); failure != nil {
		t.Errorf("failed by %v", failure)
	}
}

func TestWhatDoesNotReadItsStdin(t *testing.T) {
	_, client := serve(t)
	stream := shell(client, `exec <&-; echo ready; while [ ! -e go ]; do sleep 0.01; done; exec true`)
	begun(t, stream)
	stream.Read(1, 6)
	stream.Write(0, make([]byte, 2<<20)) // would never be credited if it were not read
	go stream.Send(map[string]any{"signal": 15})
	exited(t, stream, 143, 15)
	stream.Failure()
}

func TestSignal(t *testing.T) {
	_, client := serve(t)
	stream := shell(client, `trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.01; done`)
	begun(t, stream)
	stream.Read(1, 6)
	stream.Send(map[string]any{"signal": int(syscall.SIGUSR1)})
	exited(t, stream, 3, 0)
	if got, _ := stream.ReadAll(1); got != "got\n" {
		t.Errorf("%q", got)
	}
}

func TestCloseEndsTheGroup(t *testing.T) {
	_, client := serve(t)
	stream := shell(client, `sleep 1000 & echo ready; trap 'exit 0' TERM; while :; do sleep 0.01; done`)
	pid := begun(t, stream)
	stream.Read(1, 6)
	stream.Close()
	stream.Failure()
	if err := syscall.Kill(-pid, 0); err == nil {
		t.Error("the group goes on")
	}
}

func TestWhatIsLeftHoldsTheStreams(t *testing.T) {
	service, client := serve(t)
	stream := shell(client, `(while [ ! -e go ]; do sleep 0.01; done; echo late) & echo early; exit 5`)
	begun(t, stream)
	exited(t, stream, 5, 0)
	if got := stream.Read(1, 6); got != "early\n" {
		t.Errorf("%q", got)
	}
	os.WriteFile(filepath.Join(service.Home, "go"), nil, 0o600)
	if got, ended := stream.ReadAll(1); got != "late\n" || !ended {
		t.Errorf("%q, %v", got, ended)
	}
	if failure := stream.Failure(); failure != nil {
		t.Errorf("failed by %v", failure)
	}
}

func TestWhatCannotBeStarted(t *testing.T) {
	service, client := serve(t)
	os.WriteFile(filepath.Join(service.Home, "plain"), []byte("#!/bin/sh\n"), 0o600)
	os.WriteFile(filepath.Join(service.Home, "odd"), []byte("\x7fELF\x00not"), 0o700)
	os.WriteFile(filepath.Join(service.Home, "gone"), []byte("#!/no/interpreter\n"), 0o700)
	for program, problem := range map[string]string{
		"no-such-program": "nothing", "./none": "nothing", "/tmp": "directory", "./plain": "not-executable", "./odd": "format:unknown",
		"./gone": "interpreter:/no/interpreter",
	} {
		failure := execute(client, "", []string{program}, 1).Failure()
		if failure["error"] != "program" || failure["problem"] != problem || !strings.HasSuffix(failure["program"].(string), filepath.Base(program)) {
			t.Errorf("%s: failed by %v", program, failure)
		}
	}
	os.WriteFile(filepath.Join(service.Home, "script"), []byte("echo by sh"), 0o700)
	if got, _ := execute(client, "", []string{"./script"}, 1).ReadAll(1); got != "by sh\n" {
		t.Errorf("%q", got)
	}
	if failure := execute(client, "/no/such/place", []string{"true"}, 1).Failure(); failure["error"] != "program" {
		t.Errorf("failed by %v", failure)
	}
	if failure := execute(client, "", []string{"true"}, 2).Failure(); failure["error"] != "breach" {
		t.Errorf("failed by %v", failure)
	}
	os.Mkdir(filepath.Join(service.Home, "below"), 0o700)
	stream := execute(client, "below", []string{"pwd"}, 1)
	if got, _ := stream.ReadAll(1); got != filepath.Join(service.Home, "below")+"\n" {
		t.Errorf("%q", got)
	}
}

func TestOutput(t *testing.T) {
	service, _ := serve(t)
	done, err := service.Output(context.Background(), 10, "sh", "-c", "echo out; echo err >&2; exit 4")
	if done != (Finished{4, "out\n", "err\n"}) || err != nil {
		t.Errorf("%v, %v", done, err)
	}
	// It says too much, and what it left holds its streams.
	done, err = service.Output(context.Background(), 10, "sh", "-c", "sleep 1000 & echo $! >pid; yes | head -c 100000")
	if done.Status != 0 || len(done.Stdout) != 10 || err != nil {
		t.Errorf("%v, %v", done, err)
	}
	text, _ := os.ReadFile(filepath.Join(service.Home, "pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	syscall.Kill(pid, syscall.SIGKILL)
	late, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := service.Output(late, 10, "sleep", "1000"); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}
