package leftovers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/wire"
	"remote-runner/agent/internal/wiretest"
)

func serve(t *testing.T) (*Service, *wiretest.Client) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	service := &Service{Base: base.Directory(filepath.Join(home, "base")), Home: home}
	service.SendOutputs = func(_ context.Context, stream *wire.Stream, run base.Run) error {
		return stream.Send(map[string]any{"outputs": run.Outputs()})
	}
	return service, wiretest.New(t, wire.Verbs{"runs": service.Runs, "fetch": service.Fetch, "remove": service.Remove}.Serve)
}

func makeRun(t *testing.T, place base.Directory, id string, record base.Record) base.Run {
	t.Helper()
	run := place.Run(id)
	if err := os.MkdirAll(run.Outputs(), 0o700); err != nil {
		t.Fatal(err)
	}
	if record != nil {
		if err := os.WriteFile(run.Record(), record.Format(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return run
}

// application is a program that runs with a marker, in a group of its own. It ends with the test.
func application(t *testing.T, marker, script string) (pid int, ended <-chan struct{}) {
	t.Helper()
	command := exec.Command("sh", "-c", script)
	command.Env = append(os.Environ(), "REMOTE_RUNNER_INSTANCE="+marker)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	ready, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ready.Read(make([]byte, 1))
	done := make(chan struct{})
	go func() {
		command.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		<-done
	})
	return command.Process.Pid, done
}

const waits = "echo; while :; do sleep 0.01; done"

func recordOf(kind string, watcher, application int, marker string) base.Record {
	return base.Record{
		kind: fmt.Sprint(watcher), kind + "_start": base.StartTime(watcher), "boot": base.BootID(), "marker": marker,
		"application": fmt.Sprint(application), "artifact": "/nix/store/0123-thing",
	}
}

func list(client *wiretest.Client) map[string]map[string]any {
	stream := client.Open(map[string]any{"verb": "runs"})
	runs := map[string]map[string]any{}
	for said := stream.Receive(); said != nil; said = stream.Receive() {
		run := said["run"].(map[string]any)
		runs[run["id"].(string)] = run
	}
	return runs
}

func TestRuns(t *testing.T) {
	service, client := serve(t)
	if runs := list(client); len(runs) != 0 {
		t.Errorf("%v", runs)
	}
	pid, ended := application(t, "m:1", waits)
	watched := makeRun(t, service.Base, "watched", recordOf("agent", os.Getpid(), pid, "other"))
	makeRun(t, service.Base, "supervised", recordOf("supervisor", os.Getpid(), pid, "other"))
	marked := recordOf("agent", os.Getpid(), pid, "m:1")
	marked["agent_start"] = "1"
	makeRun(t, service.Base, "marked", marked)
	before := recordOf("agent", os.Getpid(), pid, "m:1")
	before["boot"] = "another"
	makeRun(t, service.Base, "before", before)
	over := recordOf("agent", os.Getpid(), pid, "m:1")
	over["exit"] = "0"
	long := makeRun(t, service.Base, "over", over)
	os.WriteFile(filepath.Join(long.Outputs(), "file"), make([]byte, 100_000), 0o600)
	makeRun(t, service.Base, "bare", nil)
	hourAgo := time.Now().Add(-time.Hour)
	os.Chtimes(watched.Record(), hourAgo, hourAgo)

	runs := list(client)
	for id, alive := range map[string]bool{
		"watched": true, "supervised": true, "marked": runtime.GOOS == "linux", "before": false, "over": false, "bare": false,
	} {
		if runs[id]["alive"] != alive || runs[id]["directory"] != string(service.Base.Run(id)) {
			t.Errorf("%s: %v", id, runs[id])
		}
	}
	record := runs["watched"]["record"].(map[string]any)
	if age := record["age"].(string); age < "3600" || age > "3660" || record["application"] != fmt.Sprint(pid) {
		t.Errorf("%v", record)
	}
	if record := runs["bare"]["record"].(map[string]any); len(record) != 0 {
		t.Errorf("%v", record)
	}
	if size := runs["over"]["size"].(float64); size < 100_000 || size > 200_000 {
		t.Errorf("a size of %v", size)
	}
	if used, err := service.Used(); err != nil || !used["0123-thing"] || len(used) != 1 {
		t.Errorf("%v, %v", used, err)
	}
	syscall.Kill(-pid, syscall.SIGKILL)
	<-ended
	if runs := list(client); runs["marked"]["alive"] != false {
		t.Errorf("%v", runs["marked"])
	}
}

func TestFetch(t *testing.T) {
	service, client := serve(t)
	run := makeRun(t, service.Base, "one", nil)
	if said := client.Open(map[string]any{"verb": "fetch", "id": "one"}).Receive(); said["outputs"] != run.Outputs() {
		t.Errorf("%v", said)
	}
	for _, id := range []string{"two", "", "..", "../runs/one"} {
		if failure := client.Open(map[string]any{"verb": "fetch", "id": id}).Failure(); failure["error"] != "unknown" {
			t.Errorf("%q: %v", id, failure)
		}
	}
}

func remove(t *testing.T, client *wiretest.Client, head map[string]any) (removed, alive, failed, unknown string) {
	t.Helper()
	head["verb"] = "remove"
	said := client.Open(head).Receive()
	text := func(key string) string {
		var names []string
		for _, name := range said[key].([]any) {
			names = append(names, filepath.Base(fmt.Sprint(name)))
		}
		return strings.Join(names, " ")
	}
	return text("removed"), text("alive"), text("failed"), text("unknown")
}

func TestRemove(t *testing.T) {
	service, client := serve(t)
	makeRun(t, service.Base, "watched", recordOf("agent", os.Getpid(), 0, "other"))
	old := makeRun(t, service.Base, "old", base.Record{"id": "old", "exit": "0"})
	makeRun(t, service.Base, "young", base.Record{"id": "young", "exit": "0"})
	os.Mkdir(filepath.Join(old.Outputs(), "shut"), 0o700)
	os.WriteFile(filepath.Join(old.Outputs(), "shut", "file"), nil, 0o400)
	os.Chmod(filepath.Join(old.Outputs(), "shut"), 0o500)
	hourAgo := time.Now().Add(-time.Hour)
	os.Chtimes(old.Record(), hourAgo, hourAgo)

	removed, alive, failed, unknown := remove(t, client, map[string]any{"ids": nil, "older_s": 1000})
	if removed != "old" || alive+failed+unknown != "" {
		t.Errorf("%q, %q, %q, %q", removed, alive, failed, unknown)
	}
	removed, alive, failed, unknown = remove(t, client, map[string]any{"ids": []string{"watched", "none"}, "older_s": nil})
	if alive != "watched" || unknown != "none" || removed+failed != "" {
		t.Errorf("%q, %q, %q, %q", removed, alive, failed, unknown)
	}
	if removed, _, _, _ := remove(t, client, map[string]any{"ids": []string{}}); removed != "" {
		t.Errorf("%q was removed", removed)
	}
	if removed, alive, _, _ = remove(t, client, map[string]any{"ids": nil}); removed != "young" || alive != "watched" {
		t.Errorf("%q, %q", removed, alive)
	}
}

func TestRemoveEndsWhatIsAlive(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("finds what is left by /proc")
	}
	service, client := serve(t)
	// The supervisor is one that ends when it is told, and its application one that does not.
	supervisor, supervisorEnded := application(t, "", waits)
	stubborn, stubbornEnded := application(t, "m:2", "trap '' TERM; "+waits)
	_, leftEnded := application(t, "m:2", waits) // not of the group
	makeRun(t, service.Base, "supervised", recordOf("supervisor", supervisor, stubborn, "m:2"))
	// This one's agent is gone.
	orphan, orphanEnded := application(t, "m:3", waits)
	record := recordOf("agent", os.Getpid(), orphan, "m:3")
	record["agent_start"] = "1"
	record["application_start"] = base.StartTime(orphan)
	makeRun(t, service.Base, "orphan", record)

	began := time.Now()
	removed, alive, failed, _ := remove(t, client, map[string]any{"ids": nil, "end_alive": true, "grace_s": 0.5})
	if removed != "orphan supervised" || alive+failed != "" {
		t.Errorf("%q, %q, %q", removed, alive, failed)
	}
	if spent := time.Since(began); spent < 500*time.Millisecond || spent > 8*time.Second {
		t.Errorf("took %v", spent)
	}
	for _, ended := range []<-chan struct{}{supervisorEnded, stubbornEnded, leftEnded, orphanEnded} {
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("something goes on")
		}
	}
}

func TestARunWhoseRecordIsNoneIsAliveAsLongAsItsProcesses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("finds what is left by /proc")
	}
	service, client := serve(t)
	_, first := application(t, "cut:secret", waits)
	_, second := application(t, "pipe:secret", waits)
	record := makeRun(t, service.Base, "cut", nil).Record()
	if err := os.WriteFile(record, []byte("id=cut\nagent=1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(makeRun(t, service.Base, "pipe", nil).Record(), 0o600); err != nil {
		t.Fatal(err)
	}
	makeRun(t, service.Base, "none", nil)
	removed, alive, failed, _ := remove(t, client, map[string]any{"ids": nil})
	if removed != "none" || alive != "cut pipe" || failed != "" {
		t.Errorf("%q, %q, %q", removed, alive, failed)
	}
	removed, alive, failed, _ = remove(t, client, map[string]any{"ids": nil, "end_alive": true, "grace_s": 0.5})
	if removed != "cut pipe" || alive+failed != "" {
		t.Errorf("%q, %q, %q", removed, alive, failed)
	}
	for _, ended := range []<-chan struct{}{first, second} {
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("something goes on")
		}
	}
}

func TestWhatCannotBeReadIsNotTakenForNothing(t *testing.T) {
	service, client := serve(t)
	run := makeRun(t, service.Base, "shut", nil)
	if err := os.Mkdir(run.Record(), 0o700); err != nil {
		t.Fatal(err)
	}
	makeRun(t, service.Base, "bare", nil)
	runs := list(client)
	if runs["shut"]["problem"] != "is no file" || runs["bare"]["problem"] != nil {
		t.Errorf("%v", runs)
	}
	if used, err := service.Used(); err == nil || !strings.Contains(err.Error(), run.Record()+" cannot be read: is no file") {
		t.Errorf("%v, %v", used, err)
	}
	removed, alive, failed, _ := remove(t, client, map[string]any{"ids": nil})
	if removed != "bare" || alive != "" || !strings.HasSuffix(failed, "shut its record cannot be read: is no file]") {
		t.Errorf("%q, %q, %q", removed, alive, failed)
	}
	if removed, _, failed, _ = remove(t, client, map[string]any{"ids": nil, "end_alive": true}); removed != "shut" || failed != "" {
		t.Errorf("%q, %q", removed, failed)
	}

	os.Remove(service.Base.Runs())
	os.Symlink("runs", service.Base.Runs())
	stream := client.Open(map[string]any{"verb": "runs"})
	why := fmt.Sprintf("[[%s %s]]", service.Base.Runs(), syscall.ELOOP)
	if said := stream.Receive(); fmt.Sprint(said["unread"]) != why {
		t.Errorf("%v", said)
	}
	if failure := client.Open(map[string]any{"verb": "fetch", "id": "gone"}).Failure(); failure["error"] != "unreadable" {
		t.Errorf("%v", failure)
	}
	if used, err := service.Used(); err == nil {
		t.Errorf("%v", used)
	}
	_, _, failed, unknown := remove(t, client, map[string]any{"ids": []string{"gone"}})
	if unknown != "" || !strings.Contains(failed, "cannot be read") {
		t.Errorf("%q, %q", failed, unknown)
	}
}

func TestARunThatIsAliveAndDoesNotTellItsArtifactKeepsAll(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("finds what is left by /proc")
	}
	service, _ := serve(t)
	pid, ended := application(t, "cut:secret", waits)
	os.WriteFile(makeRun(t, service.Base, "cut", nil).Record(), []byte("id=cut\nartif"), 0o600)
	if used, err := service.Used(); err == nil {
		t.Errorf("%v", used)
	}
	syscall.Kill(-pid, syscall.SIGKILL)
	<-ended
	used, err := service.Used()
	for began := time.Now(); err != nil && time.Since(began) < 5*time.Second; used, err = service.Used() {
		time.Sleep(10 * time.Millisecond) // its child ends a moment later
	}
	if err != nil || len(used) != 0 {
		t.Errorf("%v, %v", used, err)
	}
}

func TestPlaces(t *testing.T) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	usual := filepath.Join(home, ".cache", "remote-runner")
	os.MkdirAll(usual, 0o700)
	other := filepath.Join(home, "other")
	os.MkdirAll(other, 0o700)
	if found, unread := Places(base.Directory(other), home); len(found) != 1 || found[0] != base.Directory(other) || unread != nil {
		t.Errorf("%v, %v", found, unread)
	}
	found, unread := Places(base.Directory(usual), home)
	if len(found) < 1 || found[0] != base.Directory(usual) || unread != nil {
		t.Errorf("%v, %v", found, unread)
	}
	for _, place := range found[1:] {
		if place == base.Directory(usual) {
			t.Errorf("%v", found)
		}
	}
}
