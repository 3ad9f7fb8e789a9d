package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const resource = `
master = "v1"
[[versions]]
id = "one"
[[versions]]
id = "two"
[values]
number = 3
nothing = []
`

func TestFillIn(t *testing.T) {
	directory := t.TempDir()
	if err := os.WriteFile(filepath.Join(directory, "resource.toml"), []byte(resource), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"NAME": "x=y", "LIST": "a,b"}
	for text, want := range map[string]string{
		`a = "{{ .Env.NAME }}{{ .Env.NONE }}"`:                                                                                 `a = "x=y<no value>"`,
		`{{ range split .Env.LIST }}[{{ . }}]{{ end }}`:                                                                        `[a][b]`,
		`{{ index (split .Env.LIST) (atoi "1") }}`:                                                                             `b`,
		`{{ with load_resource "resource.toml" }}{{ range .versions }}{{ .id }} {{ end }}{{end}}`:                              `one two `,
		`{{ pick (load_resource "resource.toml") "master" | toml }}`:                                                           "master = \"v1\"\n",
		`{{ define "t" }}{{ .master }} {{ .Env.NAME }}{{ end }}{{ template "t" (load_resource "./resource.toml" | withEnv) }}`: `v1 x=y`,
		`{{ pick (load_resource "resource.toml") "values" | toml }}`:                                                           "[values]\n  nothing = []\n  number = 3\n",
		`{{ "{{" }}`: `{{`,
	} {
		if filled, err := fillIn(text, directory, env); err != nil || string(filled) != want {
			t.Errorf("%s\n gave %q, %v\n want %q", text, filled, err, want)
		}
	}
}

func TestWhatIsWrongIsSaidWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"\n\n{{ foo }}":                  `template: tpl:3: function "foo" not defined`,
		"\n{{ if }}":                     "template: tpl:2: missing value for if",
		"\n{{ load_resource \"nope\" }}": "nope: no such file or directory",
		"\n{{ atoi \"x\" }}":             "template: tpl:2:3: executing",
		`{{ define "t" }}` + strings.Repeat("x", 1<<10) + `{{ template "t" . }}{{ end }}{{ template "t" . }}`: "it gives more than",
	} {
		_, err := fillIn(text, t.TempDir(), nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s\n gave %v\n want %s", text, err, want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	found := environment([]string{"A=b=c", "EMPTY=", "none"})
	if len(found) != 2 || found["A"] != "b=c" || found["EMPTY"] != "" {
		t.Error(found)
	}
}
