// Fills in a composition that is a template, as Testground does before it reads one (v0.6.0, pkg/cmd/template.go).
//
//	template DIRECTORY <TEMPLATE >TOML
//
// DIRECTORY is that of the composition: load_resource looks from there. The environment is what .Env has.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/BurntSushi/toml"
)

// name is what Testground calls a template; one may name itself.
const name = "tpl"

// What Python reads of a composition; a template that never ends ends here.
const mostBytes = 16 << 20

type table = map[string]interface{}

func main() {
	if len(os.Args) != 2 {
		fail(errors.New("usage: template DIRECTORY <TEMPLATE"))
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	filled, err := fillIn(string(text), os.Args[1], environment(os.Environ()))
	if err != nil {
		fail(err)
	}
	if _, err := os.Stdout.Write(filled); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func environment(pairs []string) map[string]string {
	found := map[string]string{}
	for _, pair := range pairs {
		if at := strings.Index(pair, "="); at >= 0 {
			found[pair[:at]] = pair[at+1:]
		}
	}
	return found
}

func fillIn(text, directory string, env map[string]string) ([]byte, error) {
	parsed, err := template.New(name).Funcs(functions(directory, env)).Parse(text)
	if err != nil {
		return nil, err
	}
	var out limited
	if err := parsed.Execute(&out, struct{ Env map[string]string }{env}); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// functions are the six that Testground gives its templates.
func functions(directory string, env map[string]string) template.FuncMap {
	return template.FuncMap{
		// A table of one key of another.
		"pick": func(from table, key string) table { return table{key: from[key]} },
		// A value as TOML.
		"toml": func(value interface{}) (string, error) {
			var out bytes.Buffer
			err := toml.NewEncoder(&out).Encode(value)
			return out.String(), err
		},
		// A table, and .Env in it, for a template within the template.
		"withEnv": func(from table) table {
			with := table{}
			for key, value := range from {
				with[key] = value
			}
			with["Env"] = env
			return with
		},
		"split": func(list string) []string { return strings.Split(list, ",") },
		"atoi":  strconv.Atoi,
		// A TOML file, by its path from the composition.
		"load_resource": func(path string) (table, error) {
			var read table
			if _, err := toml.DecodeFile(filepath.Join(directory, path), &read); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			return read, nil
		},
	}
}

type limited struct{ bytes.Buffer }

func (l *limited) Write(data []byte) (int, error) {
	if l.Len()+len(data) > mostBytes {
		return 0, fmt.Errorf("it gives more than %d bytes", mostBytes)
	}
	return l.Buffer.Write(data)
}
