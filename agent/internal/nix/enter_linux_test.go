package nix

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/store"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "enter" {
		if err := Enter(os.Args[2:]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// service is one with a user's own store in which app has a shell.
func service(t *testing.T) (*Service, store.UserStore) {
	t.Helper()
	home := base.Directory(t.TempDir())
	own := store.UserStoreIn(home)
	bin := filepath.Join(string(own), "nix/store", app, "bin")
	for _, place := range []string{bin, filepath.Join(string(own), "root"), filepath.Join(string(own), "closures")} {
		if err := os.MkdirAll(place, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell, err := os.ReadFile("/bin/sh")
	if err == nil {
		err = os.WriteFile(filepath.Join(bin, "app"), shell, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(string(own), "closures", app), []byte(app+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	keeper := process.NewKeeper(nil)
	t.Cleanup(keeper.Close)
	return &Service{Base: home, Processes: keeper, Environ: os.Environ(), Home: "/"}, own
}

// proved is service where this kernel gives namespaces; how is the way.
func proved(t *testing.T) (*Service, store.UserStore, string) {
	s, own := service(t)
	how, err := s.Prove(context.Background(), own)
	if err != nil {
		t.Skipf("no namespaces here: %v", err)
	}
	host, _ := os.Hostname()
	if err := os.WriteFile(filepath.Join(string(own), "how."+host), []byte(how+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s, own, how
}

// start starts a script in the store's shell and returns the process and what it says.
func start(t *testing.T, s *Service, place *Place, script string) (*process.Process, func() string) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	spec := process.Spec{
		Path: place.Program, Argv: []string{place.Program, "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=b\xff"},
		Dir: string(place.run), Stdin: int(null.Fd()), Stdout: int(writer.Fd()), Stderr: int(writer.Fd()),
	}
	place.Enter(&spec)
	running, err := s.Processes.Start(spec)
	writer.Close()
	if err != nil {
		t.Fatal(err)
	}
	return running, func() string {
		text, _ := io.ReadAll(reader)
		reader.Close()
		return string(text)
	}
}

func place(t *testing.T, s *Service, program string) *Place {
	t.Helper()
	found, err := s.Place(context.Background(), UserStore, "/nix/store/"+app, program, base.Run(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAProgramFindsItsStoreAtItsPlace(t *testing.T) {
	s, _, _ := proved(t)
	found := place(t, s, "bin/app")
	running, said := start(t, s, found, `readlink /proc/$$/exe; ls /nix/store; pwd; id -u; grep CapEff /proc/$$/status
		tr '\0' '\n' </proc/$$/environ; echo "$$"; ls /; exit 3`)
	text := said()
	<-running.Done()
	if running.Status().ExitStatus() != 3 {
		t.Errorf("status %v: %s", running.Status(), text)
	}
	uid := strconv.Itoa(os.Getuid())
	want := strings.Join([]string{found.Program, app, string(found.run), uid}, "\n") + "\n"
	if !strings.HasPrefix(text, want) {
		t.Errorf("it says\n%s\nand not\n%s", text, want)
	}
	if uid != "0" && !strings.Contains(text, "CapEff:\t0000000000000000\n") {
		t.Errorf("it has capabilities: %s", text)
	}
	if !strings.Contains(text, "\nPATH=/usr/bin:/bin\nA=b\xff\n") {
		t.Errorf("its environment is another: %s", text)
	}
	if !strings.Contains(text, "\n"+strconv.Itoa(running.PID)+"\n") {
		t.Errorf("it is not the process %d: %s", running.PID, text)
	}
	if entries, _ := os.ReadDir("/"); !strings.HasSuffix(text, entries[len(entries)-1].Name()+"\n") {
		t.Errorf("it does not see what is in /: %s", text)
	}
	if problem, err := found.Ended(); problem != "" || err != nil {
		t.Errorf("a problem: %q, %v", problem, err)
	}
}

func TestAProgramThatCannotBeStartedTellsItsError(t *testing.T) {
	s, _, _ := proved(t)
	found := place(t, s, "bin/none")
	running, said := start(t, s, found, "")
	text := said()
	<-running.Done()
	if problem, err := found.Ended(); problem != "" || err != syscall.ENOENT {
		t.Errorf("%q, %v: %s", problem, err, text)
	}
	if running.Status().ExitStatus() != 126 || text != "" {
		t.Errorf("%v: %s", running.Status(), text)
	}
}

func TestWhatCannotBeShownIsANamespaceProblem(t *testing.T) {
	s, own, _ := proved(t)
	found := place(t, s, "bin/app")
	if err := os.Rename(filepath.Join(string(own), "nix"), filepath.Join(string(own), "elsewhere")); err != nil {
		t.Fatal(err)
	}
	running, _ := start(t, s, found, "")
	<-running.Done()
	if problem, err := found.Ended(); !strings.HasPrefix(problem, "namespace:mount: ") || err != nil {
		t.Errorf("%q, %v", problem, err)
	}
	if own.How() != "" {
		t.Errorf("the next push does not try again: %q", own.How())
	}
}

func TestTheApplicationMayPutAPipeInTheReportsPlace(t *testing.T) {
	_, own := service(t)
	place := &Place{own: own, run: base.Run(t.TempDir())}
	if err := syscall.Mkfifo(place.report(), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if problem, err := place.Ended(); problem != "" || err != nil {
			t.Errorf("%q, %v", problem, err)
		}
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("it waits for somebody who writes")
		writer, err := os.OpenFile(place.report(), os.O_WRONLY, 0)
		if err == nil {
			writer.Close()
		}
		<-ended
	}
}

func TestTermReachesTheProgram(t *testing.T) {
	s, _, _ := proved(t)
	running, said := start(t, s, place(t, s, "bin/app"), "exec 2>/dev/null; trap 'echo told; exit 4' TERM; echo ready >ready; while :; do sleep 0.01; done")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if files, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(running.PID), "cwd", "ready")); len(files) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not begin")
		}
	}
	running.Signal(syscall.SIGTERM)
	text := said()
	<-running.Done()
	if running.Status().ExitStatus() != 4 || text != "told\n" {
		t.Errorf("%v: %s", running.Status(), text)
	}
}
