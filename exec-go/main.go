// Command exec-go is the launcher, which Testground starts for each instance: its builder exec:go builds it from a plan, and
// Nix as the flake's bin/remote-runner. It hands the instance to the broker (broker.go), or runs it in a process of its own.
package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// `fab plan.import` writes this file: the command to start, one word per line.
const commandFile = "exec-go/command"

// Set by the linker where Nix builds this (flake.nix): the plan, its Python, and the table of what can be started.
var linkedPlan, linkedPython, linkedArtifacts string

// A command is what one instance is started with.
type command struct {
	words []string
	// Where its code lies, if the words alone do not say it; else "".
	directory string
}

func main() {
	if linkedPlan != "" && len(os.Args) > 1 {
		becomeTasks(os.Args[1:])
	}
	enterPlan()
	instance, err := instanceCommand()
	if err != nil {
		fail(err.Error(), "run `fab plan.import` in the plan's directory, or start Testground's daemon with `fab` on its PATH")
	}
	if linkedArtifacts != "" {
		os.Setenv("REMOTE_RUNNER_ARTIFACTS", linkedArtifacts)
	}
	inheritAllocation()
	if os.Getenv(startVariable) == "off" {
		instance.become()
	}
	status, err := handOver(instance)
	if err == nil {
		os.Exit(status)
	}
	message("start: no broker takes this instance, so it runs by itself: " + err.Error())
	os.Setenv(startVariable, "off")
	instance.become()
}

// typed is the program to name in hints: plan.import adds it as the last word if it is not `fab`.
func (c command) typed() string {
	if c.words[len(c.words)-1] == "remote-runner" {
		return "remote-runner"
	}
	return "fab"
}

// enterPlan goes to the plan's directory, which is where an instance runs.
func enterPlan() {
	plan := linkedPlan
	if plan == "" {
		// The daemon builds without -trimpath, and keeps the plan's unpacked copy.
		_, source, _, _ := runtime.Caller(0)
		plan = filepath.Dir(filepath.Dir(source))
		if !filepath.IsAbs(plan) {
			fail("this was built with -trimpath, and so does not know the plan's directory",
				"take -trimpath out of GOFLAGS in the environment of Testground's daemon, and run the plan again")
		}
	}
	if err := os.Chdir(plan); err != nil {
		fail("the plan's directory that this was built from is gone: "+err.Error(), "run the plan again, so that it is built anew")
	}
}

// becomeTasks runs `fab`'s tasks on the plan in the current directory.
func becomeTasks(words []string) {
	path := linkedPlan
	if given := os.Getenv("PYTHONPATH"); given != "" {
		path += ":" + given
	}
	os.Setenv("PYTHONPATH", path)
	command{append([]string{linkedPython, "-c", "import tasks.main; tasks.main.main()"}, words...), ""}.become()
}

func (c command) become() {
	err := syscall.Exec(c.words[0], c.words, os.Environ())
	fail(c.words[0]+" cannot be started: "+err.Error(),
		"run `"+c.typed()+" plan.import` again with the Python that remote-runner is installed for")
}

func instanceCommand() (command, error) {
	if linkedPlan != "" {
		return command{[]string{linkedPython, "-m", "remote_runner", "remote-runner"}, linkedPlan}, nil
	}
	words, err := readFile(commandFile)
	if err == nil && len(words) > 0 {
		// This command finds its code in any directory, so the runs of all plans share a broker.
		return command{strings.Split(strings.TrimSuffix(string(words), "\n"), "\n"), ""}, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return command{}, err
	}
	fab, err := findFab()
	if err != nil {
		return command{}, err
	}
	plan, err := os.Getwd() // its fabfile is code
	return command{[]string{fab, "instance"}, plan}, err
}

func findFab() (string, error) {
	path := os.Getenv("PATH")
	for _, directory := range filepath.SplitList(path) {
		fab := filepath.Join(directory, "fab")
		found, err := os.Stat(fab)
		if err == nil && filepath.IsAbs(fab) && found.Mode().IsRegular() && syscall.Access(fab, 1) == nil {
			return fab, nil
		}
	}
	return "", errors.New("no `fab` on the PATH of Testground's daemon (" + path + "), and the plan names no Python")
}

// fail ends the instance with a failure event on stdout, as Testground expects.
func fail(reason, next string) {
	event("failure_event", `"group":`+quoted(os.Getenv("TEST_GROUP_ID"))+`,"error":`+quoted("remote-runner: "+reason+"\n  next: "+next))
	os.Exit(1)
}

func message(text string) {
	event("message_event", `"message":`+quoted(text))
}

// event writes an event as JSON by hand: encoding/json and fmt would add a quarter to this program's cost.
func event(name, body string) {
	os.Stdout.WriteString(`{"ts":` + strconv.FormatInt(time.Now().UnixNano(), 10) + `,"msg":"","group_id":` +
		quoted(os.Getenv("TEST_GROUP_ID")) + `,"run_id":` + quoted(os.Getenv("TEST_RUN")) + `,"event":{"` + name + `":{` + body + "}}}\n")
}

// quoted returns a JSON string.
func quoted(text string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, each := range text { // invalid UTF-8 becomes U+FFFD
		switch {
		case each == '"' || each == '\\':
			out.WriteByte('\\')
			out.WriteRune(each)
		case each < ' ':
			const digits = "0123456789abcdef"
			out.WriteString(`\u00`)
			out.WriteByte(digits[each>>4])
			out.WriteByte(digits[each&15])
		default:
			out.WriteRune(each)
		}
	}
	out.WriteByte('"')
	return out.String()
}
