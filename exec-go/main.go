// Command exec-go is what Testground starts for each instance: its builder exec:go makes it of a plan, and Nix the
// flake's bin/remote-runner. It hands the instance to the broker (broker.go), or becomes the instance's own process.
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

// Written by `fab plan.import` beside this file: the command to start, one word a line.
const commandFile = "exec-go/command"

// Set by the linker where Nix builds this (flake.nix): the plan, its Python, and the table of what can be started.
var linkedPlan, linkedPython, linkedArtifacts string

// A command is what one instance is started with.
type command struct {
	words []string
	// Where its code is found, where that is not in the words alone; "" else.
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

// typed is the program for hints: what imported the plan says it as the last word, where it is not `fab`.
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
		// The daemon builds without -trimpath and keeps the plan's unpacked copy.
		_, source, _, _ := runtime.Caller(0)
		plan = filepath.Dir(filepath.Dir(source))
	}
	if err := os.Chdir(plan); err != nil {
		fail("the plan's directory that this was built from is gone: "+err.Error(), "run the plan again, so that it is built anew")
	}
}

// becomeTasks starts the tasks of `fab` on the plan one stands in.
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
		// These find their code wherever they are started, so the runs of all plans share a broker.
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

// fail ends the instance as Testground wants to be told: by a failure event on stdout.
func fail(reason, next string) {
	event("failure_event", `"group":`+quoted(os.Getenv("TEST_GROUP_ID"))+`,"error":`+quoted("remote-runner: "+reason+"\n  next: "+next))
	os.Exit(1)
}

func message(text string) {
	event("message_event", `"message":`+quoted(text))
}

// event writes it as JSON by hand: encoding/json and fmt are a fifth of what this program costs with them.
func event(name, body string) {
	os.Stdout.WriteString(`{"ts":` + strconv.FormatInt(time.Now().UnixNano(), 10) + `,"msg":"","group_id":` +
		quoted(os.Getenv("TEST_GROUP_ID")) + `,"run_id":` + quoted(os.Getenv("TEST_RUN")) + `,"event":{"` + name + `":{` + body + "}}}\n")
}

// quoted is a string of JSON.
func quoted(text string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, each := range text { // what is no UTF-8 comes as U+FFFD
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
