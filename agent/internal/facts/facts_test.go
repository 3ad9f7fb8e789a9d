package facts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/command"
	"remote-runner/agent/internal/nix"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wiretest"
)

// The namespaces are tried by this program, as by the agent's.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == TryNamespaces {
		if err := Try(nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// keeper is the only one of this process, as it takes all children.
var keeper = process.NewKeeper(nil)

func service(t *testing.T, environ ...string) *Service {
	commands := &command.Service{Processes: keeper, Environ: environ, Home: t.TempDir()}
	return &Service{
		Base: base.Directory(t.TempDir()), Commands: commands,
		Nix: &nix.Service{Processes: keeper, Environ: environ, Home: commands.Home},
	}
}

func facts(t *testing.T, service *Service, what ...string) map[string]map[string]any {
	t.Helper()
	said := wiretest.New(t, service.Facts).Open(map[string]any{"verb": "facts", "what": what}).Receive()
	told := map[string]map[string]any{}
	for name, fact := range said {
		told[name] = fact.(map[string]any)
	}
	return told
}

func TestFacts(t *testing.T) {
	told := facts(t, service(t, "PATH="+os.Getenv("PATH"), "SHELL=/bin/some"),
		"clock", "load", "memory", "cores", "kernel", "disk", "user", "shell", "namespaces", "python", "nix", "limits", "weather",
		"system", "processor", "governor", "virtualization")
	t.Log(told)
	if there := int64(told["clock"]["ns"].(float64)); time.Since(time.Unix(0, there)).Abs() > time.Minute {
		t.Errorf("clock %v", told["clock"])
	}
	if told["shell"]["path"] != "/bin/some" || told["user"]["uid"] != float64(os.Getuid()) || told["weather"] != nil {
		t.Errorf("%v", told)
	}
	if told["cores"]["usable"].(float64) < 1 || told["disk"]["free"].(float64) < 1 || told["nix"]["access"] == nil {
		t.Errorf("%v", told)
	}
	if told["memory"]["total"].(float64) < 1<<20 || told["load"]["1"] == nil || told["limits"]["nofile"].(float64) < 16 {
		t.Errorf("%v", told)
	}
	if runtime.GOOS == "linux" {
		if told["cores"]["online"].(float64) < told["cores"]["usable"].(float64) || told["processor"]["name"] == "" {
			t.Errorf("%v", told)
		}
		trial, err := exec.LookPath("unshare")
		if err != nil {
			t.Skip("no unshare(1) to compare with")
		}
		done, err := (&command.Service{Processes: keeper, Home: "/"}).Output(context.Background(), 100, trial, "-r", "-m", "/bin/true")
		if err != nil || told["namespaces"]["user"] != (done.Status == 0) {
			t.Errorf("%v, but unshare ends with %v, %v", told["namespaces"], done, err)
		}
	}
}

func TestPrograms(t *testing.T) {
	place := t.TempDir()
	write := func(name, script string) {
		if err := os.WriteFile(filepath.Join(place, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	service := service(t, "PATH="+place+":/bin:/usr/bin")
	write("python3", "echo Python 3.99.1")
	write("nix-store", "echo odd >&2; echo nix-store 2.99")
	told := facts(t, service, "python", "nix")
	if told["python"]["version"] != "3.99.1" || told["python"]["path"] != filepath.Join(place, "python3") {
		t.Errorf("%v", told)
	}
	if told["nix"]["version"] != "2.99" || told["nix"]["path"] != filepath.Join(place, "nix-store") {
		t.Errorf("%v", told)
	}
	// One that hangs, and one that says without end, are as good as none.
	write("python3", "exec sleep 1000")
	began := time.Now()
	if told := facts(t, service, "python"); told["python"] != nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %v", told, time.Since(began))
	}
	write("python3", "exec yes "+strings.Repeat("x", 1000))
	if told := facts(t, service, "python"); told["python"] != nil {
		t.Errorf("%v", told)
	}
}

func TestValues(t *testing.T) {
	info := "processor\t: 0\nmodel name\t: Some(R) CPU: fast\nmodel name\t: other\n"
	if name := valueIn(info, "model name", ":"); name != "Some(R) CPU: fast" {
		t.Error(name)
	}
	if name := valueIn(info, "model", ":"); name != "" {
		t.Error(name)
	}
	for product, kind := range map[string]string{
		"QEMU Standard PC (Q35 + ICH9, 2009)": "qemu", "Microsoft Corporation Virtual Machine": "hyper-v",
		"Amazon EC2 c5.large": "amazon", "Amazon EC2 c5.metal": "", "LENOVO 20XW": "",
	} {
		if found := hypervisorOf(product); found != kind {
			t.Errorf("%s: %q", product, found)
		}
	}
}
