// Command agent is all of remote-runner that runs on a host.
package main

import (
	"fmt"
	"os"
)

var identity = "unknown" // set by -ldflags "-X main.identity=…"

func main() {
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Println(identity)
		return
	}
	fmt.Fprintln(os.Stderr, "agent: what is it to do?")
	os.Exit(2)
}
