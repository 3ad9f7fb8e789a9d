// Command go is an application on the published sdk-go as it is: nothing in it knows that it may run on another machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"

	"github.com/testground/sdk-go/run"
	"github.com/testground/sdk-go/runtime"
	"github.com/testground/sdk-go/sync"
)

type greeting struct {
	Greeting string `json:"greeting"`
	From     string `json:"from"`
}

type told struct {
	Number int64    `json:"number"`
	Arch   string   `json:"arch"`
	Heard  greeting `json:"heard"`
}

func main() {
	run.InvokeMap(map[string]interface{}{
		"sync":  run.InitializedTestCaseFn(meet),
		"fail":  run.TestCaseFn(fail),
		"crash": run.TestCaseFn(crash),
	})
}

// meet: everybody meets at a barrier; the first one there publishes, and everybody hears it.
func meet(env *runtime.RunEnv, init *run.InitContext) error {
	ctx := context.Background()
	client := init.SyncClient
	number := client.MustSignalAndWait(ctx, "ready", env.TestInstanceCount)
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	expected := env.StringParam("greeting")
	topic := sync.NewTopic("greetings", greeting{})
	if number == 1 {
		client.MustPublish(ctx, topic, greeting{expected, host})
	}
	greetings := make(chan greeting, 1)
	client.MustSubscribe(ctx, topic, greetings)
	heard := <-greetings
	if heard.Greeting != expected {
		return fmt.Errorf("heard %+v", heard)
	}
	env.RecordMessage("number %d on %s, %s, heard %s from %s", number, host, goruntime.GOARCH, heard.Greeting, heard.From)
	env.R().RecordPoint("number", float64(number))
	text, err := json.Marshal(told{number, goruntime.GOARCH, heard})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(env.TestOutputsPath, "heard.json"), text, 0o644); err != nil {
		return err
	}
	client.MustSignalAndWait(ctx, "done", env.TestInstanceCount)
	return nil
}

func fail(*runtime.RunEnv) error {
	return errors.New("this case always fails")
}

func crash(*runtime.RunEnv) error {
	panic("this case always crashes")
}
