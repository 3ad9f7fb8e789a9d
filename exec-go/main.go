// Command exec-go is what Testground starts for each instance: its builder exec:go makes it of a plan, and Nix the
// flake's bin/remote-runner. It hands the instance to the broker (broker.go), or becomes the instance's own process.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	words, err := os.ReadFile(commandFile)
	if err == nil && len(words) > 0 {
		// These find their code wherever they are started, so the runs of all plans share a broker.
		return command{strings.Split(strings.TrimSuffix(string(words), "\n"), "\n"), ""}, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return command{}, err
	}
	fab, err := exec.LookPath("fab")
	if err != nil {
		return command{}, fmt.Errorf("no `fab` on the PATH of Testground's daemon (%s), and the plan names no Python", os.Getenv("PATH"))
	}
	if fab, err = filepath.Abs(fab); err != nil {
		return command{}, err
	}
	plan, err := os.Getwd() // its fabfile is code
	return command{[]string{fab, "instance"}, plan}, err
}

// fail ends the instance as Testground wants to be told: by a failure event on stdout.
func fail(reason, next string) {
	event("failure_event", map[string]string{
		"group": os.Getenv("TEST_GROUP_ID"),
		"error": "remote-runner: " + reason + "\n  next: " + next,
	})
	os.Exit(1)
}

func message(text string) {
	event("message_event", map[string]string{"message": text})
}

func event(name string, body map[string]string) {
	line, _ := json.Marshal(map[string]interface{}{
		"ts":       time.Now().UnixNano(),
		"msg":      "",
		"group_id": os.Getenv("TEST_GROUP_ID"),
		"run_id":   os.Getenv("TEST_RUN"),
		"event":    map[string]interface{}{name: body},
	})
	fmt.Println(string(line))
}
