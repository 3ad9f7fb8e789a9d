package base

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	run := Run(t.TempDir())
	wrote := Record{"id": "r", "command": "two\nlines", "plan": "a=b", "": "none", "bad\nkey": "none"}
	if err := os.WriteFile(run.Record(), wrote.Format(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Append(run, Record{"exit": "0"}); err != nil {
		t.Fatal(err)
	}
	found, err := ReadRecord(run)
	want := Record{"id": "r", "command": "two lines", "plan": "a=b", "exit": "0"}
	if err != nil || !reflect.DeepEqual(found, want) {
		t.Errorf("%v %v", found, err)
	}
	if text := string(wrote.Format()); !strings.HasPrefix(text, "id=r\n") {
		t.Errorf("%q", text)
	}
}

func TestARecordThatIsCutOffSaysNothingElse(t *testing.T) {
	wrote := Record{"id": "r", "agent": "1234", "application": "5678", "exit": "137"}
	text := wrote.Format()
	for end := range text {
		for key, value := range ParseRecord(text[:end]) {
			if wrote[key] != value {
				t.Errorf("%q says %s=%s", text[:end], key, value)
			}
		}
	}
}

func TestAPipeInTheRecordsPlaceIsNotWaitedFor(t *testing.T) {
	run := Run(t.TempDir())
	if err := syscall.Mkfifo(run.Record(), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(run.Record(), os.O_RDWR, 0) // an application that says nothing, and reads nothing
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if record, err := ReadRecord(run); err == nil || len(record) != 0 {
			t.Errorf("%v, %v", record, err)
		}
		for n := 0; n < 2; n++ {
			if err := Append(run, Record{"exit": strings.Repeat("0", 1<<20)}); err == nil {
				t.Error("a pipe takes what happened")
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("it waits")
	}
	held.Close()
	<-done
}

func TestWhoIsAlive(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	start := StartTime(os.Getpid())
	for _, each := range []struct {
		record Record
		alive  bool
	}{
		{Record{"boot": BootID(), "agent": pid, "agent_start": start}, true},
		{Record{"boot": BootID(), "agent": pid, "agent_start": start, "exit": "0"}, false},
		{Record{"boot": BootID(), "supervisor": pid, "supervisor_start": start, "exit": "0"}, true},
		{Record{"boot": "another", "agent": pid, "agent_start": start}, false},
		{Record{"boot": BootID(), "agent": "4194999", "agent_start": start}, false},
		{Record{"boot": BootID(), "agent": "-1"}, false},
		{Record{}, false},
	} {
		if Alive(each.record) != each.alive {
			t.Errorf("%v: not %v", each.record, each.alive)
		}
	}
	if runtime.GOOS == "linux" && Alive(Record{"boot": BootID(), "agent": pid, "agent_start": "5"}) {
		t.Error("a number that was given again")
	}
}

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two"} {
		if err := WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		found, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || string(found) != text || info.Mode().Perm() != 0o640 {
			t.Errorf("%q %v %v", found, err, info)
		}
	}
	if err := WriteFile(filepath.Join(path, "f"), nil, 0o600); err == nil {
		t.Error("a file holds a file")
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("%v", names)
	}
}

func TestRemoveTakesWhatIsClosed(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	if err := os.MkdirAll(filepath.Join(root, "a/b/c"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "a/b/c/f"), nil, 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b/c", "a/b", "a"} {
		if err := os.Chmod(filepath.Join(root, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(root); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(root); err == nil {
		t.Error("it is there")
	}
	if err := Remove(root); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	for name, is := range map[string]bool{"run-1": true, "_": true, "a.b": true, "": false, ".": false, "..": false,
		".tmp": false, "a/b": false, "a b": false, "-n": false, strings.Repeat("x", 200): true, strings.Repeat("x", 201): false,
		"a\n": false} {
		if IsName(name) != is {
			t.Errorf("%q: not %v", name, is)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("id=r\nboot=\n=x\nno line"))
	f.Fuzz(func(t *testing.T, text []byte) {
		record := ParseRecord(text)
		Alive(record)
		for key := range record {
			if strings.Contains(key, "\x00") {
				delete(record, key) // read, never written
			}
		}
		if again := ParseRecord(record.Format()); !reflect.DeepEqual(again, record) {
			t.Errorf("%q became %q", record, again)
		}
	})
}
